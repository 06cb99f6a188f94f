"""Noise without torch, as on a GPU: the numbers that `torch.Generator("cuda").manual_seed(seed)` gives."""

from collections.abc import Sequence
from math import ceil, pi, prod

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .random import Array, Generator

_DTYPES = (np.float32, np.float16)
_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio's fraction, and the square root of 3's
_LOW, _32 = np.uint64(2**32 - 1), np.uint64(32)
_BLOCK = 256  # threads


class CUDAGenerator(Generator):
    """A stream of normal numbers, equal to torch's CUDA generator but for the last bits of logarithm and sine.

    The bits are Philox4x32-10's (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): thread number n
    of a GPU encrypts the pair (place in its stream, n) with the seed as the key.

    Attributes:
        initial_seed: what it was seeded with.
        threads: how many numbers the GPU makes at once.
    """

    def __init__(self, seed: int, threads: int | None = None) -> None:
        """Starts the stream.

        Args:
            seed: see `Generator`.
            threads: how many the GPU runs at once, its multiprocessors times the threads of each: torch gives the
                numbers of a larger tensor to the same threads over again, so they depend on it (a T4 runs 40,960, an
                H100 of 132 multiprocessors 270,336). None: as many as the tensor has numbers.

        Raises:
            TypeError: the seed or the threads are no integer.
            ValueError: either is out of range.
        """
        super().__init__(seed)
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int | np.integer)):
            raise TypeError(f"threads must be an integer or None, got {type(threads).__name__}")
        if threads is not None and (threads < _BLOCK or threads % _BLOCK):
            raise ValueError(f"threads must be a multiple of {_BLOCK}, got {threads}")
        self.threads = threads
        self._place = 0  # of each thread in its stream, in blocks of four words

    def randn(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
        """Normal numbers of mean 0 and variance 1.

        Args:
            shape: of the result.
            dtype: float32, or float16: the same numbers, rounded.

        Raises:
            ValueError: the dtype is another.
        """
        size = prod(shape)
        dtype = np.dtype(dtype)
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be float32 or float16, got {dtype}")
        threads = _BLOCK * ceil(size / _BLOCK)
        if self.threads is not None:
            threads = min(threads, self.threads)
        values = np.empty(size, np.float32)
        for start in range(0, size, 4 * max(threads, 1)):
            # a thread's four numbers lie one round of all threads apart
            chunk = values[start : start + 4 * threads]
            rounds = ceil(len(chunk) / threads)
            chunk[:] = self._next(min(threads, len(chunk)), rounds).reshape(-1)[: len(chunk)]
        return values.astype(dtype, copy=False).reshape(shape)

    def _next(self, threads: int, rounds: int) -> NDArray[np.float32]:
        """The first `rounds` of the next four normal numbers of each thread, (rounds, threads)."""
        counter = np.zeros((4, threads), np.uint64)
        counter[0], counter[1] = self._place & 0xFFFFFFFF, self._place >> 32
        counter[2] = np.arange(threads)
        self._place += 1
        words = philox(counter, self.initial_seed)
        return _box_muller(words[: rounds + rounds % 2])[:rounds]


def philox(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Philox4x32-10: four words for four words, seemingly random.

    Args:
        counter: (4, ...), each below 2**32.
        key: below 2**64.

    Returns:
        As the counter.
    """
    low_key, high_key = key & 0xFFFFFFFF, key >> 32
    first, second, third, fourth = counter
    for _ in range(_ROUNDS):
        even, odd = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, second = (odd >> _32) ^ second ^ np.uint64(low_key), odd & _LOW
        third, fourth = (even >> _32) ^ fourth ^ np.uint64(high_key), even & _LOW
        low_key, high_key = (low_key + _KEY_STEPS[0]) & 0xFFFFFFFF, (high_key + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([first, second, third, fourth])


def _box_muller(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Normals from words below 2**32, (2 or 4, threads), in pairs, sine before cosine, as cuRAND makes them."""
    numbers = words.astype(np.float32).astype(np.float64) + 0.5  # cuRAND rounds after it has multiplied, not before
    radius = np.sqrt(-2 * np.log((numbers[::2] * 2**-32).astype(np.float32)))
    angle = (numbers[1::2] * np.float64(np.float32(2**-31 * pi))).astype(np.float32)
    normals = np.empty(words.shape, np.float32)
    normals[::2], normals[1::2] = radius * np.sin(angle), radius * np.cos(angle)
    return normals
