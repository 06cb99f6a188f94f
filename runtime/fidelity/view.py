"""What is kept of a network's output to compare others with: all of it, or a sketch in which nothing is left out.

The sketch is the count sketch of Charikar, Chen and Farach-Colton 2002: every entry is added to one of 512 sums, or
taken from it, by a sign that looks random. Of a difference between two outputs it has the length (in expectation
exactly, and within about 6% as a rule), so that an error anywhere shows, a NaN too, where a sample would see one entry
in thousands.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from ..backends import Array
from .examples import mixed

#: an output of so many entries is kept whole; of a larger one there are so many sums
ENTRIES = 512


@dataclass(frozen=True)
class View:
    """An output's shape, and its entries or their sketch: float32, or bool of a network's decisions."""

    shape: tuple[int, ...]
    values: Array  # (entries,), at most ENTRIES numbers

    @classmethod
    def of(cls, output: Array) -> Self:
        """The view of an output of any floating-point dtype, or of bool."""
        return cls(output.shape, _kept(output))

    def errors(self, found: Array) -> tuple[float, float]:
        """The relative and the absolute error of another output.

        The relative error is the larger of two: of the lengths, |found - this| / |this|, and of the largest entries.
        The absolute error is the largest difference. Of a sketch both are those of its sums.

        Returns:
            (inf, inf) for another shape or for what is not finite; a decision that differs is an error of 1.
        """
        if found.shape != self.shape or found.dtype.kind != ("b" if self.values.dtype == np.bool_ else "f"):
            return float("inf"), float("inf")
        if self.values.dtype == np.bool_:
            wrong = float((_kept(found) != self.values).any())
            return wrong, wrong
        expected = self.values.astype(np.float64)
        difference = np.abs(_kept(found) - expected)
        if not np.isfinite(difference).all():
            return float("inf"), float("inf")
        largest, tiny = float(difference.max()), float(np.finfo(np.float32).tiny)
        length = float(np.linalg.norm(difference)) / max(float(np.linalg.norm(expected)), tiny)
        return max(length, largest / max(float(np.abs(expected).max()), tiny)), largest


def _kept(output: Array) -> Array:
    flat = output.ravel()
    if flat.dtype == np.bool_:
        return flat
    if flat.size <= ENTRIES:
        return flat.astype(np.float32)
    signs = 1 - 2 * (mixed(np.arange(flat.size, dtype=np.uint32), 0) & np.uint32(1)).astype(np.float64)
    padded = np.zeros(-(-flat.size // ENTRIES) * ENTRIES)
    padded[: flat.size] = flat * signs
    return np.asarray(padded.reshape(-1, ENTRIES).sum(axis=0), dtype=np.float32)
