"""The noise that a picture starts from, and the sizes that it may have."""

from collections.abc import Sequence

import numpy as np

from .backends import Array
from .random import Generator, randn


def check_size(name: str, pixels: int, factor: int) -> None:
    """Refuses a side of the image that the autoencoder cannot make.

    Args:
        name: "height" or "width".
        pixels: of that side.
        factor: how many pixels of the image one pixel of the latents is.

    Raises:
        ValueError: names the nearest sides that it can make.
    """
    if isinstance(pixels, bool) or not isinstance(pixels, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {type(pixels).__name__}")
    if pixels <= 0 or pixels % factor:
        below = pixels // factor * factor
        nearest = f"nearest are {below} and {below + factor}" if below > 0 else f"the nearest is {factor}"
        raise ValueError(f"{name} must be a multiple of {factor}, got {pixels}; {nearest}")


def initial_latents(
    shape: tuple[int, int, int, int],
    generator: Generator | Sequence[Generator],
    latents: Array | None = None,
) -> Array:
    """Noise of unit variance, (batch, channels, height, width), float32.

    Args:
        shape: of the noise.
        generator: one for the whole batch, or one per image.
        latents: noise that the caller brings; taken as it is.

    Raises:
        ValueError: `latents` of another shape, or a number of generators that is not the batch's.
    """
    if latents is None:
        return randn(shape, generator)
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents must be of shape {shape}, got {tuple(latents.shape)}")
    return np.array(latents, dtype=np.float32)
