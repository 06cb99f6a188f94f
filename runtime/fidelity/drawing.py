"""A picture and a mask that a run can start from, drawn and not stored."""

import numpy as np

from ..backends import Array


def draw_picture(height: int, width: int) -> Array:
    """Three colours that change slowly, a disc and stripes: (height, width, 3), uint8."""
    y, x = _coordinates(height, width)
    red, green, blue = 40 + 180 * x, 200 - 150 * y, 90 + 120 * x * y
    disc = (x - 0.4) ** 2 + (y - 0.55) ** 2 < 0.06
    stripes = (np.floor(12 * (x + y)) % 2 == 0) & (x > 0.65)
    picture = np.stack([red + 0 * y, green + 0 * x, blue], axis=-1)
    picture[disc] = (240, 190, 40)
    picture[stripes] = (30, 30, 60)
    return picture.round().astype(np.uint8)


def draw_mask(height: int, width: int) -> Array:
    """White, a disc in the middle, on black: (height, width), uint8."""
    y, x = _coordinates(height, width)
    return np.where((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1, np.uint8(255), np.uint8(0))


def _coordinates(height: int, width: int) -> tuple[Array, Array]:
    """Of the pixels' centres, each in [0, 1]: (height, 1) and (1, width)."""
    y, x = ((np.arange(side) + 0.5) / side for side in (height, width))
    return y[:, None], x[None, :]
