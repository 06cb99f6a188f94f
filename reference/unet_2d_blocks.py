"""The resolution levels of an unconditional UNet: those of DDPM and ADM, of NCSN++, and of k-diffusion."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import SpatialAttention
from .layers import AdaResnetBlock2D, Downsample2D, ResnetBlock2D, Upsample2D, group_count, smooth_double, smooth_halve

# what NCSN++ and k-diffusion fix, whatever the configuration says
_NCSNPP_SCALE = math.sqrt(2)  # sums of two branches are divided by it, which keeps their variance
_NCSNPP_ATTENTION: dict[str, Any] = {"groups": 32, "scale_factor": _NCSNPP_SCALE}
_K_GROUP_CHANNELS = 32
PICTURE_CHANNELS = 3  # of what NCSN++'s levels pass along


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """What the levels of a UNet have in common.

    Attributes:
        layers: resnet blocks of a level on the way down; there is one more on the way up.
        time_channels: of the timestep's embedding.
        groups: of the group norms; None for `group_count`.
        scale_shift: whether the timestep scales what it shifts.
        head_channels: of one attention head; None for a single head.
        downsample_padding: 0 or 1; of a convolution that halves.
        resnet_downsamples: whether a level with attention halves within a resnet block, not by a convolution.
        resnet_upsamples: the same for doubling.
    """

    layers: int
    time_channels: int
    groups: int | None
    eps: float
    activation: Callable[[Tensor], Tensor]
    scale_shift: bool
    head_channels: int | None
    downsample_padding: int
    resnet_downsamples: bool
    resnet_upsamples: bool

    def resnet(self, in_channels: int, out_channels: int, *, groups: int | None = None, **options: Any) -> nn.Module:
        """A resnet block; the options are those of `ResnetBlock2D`."""
        return ResnetBlock2D(
            in_channels,
            out_channels,
            time_channels=self.time_channels,
            groups=groups or self.groups or group_count(in_channels),
            eps=self.eps,
            activation=self.activation,
            scale_shift=self.scale_shift,
            **options,
        )

    def attention(self, channels: int, *, groups: int | None, scale_factor: float = 1.0) -> nn.Module:
        """Attention of an image to itself."""
        eps, head_channels = self.eps, self.head_channels
        return SpatialAttention(
            channels, groups=groups, eps=eps, head_channels=head_channels, scale_factor=scale_factor
        )


class MidBlock(nn.Module):
    """Two resnet blocks at the smallest size, with attention between them where the configuration asks for it."""

    def __init__(
        self, channels: int, *, shape: BlockShape, attends: bool, attention_groups: int | None, scale_factor: float
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList()
        if attends:
            self.attentions.append(shape.attention(channels, groups=attention_groups, scale_factor=scale_factor))
        self.resnets = nn.ModuleList(shape.resnet(channels, channels, scale_factor=scale_factor) for _ in range(2))

    def forward(self, sample: Tensor, time_embedding: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape; (batch or 1, time_channels), after activation."""
        sample = self.resnets[0](sample, time_embedding)
        for attention in self.attentions:
            sample = attention(sample)
        return self.resnets[1](sample, time_embedding)


