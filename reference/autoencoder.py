"""The autoencoder between images and latents, of Rombach et al. 2022 (arXiv:2112.10752)."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import SpatialAttention
from .configuration import NetworkConfig
from .layers import Downsample2D, ResnetBlock2D, Upsample2D
from .network import Network

_DOWN_BLOCK = "DownEncoderBlock2D"
_UP_BLOCK = "UpDecoderBlock2D"

#: of every group norm; a constant of the architecture, in no configuration
_GROUP_NORM_EPS = 1e-6

#: the logarithm of the variance is clamped to this range
_LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(NetworkConfig):
    """The keys of an autoencoder's `config.json` that change what it or its user computes; defaults are diffusers'.

    Attributes:
        scaling_factor: latents are multiplied by it for the UNet; the network itself does not.
        shift_factor: is subtracted from latents before that; None for 0.
        force_upcast: whether float16 overflows, so that the network is to be run in float32.
    """

    network: ClassVar[str] = "AutoencoderKL"
    neutral: ClassVar[Mapping[str, object]] = MappingProxyType(
        {"act_fn": "silu", "latents_mean": None, "latents_std": None}
    )

    sample_size: int | tuple[int, ...] = 32
    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = (_DOWN_BLOCK,)
    up_block_types: tuple[str, ...] = (_UP_BLOCK,)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for key, kind in (("down_block_types", _DOWN_BLOCK), ("up_block_types", _UP_BLOCK)):
            names = getattr(self, key)
            if unknown := [name for name in names if name != kind]:
                raise ValueError(f"{self.network}: {key} has {unknown[0]!r}, only {kind!r} is implemented")
            if len(names) != levels:
                raise ValueError(
                    f"{self.network}: {key} must have one entry for each of block_out_channels, {levels}, "
                    f"got {len(names)}"
                )
        if odd := [channels for channels in self.block_out_channels if channels % self.norm_num_groups]:
            raise ValueError(
                f"{self.network}: block_out_channels {odd[0]} must be a multiple of "
                f"norm_num_groups {self.norm_num_groups}"
            )


class DiagonalGaussianDistribution:
    """The distribution of an image's latents.

    Attributes:
        parameters: (batch, 2 * latent_channels, height, width).
        mean: (batch, latent_channels, height, width).
        logvar: the logarithm of the variance, of the same shape.
        std: the standard deviation, of the same shape.
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(*_LOGVAR_RANGE)

    @cached_property
    def std(self) -> Tensor:
        """The standard deviation."""
        return torch.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        """The most likely latents."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Random latents; the noise is drawn on the generator's device."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)


@dataclass(frozen=True)
class AutoencoderKLOutput:
    """What encoding gives: the distribution of the latents."""

    latent_dist: DiagonalGaussianDistribution


@dataclass(frozen=True)
class DecoderOutput:
    """What decoding gives: images, (batch, out_channels, height, width), about in [-1, 1]."""

    sample: Tensor


class AutoencoderKL(Network):
    """Turns images into latents of an eighth of their size (or whatever the number of levels makes it), and back."""

    config_class = AutoencoderKLConfig
    # attention as diffusers named it before 0.15; files on the hub still have it
    renames = (
        (r"\.query\.", ".to_q."),
        (r"\.key\.", ".to_k."),
        (r"\.value\.", ".to_v."),
        (r"\.proj_attn\.", ".to_out.0."),
    )

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__(config)
        self.config = config
        latent, moments = config.latent_channels, 2 * config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.use_post_quant_conv else None

    def encode(self, sample: Tensor) -> AutoencoderKLOutput:
        """The distribution of the latents of images, (batch, in_channels, height, width) in [-1, 1]."""
        return AutoencoderKLOutput(DiagonalGaussianDistribution(self.encode_parameters(sample)))

    def decode(self, latent_sample: Tensor) -> DecoderOutput:
        """The images of latents, as `decode_sample` makes them."""
        return DecoderOutput(self.decode_sample(latent_sample))

    def forward(self, sample: Tensor) -> DecoderOutput:
        """The images that come back when the most likely latents of images are decoded."""
        return self.decode(self.encode(sample).latent_dist.mode())

    def encode_parameters(self, sample: Tensor) -> Tensor:
        """The parameters of the latents' distribution, from a tensor to a tensor: what an export holds.

        Args:
            sample: images, (batch, in_channels, height, width) in [-1, 1].

        Returns:
            Mean and logarithm of the variance, (batch, 2 * latent_channels, latent_height, latent_width).
        """
        parameters: Tensor = self.encoder(sample)
        if self.quant_conv is not None:
            parameters = self.quant_conv(parameters)
        return parameters

    def decode_sample(self, latent_sample: Tensor) -> Tensor:
        """Images, from a tensor to a tensor: what an export holds.

        Args:
            latent_sample: (batch, latent_channels, latent_height, latent_width), unscaled: what the UNet works on
                divided by `scaling_factor`.

        Returns:
            (batch, out_channels, height, width), about in [-1, 1].
        """
        if self.post_quant_conv is not None:
            latent_sample = self.post_quant_conv(latent_sample)
        return self.decoder(latent_sample)


class Encoder(nn.Module):
    """Levels of resnet blocks, each smaller than the one before."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownEncoderBlock(
                channels[max(level - 1, 0)],
                channels[level],
                layers=config.layers_per_block,
                groups=config.norm_num_groups,
                downsamples=level < len(channels) - 1,
            )
            for level in range(len(channels))
        )
        self.mid_block = MidBlock(channels[-1], groups=config.norm_num_groups, attends=config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=_GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, 2 * latent_channels, latent_height, latent_width)."""
        sample = self.conv_in(sample)
        for block in self.down_blocks:
            sample = block(sample)
        sample = self.mid_block(sample)
        return self.conv_out(functional.silu(self.conv_norm_out(sample)))


class Decoder(nn.Module):
    """Levels of resnet blocks, each larger than the one before."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups=config.norm_num_groups, attends=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock(
                channels[max(level - 1, 0)],
                channels[level],
                layers=config.layers_per_block + 1,
                groups=config.norm_num_groups,
                upsamples=level < len(channels) - 1,
            )
            for level in range(len(channels))
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[-1], eps=_GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, latent_channels, latent_height, latent_width) to (batch, out_channels, height, width)."""
        sample = self.mid_block(self.conv_in(sample))
        for block in self.up_blocks:
            sample = block(sample)
        return self.conv_out(functional.silu(self.conv_norm_out(sample)))


class DownEncoderBlock(nn.Module):
    """Resnet blocks, then a halving of the size."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: int, groups: int, downsamples: bool) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers=layers, groups=groups)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, padding=0)] if downsamples else [])

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, out_channels, ...), at half the size if it halves."""
        for layer in (*self.resnets, *self.downsamplers):
            sample = layer(sample)
        return sample


class UpDecoderBlock(nn.Module):
    """Resnet blocks, then a doubling of the size."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: int, groups: int, upsamples: bool) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers=layers, groups=groups)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if upsamples else [])

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, out_channels, ...), at twice the size if it doubles."""
        for layer in (*self.resnets, *self.upsamplers):
            sample = layer(sample)
        return sample


class MidBlock(nn.Module):
    """Two resnet blocks, with attention between them where the configuration asks for it."""

    def __init__(self, channels: int, *, groups: int, attends: bool) -> None:
        super().__init__()
        self.resnets = _resnets(channels, channels, layers=2, groups=groups)
        self.attentions = nn.ModuleList(
            [SpatialAttention(channels, groups=groups, eps=_GROUP_NORM_EPS)] if attends else []
        )

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape."""
        first, second = self.resnets
        for layer in (first, *self.attentions, second):
            sample = layer(sample)
        return sample


def _resnets(in_channels: int, out_channels: int, *, layers: int, groups: int) -> nn.ModuleList:
    inputs = [in_channels] + [out_channels] * (layers - 1)
    return nn.ModuleList(
        ResnetBlock2D(channels, out_channels, time_channels=None, groups=groups, eps=_GROUP_NORM_EPS)
        for channels in inputs
    )
