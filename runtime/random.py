"""Noise without torch: the numbers that `torch.Generator().manual_seed(seed)` gives on the CPU."""

from collections.abc import Sequence
from math import cos, log1p, pi, prod, sin, sqrt
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]

_DTYPES = (np.float32, np.float64, np.float16)
_BLOCK = 16  # normals come in blocks of 16: 8 radii, then 8 angles
_CHUNK = 4096 * _BLOCK  # computed at a time, in the cache: new memory costs more than the sine of what is put there


class Generator:
    """A stream of normal numbers, equal to torch's CPU generator to the last bits of its logarithm and cosine.

    The bits are MT19937's, seeded as Matsumoto's `init_genrand` does it with the seed's low 32 bits.

    Attributes:
        initial_seed: what it was seeded with.
    """

    def __init__(self, seed: int) -> None:
        """Starts the stream.

        Raises:
            TypeError: the seed is no integer.
            ValueError: it does not lie in [-2**63, 2**64).
        """
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise TypeError(f"seed must be an integer, got {type(seed).__name__}")
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed must lie in [-2**63, 2**64), got {seed}")
        self.initial_seed = int(seed) % 2**64
        self._bits = np.random.RandomState(self.initial_seed % 2**32)
        self._next_normal: float | None = None  # Box-Muller gives two; the second waits here

    def randn(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """Normal numbers of mean 0 and variance 1.

        Args:
            shape: of the result.
            dtype: float32, float64 or float16. Each has a stream of its own, as in torch.

        Raises:
            ValueError: the dtype is another.
        """
        size = prod(shape)
        dtype = np.dtype(dtype)
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be float32, float64 or float16, got {dtype}")
        values = self._few(size) if size < _BLOCK else self._many(size, dtype)
        return values.astype(dtype, copy=False).reshape(shape)

    def _few(self, size: int) -> Array:
        """Normal numbers, (size,) of float64, as torch fills small tensors: one by one, whatever their dtype."""
        return np.array([self._normal() for _ in range(size)])

    def _many(self, size: int, dtype: np.dtype[Any]) -> Array:
        """Normal numbers, (size,), as torch fills tensors of 16 and more; those for float16 are float32."""
        wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        uniform = self._uniform53 if wide == np.float64 else self._uniform24
        whole = size - size % _BLOCK
        values = np.empty(size, wide)
        for start in range(0, whole, _CHUNK):
            chunk = values[start : min(start + _CHUNK, whole)]
            _box_muller(uniform(len(chunk)), chunk)
        if whole < size:
            if dtype != np.float16:
                uniform(size - whole)  # torch draws for all numbers at first, except for float16
            _box_muller(uniform(_BLOCK), values[-_BLOCK:])  # the last 16 are drawn anew
        return values

    def _uniform24(self, size: int) -> NDArray[np.float32]:
        """(size,) of float32 in [0, 1): the low 24 bits of each word."""
        uniform = self._bits.randint(0, 2**24, size, dtype=np.uint32).astype(np.float32)
        uniform *= np.float32(2**-24)
        return uniform

    def _uniform53(self, size: int) -> NDArray[np.float64]:
        """(size,) of float64 in [0, 1): the low 53 bits of each two words."""
        return self._bits.randint(0, 2**53, size, dtype=np.uint64).astype(np.float64) * 2.0**-53

    def _normal(self) -> float:
        """One normal number: the second of the last two, or the first of the next (Box and Muller 1958)."""
        if self._next_normal is not None:
            value, self._next_normal = self._next_normal, None
            return value
        angle, radius = self._uniform53(2).tolist()
        radius = sqrt(-2 * log1p(-radius))
        self._next_normal = radius * sin(2 * pi * angle)
        return radius * cos(2 * pi * angle)


def _box_muller(uniform: Array, normals: Array) -> None:
    """Normals from uniforms in [0, 1), block by block (Box and Muller 1958): number j goes with number j + 8.

    Args:
        uniform: (numbers,), a multiple of 16.
        normals: (numbers,), to be filled.
    """
    half = np.dtype((np.void, uniform.itemsize * _BLOCK // 2))  # of a block, moved as one: rows of 8 numbers are slow
    radius, angle = (uniform.view(half)[place::2].copy().view(uniform.dtype) for place in (0, 1))
    np.subtract(1, radius, out=radius)
    np.log(radius, out=radius)
    radius *= -2
    np.sqrt(radius, out=radius)
    angle *= uniform.dtype.type(2 * pi)
    sine = np.sin(angle)
    np.cos(angle, out=angle)
    angle *= radius
    sine *= radius
    halves = normals.view(half)
    halves[::2], halves[1::2] = angle.view(half), sine.view(half)


def randn(shape: Sequence[int], generator: Generator | Sequence[Generator], dtype: DTypeLike = np.float32) -> Array:
    """Noise for a batch: one stream for all of it, or one per image.

    Args:
        shape: (batch, ...).
        generator: one, or as many as there are images.
        dtype: see `Generator.randn`.

    Raises:
        ValueError: a number of generators that is not the batch's.
    """
    if isinstance(generator, Generator):
        return generator.randn(shape, dtype)
    if len(generator) != shape[0]:
        raise ValueError(f"there are {shape[0]} images and {len(generator)} generators")
    return np.concatenate([one.randn((1, *shape[1:]), dtype) for one in generator])
