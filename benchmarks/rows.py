"""What is known of each contender, and how its picture compares: results first, times after."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np

from safelight.runtime.backends import Array

#: largest difference of a float image from the reference's, in 1/255, for the times of float32 to count
SAME_PICTURE = 1.0
#: least dB of a picture in 8 bits: what cutting off the rest of each value may do at most, an error of 1/255 everywhere
SAME_IN_8_BITS = 20 * math.log10(255)
#: dB of pictures that are equal; JSON has no infinity
EQUAL_PSNR = 200.0


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, least and most of several measurements."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


@dataclass(kw_only=True)
class Row:
    """What is known of one contender in one case."""

    contender: str
    tool: str = ""
    precision: str = "fp32"  # of the arithmetic
    partial: bool = False  # whether it leaves out some of a picture's work
    eight_bits: bool = False  # whether its tool gives pictures in 8 bits, and no floats
    missing: str | None = None  # why it took no part
    failure: str | None = None  # what ended it
    left_out: str | None = None  # what there was no time for
    note: str | None = None  # in what its pictures are not made as the others'
    wrong: str | None = None  # why its picture cannot even be compared
    difference: float | None = None  # of its float images from the reference's, largest, in 1/255
    psnr: float | None = None  # of its float images against the reference's, in dB
    warm_seconds: dict[str, Spread] = field(default_factory=dict)  # by stage; "step" is the median of a picture's
    open_seconds: Spread | None = None  # of a process that is there: imports and weights
    cold_seconds: Spread | None = None  # from the start of the process to the picture that is saved
    peak_memory: int | None = None  # resident bytes of a process that opens, warms up and makes pictures
    flops_per_second: dict[str, float] = field(default_factory=dict)  # by stage
    ceiling_share: float | None = None  # of what the machine's matrix products reach in this precision, a picture
    versions: dict[str, str] = field(default_factory=dict)  # of its packages

    @property
    def exact(self) -> bool:
        """Whether its picture has to be the reference's: it computes in float32, and leaves nothing out."""
        return self.precision == "fp32" and not self.partial

    @property
    def comparable(self) -> bool:
        """Whether its times may stand beside the others': it was measured, and its picture is what it has to be."""
        if self.missing is not None or self.failure is not None or self.wrong is not None:
            return False
        if not self.exact:
            return True
        if self.eight_bits:
            return self.psnr is None or self.psnr >= SAME_IN_8_BITS
        return self.difference is None or self.difference <= SAME_PICTURE

    @property
    def differs(self) -> bool:
        """Whether it gave a picture, and another one than it has to."""
        return self.missing is None and self.failure is None and not self.comparable

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """From a report's JSON."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in record.items() if name in known}
        for name in ("open_seconds", "cold_seconds"):
            if values.get(name) is not None:
                values[name] = Spread(**values[name])
        values["warm_seconds"] = {stage: Spread(**each) for stage, each in values.get("warm_seconds", {}).items()}
        return cls(**values)


def wrong_images(images: Array, expected_shape: tuple[int, ...]) -> str | None:
    """Why images cannot be compared; None when they can."""
    if images.shape != expected_shape:
        return f"its images are of shape {images.shape}, not {expected_shape}"
    return None if np.isfinite(images).all() else "its images have values that are not finite"


def largest_difference(images: Array, expected: Array) -> float:
    """Of float images in [0, 1], in 1/255."""
    return float(np.abs(images.astype(np.float64) - expected).max() * 255)


def image_psnr(images: Array, expected: Array) -> float:
    """The peak signal-to-noise ratio of float images in [0, 1], in dB; at most `EQUAL_PSNR`.

    Of all the images of a batch together, and before they are rounded to 8 bits.
    """
    error = float(np.square(images.astype(np.float64) - expected).mean())
    return EQUAL_PSNR if error == 0 else min(EQUAL_PSNR, -10 * math.log10(error))
