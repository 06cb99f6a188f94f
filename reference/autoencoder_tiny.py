"""A tiny autoencoder, distilled from a large one (github.com/madebyollin/taesd), for previews and quick decoding."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .autoencoder import DecoderOutput
from .configuration import NetworkConfig
from .network import Network

#: latents are pulled into this range before they are decoded
_LATENTS_RANGE = 3


@dataclass(frozen=True, kw_only=True)
class AutoencoderTinyConfig(NetworkConfig):
    """The keys of a tiny autoencoder's `config.json` that change what it or its user computes; defaults are diffusers'.

    Attributes:
        num_encoder_blocks: how many blocks each level has; each but the first halves the size before them.
        num_decoder_blocks: likewise; each but the last enlarges after them.
        scaling_factor: latents are multiplied by it for the UNet; the network itself does not.
        shift_factor: is subtracted from latents before that.
    """

    network: ClassVar[str] = "AutoencoderTiny"
    neutral: ClassVar[Mapping[str, object]] = MappingProxyType({"act_fn": "relu", "upsample_fn": "nearest"})
    # what storing latents as bytes needs, and a copy of decoder_block_out_channels
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"latent_magnitude", "latent_shift", "block_out_channels", "force_upcast"}
    )

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    upsampling_scaling_factor: int = 2
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        for part in ("encoder", "decoder"):
            channels, blocks = getattr(self, f"{part}_block_out_channels"), getattr(self, f"num_{part}_blocks")
            if len(channels) != len(blocks):
                raise ValueError(
                    f"{self.network}: {part}_block_out_channels must have one entry for each of num_{part}_blocks, "
                    f"{len(blocks)}, got {len(channels)}"
                )
            if len(set(channels)) > 1:
                raise ValueError(
                    f"{self.network}: {part}_block_out_channels must all be the same, since nothing changes them "
                    f"between the levels, got {list(channels)}"
                )


@dataclass(frozen=True)
class AutoencoderTinyOutput:
    """What encoding gives: (batch, latent_channels, latent_height, latent_width), no distribution."""

    latents: Tensor


class AutoencoderTiny(Network):
    """Turns images into latents and back with a few convolutions, about as a large autoencoder does."""

    config_class = AutoencoderTinyConfig

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__(config)
        self.config = config
        self.encoder = TinyEncoder(config)
        self.decoder = TinyDecoder(config)

    def encode(self, sample: Tensor) -> AutoencoderTinyOutput:
        """The latents of images, as `encode_latents` makes them."""
        return AutoencoderTinyOutput(self.encode_latents(sample))

    def decode(self, latent_sample: Tensor) -> DecoderOutput:
        """The images of latents, as `decode_sample` makes them."""
        return DecoderOutput(self.decode_sample(latent_sample))

    def encode_latents(self, sample: Tensor) -> Tensor:
        """Latents, from a tensor to a tensor: what an export holds.

        Args:
            sample: images, (batch, in_channels, height, width) in [-1, 1].

        Returns:
            (batch, latent_channels, latent_height, latent_width).
        """
        return self.encoder(sample)

    def decode_sample(self, latent_sample: Tensor) -> Tensor:
        """Images, from a tensor to a tensor: what an export holds.

        Args:
            latent_sample: (batch, latent_channels, latent_height, latent_width).

        Returns:
            (batch, out_channels, height, width), about in [-1, 1].
        """
        return self.decoder(latent_sample)


class TinyEncoder(nn.Module):
    """Levels of blocks, each half the size of the one before."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        channels = config.encoder_block_out_channels
        layers: list[nn.Module] = [nn.Conv2d(config.in_channels, channels[0], 3, padding=1)]
        for level, blocks in enumerate(config.num_encoder_blocks):
            if level:
                layers.append(nn.Conv2d(channels[level], channels[level], 3, padding=1, stride=2, bias=False))
            layers += [TinyBlock(channels[level]) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], config.latent_channels, 3, padding=1))

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) in [-1, 1] to (batch, latent_channels, ...)."""
        return self.layers((sample + 1) / 2)


class TinyDecoder(nn.Module):
    """Levels of blocks, each larger than the one before."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        channels = config.decoder_block_out_channels
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, channels[0], 3, padding=1), nn.ReLU()]
        last = len(channels) - 1
        for level, blocks in enumerate(config.num_decoder_blocks):
            layers += [TinyBlock(channels[level]) for _ in range(blocks)]
            if level < last:
                layers.append(nn.Upsample(scale_factor=float(config.upsampling_scaling_factor), mode="nearest"))
                layers.append(nn.Conv2d(channels[level], channels[level], 3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[last], config.out_channels, 3, padding=1))

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Maps (batch, latent_channels, latent_height, latent_width) to (batch, out_channels, ...) in [-1, 1]."""
        sample = self.layers(_LATENTS_RANGE * torch.tanh(latent_sample / _LATENTS_RANGE))
        return 2 * sample - 1


class TinyBlock(nn.Module):
    """Three convolutions around which the input is added again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape."""
        return functional.relu(self.conv(sample) + sample)
