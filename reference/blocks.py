"""The resolution levels of a UNet: on the way down, at the bottom, and on the way up."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import Transformer2DModel
from .layers import Downsample2D, ResnetBlock2D, Upsample2D


@dataclass(frozen=True, kw_only=True)
class ResnetShape:
    """What the resnet blocks of a UNet have in common."""

    time_channels: int
    groups: int
    eps: float

    def build(self, in_channels: int, out_channels: int) -> ResnetBlock2D:
        """A resnet block between those channels."""
        return ResnetBlock2D(
            in_channels, out_channels, time_channels=self.time_channels, groups=self.groups, eps=self.eps
        )


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """What the transformers of one level have in common."""

    heads: int
    layers: int
    context_channels: int
    groups: int
    use_linear_projection: bool
    upcast: bool

    def build(self, channels: int) -> Transformer2DModel:
        """A transformer of that many channels."""
        return Transformer2DModel(
            channels,
            heads=self.heads,
            layers=self.layers,
            context_channels=self.context_channels,
            groups=self.groups,
            use_linear_projection=self.use_linear_projection,
            upcast=self.upcast,
        )


class DownBlock(nn.Module):
    """Resnet blocks, each followed by a transformer where the level has them, then a halving of the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        resnet: ResnetShape,
        transformer: TransformerShape | None,
        downsample_padding: int | None,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(resnet.build(channels, out_channels) for channels in inputs)
        self.attentions = nn.ModuleList() if transformer is None else _transformers(transformer, out_channels, layers)
        self.downsamplers = nn.ModuleList()
        if downsample_padding is not None:
            self.downsamplers.append(Downsample2D(out_channels, padding=downsample_padding))

    def forward(self, sample: Tensor, time_embedding: Tensor, context: Tensor) -> list[Tensor]:
        """Gives the output of every step, which are the skips; the last is the input of the next level.

        Args:
            sample: (batch, in_channels, height, width).
            time_embedding: (batch or 1, time_channels), after its activation.
            context: (batch, text_tokens, context_channels).
        """
        skips = []
        for layer, resnet in enumerate(self.resnets):
            sample = resnet(sample, time_embedding)
            if self.attentions:
                sample = self.attentions[layer](sample, context)
            skips.append(sample)
        return [*skips, *(downsampler(sample) for downsampler in self.downsamplers)]


class MidBlock(nn.Module):
    """A resnet block, a transformer, and a resnet block, at the smallest size."""

    def __init__(self, channels: int, *, resnet: ResnetShape, transformer: TransformerShape) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnet.build(channels, channels) for _ in range(2))
        self.attentions = _transformers(transformer, channels, 1)

    def forward(self, sample: Tensor, time_embedding: Tensor, context: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape; the other arguments are those of `DownBlock`."""
        sample = self.resnets[0](sample, time_embedding)
        sample = self.attentions[0](sample, context)
        return self.resnets[1](sample, time_embedding)


class UpBlock(nn.Module):
    """Resnet blocks that each take in a skip, with transformers where the level has them, then an enlargement."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip_channels: list[int],
        resnet: ResnetShape,
        transformer: TransformerShape | None,
        upsamples: bool,
    ) -> None:
        super().__init__()
        layers = len(skip_channels)
        inputs = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList(
            resnet.build(channels + skip, out_channels)
            for channels, skip in zip(inputs, reversed(skip_channels), strict=True)
        )
        self.attentions = nn.ModuleList() if transformer is None else _transformers(transformer, out_channels, layers)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if upsamples else [])

    def forward(
        self, sample: Tensor, skips: list[Tensor], time_embedding: Tensor, context: Tensor, *, like: Tensor | None
    ) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, out_channels, ...), at the size of `like` if it enlarges.

        Args:
            sample: from the level below, at the size of the skips.
            skips: as many as there are resnet blocks, in the order of the way down; the last is taken in first.
            time_embedding: (batch or 1, time_channels), after its activation.
            context: (batch, text_tokens, context_channels).
            like: the skip that the next level takes in first; None at the topmost level.
        """
        for layer, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            sample = resnet(torch.cat([sample, skip], dim=1), time_embedding)
            if self.attentions:
                sample = self.attentions[layer](sample, context)
        for upsampler in self.upsamplers:
            sample = upsampler(sample, like)
        return sample


def _transformers(shape: TransformerShape, channels: int, number: int) -> nn.ModuleList:
    return nn.ModuleList(shape.build(channels) for _ in range(number))
