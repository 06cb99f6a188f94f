"""The resolution levels of an unconditional UNet: those of DDPM and ADM, of NCSN++, and of k-diffusion."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import SpatialAttention
from .layers import Downsample2D, Upsample2D, smooth_double, smooth_halve

Activation = Callable[[Tensor], Tensor]
Resample = Callable[[Tensor], Tensor]

#: NCSN++ divides each sum of two branches by this, which keeps their variance
_SUM_SCALE = math.sqrt(2)
_MOST_GROUPS = 32  # of NCSN++'s norms, whatever the configuration says
_GROUP_CHANNELS = 32  # of k-diffusion's norms, likewise
_PYRAMID_CHANNELS = 3  # of the picture that goes along with NCSN++'s levels; diffusers knows no other number


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """What the levels of a UNet have in common.

    Attributes:
        time_channels: of the timestep's embedding.
        groups: of the group norms; None for one for each four channels, at most 32.
        scale_shift: whether the timestep scales what it shifts.
        head_channels: of one attention head; None for a single head.
        downsample_padding: 0 or 1; of a convolution that halves.
        resnet_downsamples: whether the levels with attention halve within a resnet block, not by a convolution.
        resnet_upsamples: the same for doubling.
    """

    time_channels: int
    groups: int | None
    eps: float
    activation: Activation
    scale_shift: bool
    head_channels: int | None
    downsample_padding: int
    resnet_downsamples: bool
    resnet_upsamples: bool


def group_count(channels: int) -> int:
    """The groups of a norm that the configuration leaves open."""
    return min(channels // 4, _MOST_GROUPS)


class ResidualBlock(nn.Module):
    """Two convolutions around which the input is added again, with a resampling before the first.

    The options are those of Dhariwal and Nichol 2021 (arXiv:2105.05233) and Song et al. 2021 (arXiv:2011.13456).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        shape: BlockShape,
        groups: tuple[int, int] | None = None,
        scale_factor: float = 1.0,
        resample: Resample | None = None,
        projects: bool | None = None,
    ) -> None:
        super().__init__()
        groups_in, groups_out = groups or (shape.groups or group_count(in_channels),) * 2
        self.norm1 = nn.GroupNorm(groups_in, in_channels, eps=shape.eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(shape.time_channels, (1 + shape.scale_shift) * out_channels)
        self.norm2 = nn.GroupNorm(groups_out, out_channels, eps=shape.eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        projects = in_channels != out_channels if projects is None else projects
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if projects else None
        self.activation = shape.activation
        self.scale_shift = shape.scale_shift
        self.scale_factor = scale_factor
        self.resample = resample

    def forward(self, sample: Tensor, time_embedding: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, out_channels, ...); (batch or 1, time_channels)."""
        hidden = self.activation(self.norm1(sample))
        if self.resample is not None:
            sample, hidden = self.resample(sample), self.resample(hidden)
        hidden = self.conv1(hidden)
        time = self.time_emb_proj(self.activation(time_embedding))[..., None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + time)
        hidden = self.conv2(self.activation(hidden))
        shortcut = sample if self.conv_shortcut is None else self.conv_shortcut(sample)
        return shortcut + hidden if self.scale_factor == 1 else (shortcut + hidden) / self.scale_factor


class DownBlock(nn.Module):
    """Resnet blocks, each followed by attention where the level has it, then a halving.

    Every kind of level on the way down is called as this one and gives what this one gives.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        shape: BlockShape,
        downsamples: bool,
        attends: bool = False,
        resnet_downsamples: bool | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(channels, out_channels, shape=shape) for channels in _inputs(in_channels, out_channels, layers)
        )
        self.attentions = nn.ModuleList(_attention(out_channels, shape) for _ in range(layers if attends else 0))
        self.downsamplers = nn.ModuleList()
        if downsamples and (shape.resnet_downsamples if resnet_downsamples is None else resnet_downsamples):
            self.downsamplers.append(ResidualBlock(out_channels, out_channels, shape=shape, resample=_halve))
        elif downsamples:
            self.downsamplers.append(Downsample2D(out_channels, padding=shape.downsample_padding))

    def forward(self, sample: Tensor, time_embedding: Tensor, pyramid: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Gives the input of the next level, the skips, and the picture as the next level takes it.

        Args:
            sample: (batch, in_channels, height, width).
            time_embedding: (batch or 1, time_channels), before its activation.
            pyramid: the picture at the size of `sample`; only NCSN++'s levels look at it.
        """
        skips = []
        for layer, resnet in enumerate(self.resnets):
            sample = resnet(sample, time_embedding)
            if self.attentions:
                sample = self.attentions[layer](sample)
            skips.append(sample)
        for downsampler in self.downsamplers:
            sample = _resampled(downsampler, sample, time_embedding)
            skips.append(sample)
        return sample, skips, pyramid


class UpBlock(nn.Module):
    """Resnet blocks that each take in a skip, with attention where the level has it, then a doubling.

    Every kind of level on the way up is called as this one and gives what this one gives; `resnets` has one entry for
    each skip that it is to be given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip_channels: list[int],
        shape: BlockShape,
        upsamples: bool,
        attends: bool = False,
        resnet_upsamples: bool | None = None,
    ) -> None:
        super().__init__()
        layers = len(skip_channels)
        inputs = zip(_inputs(in_channels, out_channels, layers), reversed(skip_channels), strict=True)
        self.resnets = nn.ModuleList(
            ResidualBlock(channels + skip, out_channels, shape=shape) for channels, skip in inputs
        )
        self.attentions = nn.ModuleList(_attention(out_channels, shape) for _ in range(layers if attends else 0))
        self.upsamplers = nn.ModuleList()
        if upsamples and (shape.resnet_upsamples if resnet_upsamples is None else resnet_upsamples):
            self.upsamplers.append(ResidualBlock(out_channels, out_channels, shape=shape, resample=_double))
        elif upsamples:
            self.upsamplers.append(Upsample2D(out_channels))

    def forward(
        self, sample: Tensor, skips: list[Tensor], time_embedding: Tensor, pyramid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gives the input of the next level, and the picture so far.

        Args:
            sample: from the level below, at the size of the skips.
            skips: in the order of the way down; the last is taken in first.
            time_embedding: (batch or 1, time_channels), before its activation.
            pyramid: the picture so far, if there is one; only NCSN++'s levels add to it.
        """
        for layer, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            sample = resnet(torch.cat([sample, skip], dim=1), time_embedding)
            if self.attentions:
                sample = self.attentions[layer](sample)
        for upsampler in self.upsamplers:
            sample = _resampled(upsampler, sample, time_embedding)
        return sample, pyramid


class MidBlock(nn.Module):
    """Two resnet blocks at the smallest size, with attention between them where the configuration asks for it."""

    def __init__(
        self, channels: int, *, shape: BlockShape, attends: bool, attention_groups: int | None, scale_factor: float
    ) -> None:
        super().__init__()
        if attention_groups is None and not shape.scale_shift:
            attention_groups = shape.groups or group_count(channels)
        attention = partial(_attention, channels, shape, scale_factor=scale_factor)
        self.attentions = nn.ModuleList([attention(groups=attention_groups)] if attends else [])
        self.resnets = nn.ModuleList(
            ResidualBlock(channels, channels, shape=shape, scale_factor=scale_factor) for _ in range(2)
        )

    def forward(self, sample: Tensor, time_embedding: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape; (batch or 1, time_channels)."""
        sample = self.resnets[0](sample, time_embedding)
        for attention in self.attentions:
            sample = attention(sample)
        return self.resnets[1](sample, time_embedding)


class SkipDownBlock(nn.Module):
    """A level of NCSN++, of Song et al. 2021 (arXiv:2011.13456): the picture, halved along, is added at its end."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        shape: BlockShape,
        downsamples: bool,
        attends: bool = False,
    ) -> None:
        super().__init__()
        block = partial(_ncsnpp_block, out_channels=out_channels, shape=shape)
        self.resnets = nn.ModuleList(block(channels) for channels in _inputs(in_channels, out_channels, layers))
        self.attentions = nn.ModuleList(_ncsnpp_attention(out_channels, shape) for _ in range(layers if attends else 0))
        self.resnet_down = block(out_channels, resample=smooth_halve, projects=True) if downsamples else None
        self.skip_conv = nn.Conv2d(_PYRAMID_CHANNELS, out_channels, 1) if downsamples else None

    def forward(self, sample: Tensor, time_embedding: Tensor, pyramid: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Gives what `DownBlock` gives."""
        skips = []
        for layer, resnet in enumerate(self.resnets):
            sample = resnet(sample, time_embedding)
            if self.attentions:
                sample = self.attentions[layer](sample)
            skips.append(sample)
        if self.resnet_down is not None and self.skip_conv is not None:
            pyramid = smooth_halve(pyramid)
            sample = self.skip_conv(pyramid) + self.resnet_down(sample, time_embedding)
            skips.append(sample)
        return sample, skips, pyramid


class SkipUpBlock(nn.Module):
    """A level of NCSN++ on the way up: adds what it knows of the picture to what the levels below know, doubled."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip_channels: list[int],
        shape: BlockShape,
        upsamples: bool,
        attends: bool = False,
    ) -> None:
        super().__init__()
        block = partial(_ncsnpp_block, out_channels=out_channels, shape=shape)
        inputs = zip(_inputs(in_channels, out_channels, len(skip_channels)), reversed(skip_channels), strict=True)
        self.resnets = nn.ModuleList(
            # diffusers misplaces a parenthesis where the level attends; checkpoints rely on it
            block(channels + skip, groups_in=min(channels + skip // 4, _MOST_GROUPS) if attends else None)
            for channels, skip in inputs
        )
        self.attentions = nn.ModuleList([_ncsnpp_attention(out_channels, shape)] if attends else [])
        self.picture = upsamples
        if upsamples:
            self.skip_norm = nn.GroupNorm(group_count(out_channels), out_channels, eps=shape.eps)
            self.skip_conv = nn.Conv2d(out_channels, _PYRAMID_CHANNELS, 3, padding=1)
            self.resnet_up = block(out_channels, resample=smooth_double, projects=True)

    def forward(
        self, sample: Tensor, skips: list[Tensor], time_embedding: Tensor, pyramid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gives what `UpBlock` gives; the picture is at the size of the skips."""
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            sample = resnet(torch.cat([sample, skip], dim=1), time_embedding)
        for attention in self.attentions:
            sample = attention(sample)
        pyramid = None if pyramid is None else smooth_double(pyramid)
        if self.picture:
            picture = self.skip_conv(functional.silu(self.skip_norm(sample)))
            pyramid = picture if pyramid is None else pyramid + picture
            sample = self.resnet_up(sample, time_embedding)
        return sample, pyramid


class AdaGroupNorm(nn.Module):
    """A group norm whose scale and shift come from the timestep."""

    def __init__(self, channels: int, *, groups: int, shape: BlockShape) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(
                f"block_out_channels of KDownBlock2D and KUpBlock2D must be multiples of {_GROUP_CHANNELS}, and each one "
                f"a divisor of the next, got a norm of {channels} channels in {groups} groups"
            )
        self.linear = nn.Linear(shape.time_channels, 2 * channels)
        self.groups = groups
        self.eps = shape.eps

    def forward(self, sample: Tensor, time_embedding: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape; (batch or 1, time_channels)."""
        scale, shift = self.linear(time_embedding)[..., None, None].chunk(2, dim=1)
        return functional.group_norm(sample, self.groups, eps=self.eps) * (1 + scale) + shift


class KResidualBlock(nn.Module):
    """Two convolutions around which the input is added again; the timestep is in their norms."""

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: tuple[int, int], shape: BlockShape
    ) -> None:
        super().__init__()
        self.norm1 = AdaGroupNorm(in_channels, groups=groups[0], shape=shape)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaGroupNorm(out_channels, groups=groups[1], shape=shape)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        projects = in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False) if projects else None
        self.activation = shape.activation

    def forward(self, sample: Tensor, time_embedding: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, out_channels, ...); (batch or 1, time_channels)."""
        shortcut = sample if self.conv_shortcut is None else self.conv_shortcut(sample)
        sample = self.conv1(self.activation(self.norm1(sample, time_embedding)))
        return shortcut + self.conv2(self.activation(self.norm2(sample, time_embedding)))


class KDownBlock(nn.Module):
    """A level of k-diffusion's image upscaler; what it has halved is no skip."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, shape: BlockShape, downsamples: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            KResidualBlock(channels, out_channels, groups=_k_groups(channels, out_channels), shape=shape)
            for channels in _inputs(in_channels, out_channels, layers)
        )
        self.downsamples = downsamples

    def forward(self, sample: Tensor, time_embedding: Tensor, pyramid: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Gives what `DownBlock` gives."""
        skips = []
        for resnet in self.resnets:
            sample = resnet(sample, time_embedding)
            skips.append(sample)
        return smooth_halve(sample, padding="reflect") if self.downsamples else sample, skips, pyramid


class KUpBlock(nn.Module):
    """A level of k-diffusion's image upscaler on the way up: only the last of its skips is taken in."""

    def __init__(
        self,
        in_channels: int,  # noqa: ARG002  the level below ends with this one's channels
        out_channels: int,
        *,
        skip_channels: list[int],
        shape: BlockShape,
        upsamples: bool,
    ) -> None:
        super().__init__()
        layers = len(skip_channels) - 1
        outputs = [*[out_channels] * (layers - 1), skip_channels[0]]
        self.resnets = nn.ModuleList(
            KResidualBlock(channels, output, groups=_k_groups(channels, out_channels), shape=shape)
            for channels, output in zip(_inputs(2 * out_channels, out_channels, layers), outputs, strict=True)
        )
        self.upsamples = upsamples

    def forward(
        self, sample: Tensor, skips: list[Tensor], time_embedding: Tensor, pyramid: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gives what `UpBlock` gives."""
        sample = torch.cat([sample, skips[-1]], dim=1)
        for resnet in self.resnets:
            sample = resnet(sample, time_embedding)
        return smooth_double(sample, padding="reflect") if self.upsamples else sample, pyramid


#: the kinds of level, as `config.json` names them
DOWN_BLOCKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "DownBlock2D": partial(DownBlock, resnet_downsamples=False),
        "AttnDownBlock2D": partial(DownBlock, attends=True),
        "ResnetDownsampleBlock2D": partial(DownBlock, resnet_downsamples=True),
        "SkipDownBlock2D": SkipDownBlock,
        "AttnSkipDownBlock2D": partial(SkipDownBlock, attends=True),
        "KDownBlock2D": KDownBlock,
    }
)
UP_BLOCKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "UpBlock2D": partial(UpBlock, resnet_upsamples=False),
        "AttnUpBlock2D": partial(UpBlock, attends=True),
        "ResnetUpsampleBlock2D": partial(UpBlock, resnet_upsamples=True),
        "SkipUpBlock2D": SkipUpBlock,
        "AttnSkipUpBlock2D": partial(SkipUpBlock, attends=True),
        "KUpBlock2D": KUpBlock,
    }
)


def _inputs(in_channels: int, out_channels: int, layers: int) -> list[int]:
    return [in_channels] + [out_channels] * (layers - 1)
