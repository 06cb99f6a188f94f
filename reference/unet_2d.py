"""The unconditional UNet of DDPM (arXiv:2006.11239), ADM (arXiv:2105.05233) and NCSN++ (arXiv:2011.13456)."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .autoencoder import AutoencoderKL
from .configuration import NetworkConfig
from .layers import GaussianFourierProjection, TimestepEmbedding, group_count, timestep_frequencies
from .network import Network
from .unet_2d_blocks import DOWN_BLOCKS, PICTURE_CHANNELS, UP_BLOCKS, BlockShape, MidBlock

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "mish": functional.mish,
    "gelu": functional.gelu,
    "relu": functional.relu,
}

#: what a key may be
_CHOICES: dict[str, Collection[object]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "class_embed_type": (None, "timestep", "identity"),
    "mid_block_type": (None, "UNetMidBlock2D"),
    "act_fn": tuple(_ACTIVATIONS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
}

_TIME_WIDENING = 4  # the timestep's embedding is so many times as wide as the first level


@dataclass(frozen=True, kw_only=True)
class UNet2DConfig(NetworkConfig):
    """The keys of an unconditional UNet's `config.json` that change its output; defaults are diffusers'.

    Attributes:
        time_embedding_dim: None for four times the first of `block_out_channels`.
        downsample_type: of the levels with attention; the others have it in their name.
        upsample_type: likewise.
        attention_head_dim: channels of one attention head; None for a single head.
        norm_num_groups: None for NCSN++, whose levels do not ask.
        attn_norm_num_groups: of the middle block's attention; None for `norm_num_groups`, and with
            `resnet_time_scale_shift` "scale_shift" for no norm.
        num_class_embeds: how many classes there are, when `class_embed_type` is None.
        num_train_timesteps: how many timesteps there are, when `time_embedding_type` is "learned".
    """

    network: ClassVar[str] = "UNet2DModel"
    without_effect: ClassVar[frozenset[str]] = frozenset({"dropout"})

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", *["AttnDownBlock2D"] * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (*["AttnUpBlock2D"] * 3, "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise self._error(f"{key} must be one of {list(choices)}, got {getattr(self, key)!r}")
        for key, kinds in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            if unknown := [name for name in getattr(self, key) if _kind(name) not in kinds]:
                raise self._error(f"{key} has {unknown[0]!r}, only {list(kinds)} are implemented")
            if len(getattr(self, key)) != len(self.block_out_channels):
                raise self._error(
                    f"{key} must have one entry for each of block_out_channels, {len(self.block_out_channels)}, "
                    f"got {len(getattr(self, key))}"
                )
        if self.layers_per_block < 1:
            raise self._error(f"layers_per_block must be at least 1, got {self.layers_per_block}")
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise self._error("time_embedding_type = 'learned' needs num_train_timesteps")
        if self.time_embedding_type == "positional" and self.block_out_channels[0] % 2:
            raise self._error(f"the first of block_out_channels must be even, got {self.block_out_channels[0]}")
        self._check_families()
        self._check_channels()

    @property
    def is_k(self) -> bool:
        """Whether the levels are those of k-diffusion."""
        return any(_kind(name).startswith("K") for name in (*self.down_block_types, *self.up_block_types))

    def _check_families(self) -> None:
        """Levels pass each other the picture or leave out skips: not every kind goes with every other."""
        if self.is_k and not all(_kind(name)[0] == "K" for name in (*self.down_block_types, *self.up_block_types)):
            raise self._error("KDownBlock2D and KUpBlock2D go with no other kind of level")
        # the last level on the way down does not halve, and that on the way up does not double
        skips_down = ["Skip" in name for name in self.down_block_types[:-1]]
        if skips_down != sorted(skips_down, reverse=True):
            raise self._error(f"down_block_types must start with those that have Skip, got {self.down_block_types}")
        skips_up = ["Skip" in name for name in self.up_block_types]
        if any(skips_up[:-1]) and skips_up != sorted(skips_up):
            raise self._error(f"up_block_types must end with those that have Skip, got {self.up_block_types}")
        for key, makes in (("in_channels", any(skips_down)), ("out_channels", any(skips_up[:-1]))):
            if makes and getattr(self, key) != PICTURE_CHANNELS:
                raise self._error(
                    f"{key} must be {PICTURE_CHANNELS} with a level that has Skip, got {getattr(self, key)}"
                )

    def _check_channels(self) -> None:
        """What the levels' own norms would say less clearly."""
        groups, head = self.norm_num_groups, self.attention_head_dim
        levels = zip(self.block_out_channels, self.down_block_types, reversed(self.up_block_types), strict=True)
        for level, (channels, *kinds) in enumerate(levels):
            asks = not all("Skip" in kind or _kind(kind).startswith("K") for kind in kinds)
            asks_or_ends = asks or level in (0, len(self.block_out_channels) - 1)
            if (asks and groups is None) or (asks_or_ends and groups is not None and channels % groups):
                raise self._error(f"norm_num_groups must divide block_out_channels {channels}, got {groups}")
            middle = self.mid_block_type and self.add_attention and level == len(self.block_out_channels) - 1
            attends = middle or any("Attn" in kind for kind in kinds)
            if attends and head is not None and not 1 <= head <= channels:
                raise self._error(f"attention_head_dim must be from 1 to block_out_channels {channels}, got {head}")

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self.network}: {message}")


