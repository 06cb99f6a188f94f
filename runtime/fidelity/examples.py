"""Random inputs that every machine draws alike, bit for bit: integers that are mixed, and no more."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from ..backends import Array

#: more entries than any example has; what a damaged file asks for ends here
MAX_ENTRIES = 2**26
_DTYPES = ("float32", "int64")


@dataclass(frozen=True)
class Example:
    """Values near a normal distribution's, or numbers below a bound.

    Raises:
        ValueError: a shape or a dtype that no example has.
    """

    shape: tuple[int, ...]
    seed: int
    dtype: str = "float32"
    below: int | None = None  # None for normal values
    spread: float = 1.0  # of normal values: their standard deviation

    def __post_init__(self) -> None:
        if not all(side > 0 for side in self.shape) or math.prod(self.shape) > MAX_ENTRIES:
            raise ValueError(f"an example cannot have the shape {self.shape}")
        if self.dtype not in _DTYPES or (self.below is not None and not 0 < self.below <= 2**31):
            raise ValueError(f"an example cannot be {self.dtype} below {self.below}")
        if not 0 < self.spread < math.inf:
            raise ValueError(f"an example cannot have a standard deviation of {self.spread}")

    def array(self) -> Array:
        """The values."""
        bits = mixed(np.arange(math.prod(self.shape), dtype=np.uint32), self.seed).reshape(self.shape)
        if self.below is not None:
            return (bits % np.uint32(self.below)).astype(self.dtype)
        four = np.stack([(bits >> np.uint32(shift)) & np.uint32(255) for shift in (0, 8, 16, 24)])
        normal = (four.sum(axis=0, dtype=np.int32) - 510) / 148  # 148: standard deviation
        return np.asarray(self.spread * normal, dtype=self.dtype)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `record`."""
        shape, seed, spread = tuple(map(int, record["shape"])), int(record["seed"]), float(record["spread"])
        return cls(shape, seed, record["dtype"], record["below"], spread)


def mixed(numbers: Array, seed: int) -> Array:
    """Bits that look random, of (n,) uint32: the finalizer of MurmurHash3, after the seed has moved them."""
    bits = numbers + np.uint32(seed * 0x9E3779B1 % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return np.asarray(bits ^ (bits >> np.uint32(16)))
