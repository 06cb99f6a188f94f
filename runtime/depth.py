"""From an estimated depth to a channel beside the latents, for depth to image."""

import numpy as np

from .backends import Array

_ROUNDING = 1e-6  # what the interpolation makes of values that are all the same differs by less, relative to them
_KEYS_A = -0.75  # torch's choice of the one parameter of Keys' kernel


def depth_map_to_latents(depth: Array, height: int, width: int) -> Array:
    """The depth as the UNet of depth to image takes it: (batch, 1, height, width), float32, each image in [-1, 1].

    What `StableDiffusionDepth2ImgPipeline.prepare_depth_map` of diffusers does after the estimator: bicubic
    interpolation, then each image's least value becomes -1 and its greatest 1.

    Args:
        depth: (batch, rows, columns), of any scale.
        height: of the latents.
        width: of the latents.

    Raises:
        ValueError: another shape, no values or some that are not finite, or an image that is equally deep everywhere,
            which diffusers turns into NaN.
    """
    if depth.ndim != 3 or not depth.size:
        raise ValueError(f"depth must be (batch, height, width), got {depth.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    if not np.isfinite(depth).all():
        raise ValueError("depth must be finite, got NaN or infinity")
    depth = depth.astype(np.float32, copy=False)
    resized = _interpolate(_interpolate(depth, width).swapaxes(1, 2), height).swapaxes(1, 2)
    least, greatest = resized.min(axis=(1, 2), keepdims=True), resized.max(axis=(1, 2), keepdims=True)
    if not (greatest - least > _ROUNDING * np.abs(resized).max(axis=(1, 2), keepdims=True)).all():
        raise ValueError("depth must vary within each image, got one that is equally deep everywhere")
    scaled = 2 * (resized - least) / (greatest - least) - 1
    return np.ascontiguousarray(scaled[:, None])


def _interpolate(values: Array, length: int) -> Array:
    """Cubic convolution along the last axis, of Keys 1981 (doi:10.1109/TASSP.1981.1163711), with edges repeated.

    Positions are float32 as in `torch.nn.functional.interpolate(mode="bicubic")`: pixels have their centres at 0.5.
    """
    size = values.shape[-1]
    half = np.float32(0.5)
    position = np.float32(size) / np.float32(length) * (np.arange(length, dtype=np.float32) + half) - half
    before = np.floor(position)
    result = np.zeros((*values.shape[:-1], length), np.float32)
    for offset in (-1, 0, 1, 2):
        distance = np.abs(position - (before + np.float32(offset)))
        source = np.clip(before.astype(np.int64) + offset, 0, size - 1)
        result += values[..., source] * _keys_kernel(distance)
    return result


def _keys_kernel(distance: Array) -> Array:
    """Keys 1981, equation 15, of distances in [0, 2]."""
    a = np.float32(_KEYS_A)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, far)
