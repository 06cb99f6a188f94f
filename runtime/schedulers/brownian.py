"""Brownian motion that can be asked for any increment, in any order: the noise of a solver of stochastic equations.

A path W has independent, normal increments, W(b) - W(a) of variance b - a. Between two times where it is known it is a
Brownian bridge: W(t) is the line between them, and a normal number of variance (t - a)(b - t)/(b - a) beside it (Lévy's
construction). So halving an interval again and again reaches any time, and a number generator of each half's own makes
the path a function of the seed and the time alone (the virtual Brownian tree of Li et al. 2020, arXiv:2001.01328).

torchsde's `BrownianInterval`, which diffusers uses, has the same law and halves as far. Its numbers are others: they
come from torch's generators, these from NumPy's.
"""

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from .base import Array
from .weighted_sum import weighted_sum

_TOLERANCE = 1e-6  # of time, as in diffusers: halves are not halved further; times within one share its normal numbers
_RECENT = 3  # values kept: a solver goes on from where it was


class BrownianInterval:
    """A path of Brownian motion over an interval: the same one for the same seed, whatever is asked before.

    Increments add up, W(c) - W(a) = (W(b) - W(a)) + (W(c) - W(b)), but for the last digits.

    Attributes:
        start: of the interval.
        end: likewise.
        seed: of the path.
    """

    def __init__(
        self, shape: Sequence[int], start: float, end: float, seed: int, dtype: DTypeLike = np.float32
    ) -> None:
        """Describes the path; nothing is drawn yet.

        Args:
            shape: of W at one time: so many independent paths.
            start: of the interval, below its end.
            end: likewise.
            seed: an integer.
            dtype: of W, float32 or float64.

        Raises:
            TypeError: the seed is no integer.
            ValueError: the interval is empty.
        """
        if not start < end:
            raise ValueError(f"an interval must end after it starts, got {start} to {end}")
        self.start, self.end = float(start), float(end)
        self.seed = operator.index(seed) % 2**64
        self._shape, self._dtype = tuple(shape), np.dtype(dtype)
        self._recent: dict[float, Array] = {}  # time -> W, oldest first

    def __call__(self, time: float, time_next: float) -> Array:
        """W(time_next) - W(time), of the path's shape; the times may fall.

        Raises:
            ValueError: a time lies outside the interval.
        """
        values = [self._value(float(one)) for one in (time, time_next)]
        return values[1] - values[0]

    def _value(self, time: float) -> Array:
        """W at a time, if it starts from 0; found again or walked to."""
        if not self.start <= time <= self.end:
            raise ValueError(f"time must lie between {self.start} and {self.end}, got {time}")
        value = self._recent.pop(time, None)
        self._recent[time] = self._walk(time) if value is None else value
        while len(self._recent) > _RECENT:
            self._recent.pop(next(iter(self._recent)))
        return self._recent[time]

    def _walk(self, time: float) -> Array:
        """W at a time, from the whole interval down to the half of a half ... that the time lies in."""
        low, high = self.start, self.end
        at_low = np.zeros(self._shape, self._dtype)
        at_high = self._normal(0) * self._dtype.type((high - low) ** 0.5)
        half = 1  # the halves of number n are 2n and 2n + 1
        while high - low > _TOLERANCE and low < time < high:
            middle = (low + high) / 2
            at_middle = self._bridge(middle, (low, high), (at_low, at_high), half)
            if time < middle:
                high, at_high, half = middle, at_middle, 2 * half
            else:
                low, at_low, half = middle, at_middle, 2 * half + 1
        return self._bridge(time, (low, high), (at_low, at_high), half)

    def _bridge(self, time: float, ends: tuple[float, float], values: tuple[Array, Array], half: int) -> Array:
        """W at a time between two others where it is known."""
        low, high = ends
        if time in ends:
            return values[ends.index(time)]
        share = (time - low) / (high - low)
        deviation = (share * (high - time)) ** 0.5
        return weighted_sum((1 - share, share, deviation), (*values, self._normal(half)))

    def _normal(self, half: int) -> Array:
        """The normal numbers of an interval's half, always the same."""
        bits = np.random.SFC64(np.random.SeedSequence(self.seed, spawn_key=(half,)))
        dtype = np.float64 if self._dtype == np.float64 else np.float32
        return np.random.Generator(bits).standard_normal(self._shape, dtype=dtype)


class BrownianNoise:
    """Noise of variance 1 for a step between two noise levels: what a Brownian path in sigma adds there, scaled.

    Steps that overlap get noise that agrees, which is what a solver of second order needs; with other steps the same
    seed gives the same path.
    """

    def __init__(
        self,
        shape: Sequence[int],
        sigma_min: float,
        sigma_max: float,
        seed: int | Sequence[int] | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        """Describes the path.

        Args:
            shape: (batch, ...), of the noise.
            sigma_min: the lowest noise level.
            sigma_max: the highest.
            seed: one for the batch, or one per image; a random one when None.
            dtype: of the noise: float32, float64 or float16.

        Raises:
            ValueError: a number of seeds that is not the batch's.
        """
        self._dtype = np.dtype(dtype)
        precise = np.promote_types(self._dtype, np.float32)
        if seed is None:
            seed = int(np.random.default_rng().integers(2**63))
        if isinstance(seed, int | np.integer):
            self._paths = [BrownianInterval(shape, sigma_min, sigma_max, int(seed), precise)]
            return
        if len(seed) != shape[0]:
            raise ValueError(f"there are {shape[0]} images and {len(seed)} seeds")
        image = (1, *shape[1:])
        self._paths = [BrownianInterval(image, sigma_min, sigma_max, one, precise) for one in seed]

    def __call__(self, sigma: float, sigma_next: float) -> Array:
        """Noise for the step from one level to another."""
        scale = self._paths[0]._dtype.type(abs(float(sigma_next) - float(sigma)) ** -0.5)
        increments = [path(sigma, sigma_next) * scale for path in self._paths]
        noise = increments[0] if len(increments) == 1 else np.concatenate(increments)
        return noise.astype(self._dtype, copy=False)
