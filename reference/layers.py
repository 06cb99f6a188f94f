"""Convolutional layers and the embedding of the timestep."""

# torch gives the call of a module no type
# mypy: no-warn-return-any

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

#: the wavelengths of the timestep embedding go from 2 pi up to this times 2 pi
_LONGEST_PERIOD = 10000

#: of the random frequencies before training, which leaves them alone
_FOURIER_SCALE = 16


class ResnetBlock2D(nn.Module):
    """Two convolutions around which the input is added again; the timestep shifts what lies between them.

    Args:
        in_channels: of the input.
        out_channels: of the result.
        time_channels: of the timestep's embedding; None in an autoencoder.
        groups: of the group norms.
        eps: of the group norms.
        groups_out: of the second group norm, where it has others.
        activation: after each group norm.
        scale_shift: whether the timestep also scales, after the second group norm (section 3 of Dhariwal and Nichol
            2021, arXiv:2105.05233).
        scale_factor: what the result, input included, is divided by.
        resample: halves or doubles both branches; None leaves the size.
        projects: whether the input goes through a 1x1 convolution; None for where the number of channels changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_channels: int | None,
        groups: int,
        eps: float,
        groups_out: int | None = None,
        activation: Callable[[Tensor], Tensor] = functional.silu,
        scale_shift: bool = False,
        scale_factor: float = 1.0,
        resample: Callable[[Tensor], Tensor] | None = None,
        projects: bool | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if time_channels is not None:
            self.time_emb_proj = nn.Linear(time_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = nn.GroupNorm(groups_out or groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        projects = in_channels != out_channels if projects is None else projects
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if projects else None
        self.activation = activation
        self.scale_shift = scale_shift
        self.scale_factor = scale_factor
        self.resample = resample

    def forward(self, sample: Tensor, time_embedding: Tensor | None = None) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, out_channels, height, width), or what `resample` makes.

        Args:
            sample: the input.
            time_embedding: (batch or 1, time_channels), after its activation; None in an autoencoder.
        """
        hidden = self.activation(self.norm1(sample))
        if self.resample is not None:
            sample, hidden = self.resample(sample), self.resample(hidden)
        hidden = self._timed_norm(self.conv1(hidden), time_embedding)
        hidden = self.conv2(self.activation(hidden))
        shortcut = sample if self.conv_shortcut is None else self.conv_shortcut(sample)
        return shortcut + hidden if self.scale_factor == 1 else (shortcut + hidden) / self.scale_factor

    def _timed_norm(self, hidden: Tensor, time_embedding: Tensor | None) -> Tensor:
        if time_embedding is None:
            return self.norm2(hidden)
        shift = self.time_emb_proj(time_embedding)[..., None, None]
        if not self.scale_shift:
            return self.norm2(hidden + shift)
        scale, shift = shift.chunk(2, dim=1)
        return self.norm2(hidden) * (1 + scale) + shift


