"""How far a contender's results are from the reference's, and how far they may be."""

import numpy as np

from safelight.runtime.backends import Array
from safelight.runtime.fidelity.picture import psnr
from safelight.runtime.fidelity.report import LARGEST_LIMIT, SPREADS_ALLOWED, run_limits

#: of a UNet's output where the reference did not come to half precision
_UNKNOWN_SPREAD = 0.01
#: dB; JSON has no infinity
SAME_PICTURE = 100.0


def relative_error(found: Array, expected: Array) -> float:
    """|found - expected| / |expected|; infinite where something is not finite or of another shape."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


def picture_psnr(found: Array, expected: Array) -> float:
    """The PSNR in dB of pictures in [0, 1], as they would be saved; minus infinity for no picture at all.

    Pictures that are the same when they are saved have `SAME_PICTURE`.
    """
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("-inf")
    return min(psnr(_to_uint8(found), _to_uint8(expected)), SAME_PICTURE)


def unet_limit(half_error: float | None) -> float:
    """The largest relative error of a UNet in half precision, from that of the reference in half precision."""
    spread = _UNKNOWN_SPREAD if half_error is None else half_error
    return min(LARGEST_LIMIT, SPREADS_ALLOWED["float16"] * spread)


def picture_limit(half_psnr: float | None) -> float | None:
    """The least PSNR of a picture, from that of the reference's in half precision; None where that is not known."""
    return None if half_psnr is None else run_limits({"float16"}, 0.0, [], half_psnr)[1]


def _to_uint8(picture: Array) -> Array:
    return np.asarray((picture.clip(0, 1) * 255).round(), dtype=np.uint8)