class DownLevel(nn.Module):
    """Resnet blocks, each followed by attention where the level has it, and then whatever halves."""

    def __init__(self, resnets: Iterable[nn.Module], attentions: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList()

    def forward(self, sample: Tensor, time_embedding: Tensor, picture: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Gives the input of the next level, the skips, and the picture as the next level takes it.

        Args:
            sample: (batch, in_channels, height, width).
            time_embedding: (batch or 1, time_channels), after its activation; k-diffusion's levels take it without.
            picture: (batch, 3, height, width), what the whole network was given; only NCSN++'s levels look at it.
        """
        skips = []
        for layer, resnet in enumerate(self.resnets):
            sample = resnet(sample, time_embedding)
            if self.attentions:
                sample = self.attentions[layer](sample)
            skips.append(sample)
        for downsampler in self.downsamplers:
            sample = _resample(downsampler, sample, time_embedding)
            skips.append(sample)
        return sample, skips, picture


class DownBlock(DownLevel):
    """A level of DDPM (Ho et al. 2020, arXiv:2006.11239) or of ADM (Dhariwal and Nichol 2021, arXiv:2105.05233)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        shape: BlockShape,
        downsamples: bool,
        attends: bool = False,
        resnet_downsamples: bool | None = None,
    ) -> None:
        super().__init__(
            [shape.resnet(channels, out_channels) for channels in _inputs(in_channels, out_channels, shape.layers)],
            [shape.attention(out_channels, groups=shape.groups) for _ in range(shape.layers) if attends],
        )
        if downsamples and (shape.resnet_downsamples if resnet_downsamples is None else resnet_downsamples):
            halve = partial(functional.avg_pool2d, kernel_size=2)
            self.downsamplers.append(shape.resnet(out_channels, out_channels, resample=halve))
        elif downsamples:
            self.downsamplers.append(Downsample2D(out_channels, padding=shape.downsample_padding))


class UpBlock(nn.Module):
    """A level of DDPM or of ADM on the way up: each resnet block takes in a skip."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        next_channels: int,
        *,
        shape: BlockShape,
        upsamples: bool,
        attends: bool = False,
        resnet_upsamples: bool | None = None,
    ) -> None:
        super().__init__()
        inputs = _inputs_with_skips(in_channels, out_channels, next_channels, shape.layers)
        self.resnets = nn.ModuleList(shape.resnet(sum(channels), out_channels) for channels in inputs)
        self.attentions = nn.ModuleList(
            shape.attention(out_channels, groups=shape.groups) for _ in self.resnets if attends
        )
        self.upsamplers = nn.ModuleList()
        if upsamples and (shape.resnet_upsamples if resnet_upsamples is None else resnet_upsamples):
            double = partial(functional.interpolate, scale_factor=2.0, mode="nearest")
            self.upsamplers.append(shape.resnet(out_channels, out_channels, resample=double))
        elif upsamples:
            self.upsamplers.append(Upsample2D(out_channels))

    def forward(
        self, sample: Tensor, skips: list[Tensor], time_embedding: Tensor, picture: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gives the input of the next level, and the picture so far.

        Args:
            sample: from the level below, at the size of the skips.
            skips: in the order of the way down; the last is taken in first.
            time_embedding: as on the way down.
            picture: what is to be added to the network's output; only NCSN++'s levels make one.
        """
        for layer, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            sample = resnet(torch.cat([sample, skip], dim=1), time_embedding)
            if self.attentions:
                sample = self.attentions[layer](sample)
        for upsampler in self.upsamplers:
            sample = _resample(upsampler, sample, time_embedding)
        return sample, picture


class SkipDownBlock(DownLevel):
    """A level of NCSN++ (Song et al. 2021, arXiv:2011.13456): takes in the picture, smoothly halved, at its end."""

    def __init__(
        self, in_channels: int, out_channels: int, *, shape: BlockShape, downsamples: bool, attends: bool = False
    ) -> None:
        resnet = partial(_ncsnpp_resnet, out_channels=out_channels, shape=shape)
        super().__init__(
            [resnet(channels) for channels in _inputs(in_channels, out_channels, shape.layers)],
            [shape.attention(out_channels, **_NCSNPP_ATTENTION) for _ in range(shape.layers) if attends],
        )
        self.resnet_down = resnet(out_channels, resample=smooth_halve, projects=True) if downsamples else None
        self.skip_conv = nn.Conv2d(PICTURE_CHANNELS, out_channels, 1) if downsamples else None

    def forward(self, sample: Tensor, time_embedding: Tensor, picture: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Gives what every level does; the picture must come at the size of `sample`."""
        sample, skips, picture = super().forward(sample, time_embedding, picture)
        if self.resnet_down is not None and self.skip_conv is not None:
            picture = smooth_halve(picture)
            sample = self.skip_conv(picture) + self.resnet_down(sample, time_embedding)
            skips.append(sample)
        return sample, skips, picture


class SkipUpBlock(nn.Module):
    """A level of NCSN++ on the way up: adds its part of the picture to that of the level below, smoothly doubled."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        next_channels: int,
        *,
        shape: BlockShape,
        upsamples: bool,
        attends: bool = False,
    ) -> None:
        super().__init__()
        resnet = partial(_ncsnpp_resnet, out_channels=out_channels, shape=shape)
        self.resnets = nn.ModuleList(
            # diffusers misplaces a parenthesis where the level attends, and its checkpoints rely on it
            resnet(channels + skip, groups=min(channels + skip // 4, 32) if attends else None)
            for channels, skip in _inputs_with_skips(in_channels, out_channels, next_channels, shape.layers)
        )
        self.attentions = nn.ModuleList([shape.attention(out_channels, **_NCSNPP_ATTENTION)] if attends else [])
        self.upsamples = upsamples
        if upsamples:
            self.skip_norm = nn.GroupNorm(group_count(out_channels), out_channels, eps=shape.eps)
            self.skip_conv = nn.Conv2d(out_channels, PICTURE_CHANNELS, 3, padding=1)
            self.resnet_up = resnet(out_channels, resample=smooth_double, projects=True)

    def forward(
        self, sample: Tensor, skips: list[Tensor], time_embedding: Tensor, picture: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gives what every level does; it attends once, after all of its resnet blocks."""
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            sample = resnet(torch.cat([sample, skip], dim=1), time_embedding)
        for attention in self.attentions:
            sample = attention(sample)
        picture = None if picture is None else smooth_double(picture)
        if self.upsamples:
            part = self.skip_conv(functional.silu(self.skip_norm(sample)))
            picture = part if picture is None else picture + part
            sample = self.resnet_up(sample, time_embedding)
        return sample, picture


class KDownBlock(DownLevel):
    """A level of k-diffusion's upscaler (https://github.com/crowsonkb/k-diffusion); what it has halved is no skip."""

    def __init__(self, in_channels: int, out_channels: int, *, shape: BlockShape, downsamples: bool) -> None:
        inputs = _inputs(in_channels, out_channels, shape.layers)
        super().__init__(_k_resnet(channels, out_channels, out_channels, shape) for channels in inputs)
        self.downsamples = downsamples

    def forward(self, sample: Tensor, time_embedding: Tensor, picture: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Gives what every level does."""
        sample, skips, picture = super().forward(sample, time_embedding, picture)
        return smooth_halve(sample, padding="reflect") if self.downsamples else sample, skips, picture


class KUpBlock(nn.Module):
    """A level of k-diffusion's upscaler on the way up: takes in only the last of its skips."""

    def __init__(
        self, _in_channels: int, out_channels: int, next_channels: int, *, shape: BlockShape, upsamples: bool
    ) -> None:
        super().__init__()
        inputs = _inputs(2 * out_channels, out_channels, shape.layers)
        outputs = [*inputs[1:], next_channels]
        self.resnets = nn.ModuleList(
            _k_resnet(channels, output, out_channels, shape) for channels, output in zip(inputs, outputs, strict=True)
        )
        self.upsamples = upsamples

    def forward(
        self, sample: Tensor, skips: list[Tensor], time_embedding: Tensor, picture: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gives what every level does."""
        sample = torch.cat([sample, skips[-1]], dim=1)
        for resnet in self.resnets:
            sample = resnet(sample, time_embedding)
        return smooth_double(sample, padding="reflect") if self.upsamples else sample, picture


#: the kinds of level, as a `config.json` names them
DOWN_BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "DownBlock2D": partial(DownBlock, resnet_downsamples=False),
    "AttnDownBlock2D": partial(DownBlock, attends=True),
    "ResnetDownsampleBlock2D": partial(DownBlock, resnet_downsamples=True),
    "SkipDownBlock2D": SkipDownBlock,
    "AttnSkipDownBlock2D": partial(SkipDownBlock, attends=True),
    "KDownBlock2D": KDownBlock,
}
UP_BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "UpBlock2D": partial(UpBlock, resnet_upsamples=False),
    "AttnUpBlock2D": partial(UpBlock, attends=True),
    "ResnetUpsampleBlock2D": partial(UpBlock, resnet_upsamples=True),
    "SkipUpBlock2D": SkipUpBlock,
    "AttnSkipUpBlock2D": partial(SkipUpBlock, attends=True),
    "KUpBlock2D": KUpBlock,
}


def _ncsnpp_resnet(
    in_channels: int, *, out_channels: int, shape: BlockShape, groups: int | None = None, **options: Any
) -> nn.Module:
    groups = groups or group_count(in_channels)
    options |= {"groups_out": group_count(out_channels), "scale_factor": _NCSNPP_SCALE}
    return shape.resnet(in_channels, out_channels, groups=groups, **options)


def _k_resnet(in_channels: int, out_channels: int, level_channels: int, shape: BlockShape) -> nn.Module:
    groups = in_channels // _K_GROUP_CHANNELS, level_channels // _K_GROUP_CHANNELS
    return AdaResnetBlock2D(
        in_channels,
        out_channels,
        time_channels=shape.time_channels,
        groups=groups,
        eps=shape.eps,
        activation=shape.activation,
    )


def _resample(sampler: nn.Module, sample: Tensor, time_embedding: Tensor) -> Tensor:
    return sampler(sample, time_embedding) if isinstance(sampler, ResnetBlock2D) else sampler(sample)


def _inputs(in_channels: int, out_channels: int, layers: int) -> list[int]:
    return [in_channels] + [out_channels] * (layers - 1)


def _inputs_with_skips(in_channels: int, out_channels: int, next_channels: int, layers: int) -> list[tuple[int, int]]:
    skips = [out_channels] * layers + [next_channels]
    return list(zip(_inputs(in_channels, out_channels, layers + 1), skips, strict=True))