def group_count(channels: int) -> int:
    """How many groups a norm has where nothing is said: one for four channels, at most 32."""
    return min(channels // 4, 32)


class AdaResnetBlock2D(nn.Module):
    """Two convolutions around which the input is added again; the timestep scales and shifts each group norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_channels: int,
        groups: tuple[int, int],
        eps: float,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.norm1 = AdaGroupNorm(in_channels, time_channels=time_channels, groups=groups[0], eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = AdaGroupNorm(out_channels, time_channels=time_channels, groups=groups[1], eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        projects = in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False) if projects else None
        self.activation = activation

    def forward(self, sample: Tensor, time_embedding: Tensor) -> Tensor:
        """Maps (batch, in_channels, height, width) to (batch, out_channels, height, width).

        Args:
            sample: the input.
            time_embedding: (batch or 1, time_channels), without an activation.
        """
        shortcut = sample if self.conv_shortcut is None else self.conv_shortcut(sample)
        sample = self.conv1(self.activation(self.norm1(sample, time_embedding)))
        return shortcut + self.conv2(self.activation(self.norm2(sample, time_embedding)))


class AdaGroupNorm(nn.Module):
    """A group norm whose scale and shift come from the timestep."""

    def __init__(self, channels: int, *, time_channels: int, groups: int, eps: float) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"a norm of {channels} channels cannot have {groups} groups")
        self.linear = nn.Linear(time_channels, 2 * channels)
        self.groups = groups
        self.eps = eps

    def forward(self, sample: Tensor, time_embedding: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to the same shape."""
        scale, shift = self.linear(time_embedding)[..., None, None].chunk(2, dim=1)
        return functional.group_norm(sample, self.groups, eps=self.eps) * (1 + scale) + shift


class Downsample2D(nn.Module):
    """Halves height and width, rounding up with `padding` 1 and down with 0, which pads right and bottom only."""

    def __init__(self, channels: int, *, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.pads_one_side = padding == 0

    def forward(self, sample: Tensor) -> Tensor:
        """Maps (batch, channels, height, width) to half the height and width."""
        if self.pads_one_side:
            sample = functional.pad(sample, (0, 1, 0, 1))
        return self.conv(sample)


class Upsample2D(nn.Module):
    """Enlarges by repeating pixels, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, sample: Tensor, like: Tensor | None = None) -> Tensor:
        """Maps (batch, channels, height, width) to the height and width of `like`, or to twice its own.

        Odd sizes do not survive a halving and a doubling: a UNet passes the skip that the result is to meet.
        """
        if like is None:
            sample = functional.interpolate(sample, scale_factor=2.0, mode="nearest")
        else:
            sample = functional.interpolate(sample, size=like.shape[-2:], mode="nearest")
        return self.conv(sample)


def smooth_halve(sample: Tensor, *, padding: str = "constant") -> Tensor:
    """Halves height and width, rounding down, through the filter (1, 3, 3, 1) / 8 in each direction.

    Args:
        sample: (batch, channels, height, width).
        padding: what lies outside: "constant" for zeros, "reflect" for the image's mirror.
    """
    return functional.avg_pool2d(_blur(functional.pad(sample, (1, 1, 1, 1), padding)), 2)


def smooth_double(sample: Tensor, *, padding: str = "constant") -> Tensor:
    """Doubles height and width through the filter (1, 3, 3, 1) / 4; the arguments are those of `smooth_halve`."""
    sample = functional.pad(sample, (1, 1, 1, 1), padding)
    return _blur(functional.interpolate(sample, scale_factor=2.0, mode="nearest")[..., 1:-1, 1:-1])


def _blur(sample: Tensor) -> Tensor:
    """The filter (1, 2, 1) / 4 in each direction, without the outermost pixels.

    With (1, 1), which averages pairs or repeats pixels, it makes (1, 3, 3, 1).
    """
    return functional.avg_pool2d(functional.avg_pool2d(sample, 2, stride=1), 2, stride=1)


def timestep_frequencies(timestep: Tensor, channels: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sines and cosines of the timestep, after Vaswani et al. 2017 (arXiv:1706.03762), as diffusers orders them.

    Args:
        timestep: (batch,), float32; may be fractional.
        channels: of the result, half sines and half cosines.
        flip_sin_to_cos: puts the cosines first.
        freq_shift: taken from the number of frequencies when they are spaced; 0 or 1.

    Returns:
        (batch, channels), float32.
    """
    half = channels // 2
    exponents = -math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep[:, None] * torch.exp(exponents / (half - freq_shift))  # (batch, half)
    sines, cosines = torch.sin(angles), torch.cos(angles)
    return torch.cat([cosines, sines] if flip_sin_to_cos else [sines, cosines], dim=-1)


class GaussianFourierProjection(nn.Module):
    """Sines and cosines of a noise level's logarithm at random frequencies, of Song et al. 2021 (arXiv:2011.13456)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_FOURIER_SCALE * torch.randn(channels))

    def forward(self, level: Tensor) -> Tensor:
        """Maps (batch,), above 0, to (batch, 2 * channels)."""
        angles = torch.log(level)[:, None] * self.weight * (2 * math.pi)
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers that turn frequencies into the embedding that every resnet block sees.

    Args:
        in_channels: of the frequencies.
        channels: of the embedding.
        condition_channels: of something else to be added to the frequencies; None for nothing.
    """

    def __init__(self, in_channels: int, channels: int, *, condition_channels: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)
        if condition_channels is not None:
            self.cond_proj = nn.Linear(condition_channels, in_channels, bias=False)

    def forward(self, frequencies: Tensor, condition: Tensor | None = None) -> Tensor:
        """Maps (batch, in_channels), and perhaps (batch, condition_channels), to (batch, channels)."""
        if condition is not None:
            frequencies = frequencies + self.cond_proj(condition)
        return self.linear_2(functional.silu(self.linear_1(frequencies)))