@dataclass(frozen=True)
class UNet2DOutput:
    """What an unconditional UNet gives.

    Attributes:
        sample: (batch, out_channels, height, width), the noise or whatever the scheduler's `prediction_type` names.
    """

    sample: Tensor


class UNet2DModel(Network):
    """Predicts the noise in images, given how much there is, and perhaps a class.

    It equals diffusers' `UNet2DModel`, except that a fractional timestep that is a number, not a tensor, keeps its
    fraction.
    """

    config_class = UNet2DConfig
    # attention as diffusers named it before 0.15; files on the hub still have it
    renames = AutoencoderKL.renames

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__(config)
        self.config = config
        channels, groups = config.block_out_channels, config.norm_num_groups
        shape = BlockShape(
            layers=config.layers_per_block,
            time_channels=config.time_embedding_dim or _TIME_WIDENING * channels[0],
            groups=groups,
            eps=config.norm_eps,
            activation=_ACTIVATIONS[config.act_fn],
            scale_shift=config.resnet_time_scale_shift == "scale_shift",
            head_channels=config.attention_head_dim,
            downsample_padding=config.downsample_padding,
            resnet_downsamples=config.downsample_type == "resnet",
            resnet_upsamples=config.upsample_type == "resnet",
        )
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_proj = _time_projection(config)
        features = 2 * channels[0] if config.time_embedding_type == "fourier" else channels[0]
        self.time_embedding = TimestepEmbedding(features, shape.time_channels)
        self.class_embedding: nn.Module | None = None
        if config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(features, shape.time_channels)
        elif config.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, shape.time_channels)
        self.down_blocks = _down_blocks(config, shape)
        self.mid_block: nn.Module | None = None
        if config.mid_block_type is not None:
            asked = config.attn_norm_num_groups
            usual = None if shape.scale_shift else groups or group_count(channels[-1])
            self.mid_block = MidBlock(
                channels[-1],
                shape=shape,
                attends=config.add_attention,
                attention_groups=usual if asked is None else asked,
                scale_factor=config.mid_block_scale_factor,
            )
        self.up_blocks = _up_blocks(config, shape)
        self.conv_norm_out = nn.GroupNorm(groups or group_count(channels[0]), channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None) -> UNet2DOutput:
        """Predicts as `predict` does; the timestep may also be a number."""
        if not isinstance(timestep, Tensor):
            timestep = torch.tensor(timestep, dtype=torch.float32, device=sample.device)
        return UNet2DOutput(self.predict(sample, timestep, class_labels))

    def predict(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The model's output, from tensors to a tensor: what an export holds.

        Args:
            sample: (batch, in_channels, height, width); height and width are multiples of 2 ** (levels - 1).
            timestep: (batch,), (1,) or (), float or integer; may be fractional, unless `time_embedding_type` is
                "learned". With "fourier" it is the noise's standard deviation, above 0.
            class_labels: for `num_class_embeds`, (batch,) integers below it; for `class_embed_type` "timestep",
                (batch,) numbers, as a timestep is; for "identity", (batch, time_embedding_dim), an embedding.

        Returns:
            (batch, out_channels, height, width), in the dtype of `sample`.

        Raises:
            ValueError: the size is no such multiple, or class labels are missing or not expected.
        """
        factor = 2 ** (len(self.config.block_out_channels) - 1)
        height, width = sample.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"height and width must be multiples of {factor}, got {height} and {width}")
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        time_embedding = self._embed(timestep, class_labels, sample.dtype)  # (batch or 1, time_channels)
        activated = _ACTIVATIONS[self.config.act_fn](time_embedding)
        if not self.config.is_k:
            time_embedding = activated  # k-diffusion's levels take it without

        picture: Tensor | None = sample
        sample = self.conv_in(sample)
        skips = [sample]
        for down_block in self.down_blocks:
            sample, own, picture = down_block(sample, time_embedding, picture)
            skips += own
        if self.mid_block is not None:
            sample = self.mid_block(sample, activated)
        picture = None
        for up_block in self.up_blocks:
            split = len(skips) - self.config.layers_per_block - (0 if self.config.is_k else 1)
            skips, own = skips[:split], skips[split:]
            sample, picture = up_block(sample, own, time_embedding, picture)
        sample = self.conv_out(functional.silu(self.conv_norm_out(sample)))
        sample = sample if picture is None else sample + picture
        if self.config.time_embedding_type == "fourier":
            sample = sample / timestep.to(sample.dtype).reshape(-1, 1, 1, 1)
        return sample

    def _embed(self, timestep: Tensor, class_labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        embedding = self.time_embedding(self._features(timestep).to(dtype))
        if (class_labels is None) != (self.class_embedding is None):
            fault = "needs" if class_labels is None else "has no classes and takes no"
            raise ValueError(f"this {self.config.network} {fault} class_labels")
        if class_labels is None or self.class_embedding is None:
            return embedding
        if self.config.class_embed_type == "timestep":
            class_labels = self._features(class_labels).to(dtype)
        return embedding + self.class_embedding(class_labels)

    def _features(self, timestep: Tensor) -> Tensor:
        """What the embedding is made from, (batch or 1, features)."""
        timestep = timestep.reshape(-1)
        if self.config.time_embedding_type == "positional":
            return timestep_frequencies(
                timestep.float(),
                self.config.block_out_channels[0],
                flip_sin_to_cos=self.config.flip_sin_to_cos,
                freq_shift=self.config.freq_shift,
            )
        assert self.time_proj is not None
        learned = self.config.time_embedding_type == "learned"
        return self.time_proj(timestep.long() if learned else timestep.float())


def _time_projection(config: UNet2DConfig) -> nn.Module | None:
    """What is trained of the step from a timestep to its features: nothing if they are sines and cosines of it."""
    channels = config.block_out_channels[0]
    if config.time_embedding_type == "fourier":
        return GaussianFourierProjection(channels)
    if config.num_train_timesteps is not None and config.time_embedding_type == "learned":
        return nn.Embedding(config.num_train_timesteps, channels)
    return None


def _down_blocks(config: UNet2DConfig, shape: BlockShape) -> nn.ModuleList:
    channels = config.block_out_channels
    last = len(channels) - 1
    return nn.ModuleList(
        DOWN_BLOCKS[_kind(name)](
            channels[max(level - 1, 0)],
            channels[level],
            shape=shape,
            downsamples=level < last,
        )
        for level, name in enumerate(config.down_block_types)
    )


def _up_blocks(config: UNet2DConfig, shape: BlockShape) -> nn.ModuleList:
    channels = config.block_out_channels
    last = len(channels) - 1
    return nn.ModuleList(
        UP_BLOCKS[_kind(name)](
            channels[min(level + 1, last)],
            channels[level],
            channels[max(level - 1, 0)],
            shape=shape,
            upsamples=level > 0,
        )
        for level, name in zip(reversed(range(last + 1)), config.up_block_types, strict=True)
    )


def _kind(name: str) -> str:
    """The kind of a level; the oldest files write UNetResDownBlock2D."""
    return name.removeprefix("UNetRes")
