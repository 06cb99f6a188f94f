"""How near two pictures are: PSNR and SSIM."""

import numpy as np

from ..backends import Array

_LARGEST = 255.0  # of 8 bits
_SIGMA, _RADIUS = 1.5, 5  # of the window, 11 pixels wide
_K1, _K2 = 0.01, 0.03


def psnr(found: Array, expected: Array) -> float:
    """The peak signal-to-noise ratio in dB, of (height, width, channels) uint8; infinite for the same pictures."""
    error = np.square(found.astype(np.float64) - expected).mean()
    return float("inf") if error == 0 else float(10 * np.log10(_LARGEST**2 / error))


def ssim(found: Array, expected: Array) -> float:
    """The mean structural similarity of Wang et al. 2004, equation 13, with their Gaussian window and constants.

    Args:
        found: (height, width, channels) uint8, at least as large as the window, 11 pixels.
        expected: the same shape. Channels are compared one by one, and windows lie within the picture.
    """
    x, y = found.astype(np.float64), expected.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _LARGEST) ** 2, (_K2 * _LARGEST) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


def fits_window(picture: Array) -> bool:
    """Whether a picture is large enough for `ssim`."""
    return bool(min(picture.shape[:2]) > 2 * _RADIUS)


def _windowed(picture: Array) -> Array:
    """The Gaussian mean around each pixel whose window lies within the picture."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(picture, len(weights), axis=axis)
        picture = windows @ weights
    return picture
