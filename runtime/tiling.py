"""Large pictures in little memory: an autoencoder's work cut into overlapping tiles, or a batch into single images."""

import math
from collections.abc import Callable

import numpy as np

from .backends import Array


def decode_tiled(
    decode: Callable[[Array], Array], latents: Array, *, tile_latent_size: int, overlap: float, factor: int
) -> Array:
    """The images of latents, decoded tile by tile: (batch, 3, height * factor, width * factor).

    What `AutoencoderKL.tiled_decode` of diffusers does; latents that fit into one tile are decoded whole, as there.
    No tile begins before the last is done, and of that only the strips remain that the next ones are blended with.
    The picture is not exactly that of the whole: a tile's network does not see past its borders, nor do its norms.

    Args:
        decode: (batch, channels, height, width) to (batch, 3, height * factor, width * factor), for any size.
        latents: (batch, channels, height, width), what `decode` takes.
        tile_latent_size: side of a tile, in pixels of the latents; tiles at the right and at the bottom are smaller.
        overlap: the part of a tile that it shares with the next, in [0, 1); rounded up to whole pixels of the latents.
            diffusers takes 0.25. Where it is no whole number of them, its images have another size, and ours do not.
        factor: how many pixels of the image one pixel of the latents is, along each side.

    Raises:
        ValueError: an array that is not of four axes, tiles without size or with nothing but overlap, or a `decode`
            that gives images of another size.
    """
    shared = _shared(tile_latent_size, overlap)
    return _tiled(decode, latents, tile_latent_size, shared, cell=1, result_cell=factor)


def encode_tiled(
    encode: Callable[[Array], Array], images: Array, *, tile_latent_size: int, overlap: float, factor: int
) -> Array:
    """What `encode` makes of images, tile by tile: (batch, channels, height / factor, width / factor).

    The inverse of `decode_tiled`, and `AutoencoderKL.tiled_encode` of diffusers. It is the parameters of the latents'
    distribution that are blended, so `encode` gives those: means and log variances.

    Args:
        encode: (batch, 3, height, width) to (batch, channels, height / factor, width / factor), for any multiples of
            `factor`.
        images: (batch, 3, height, width); height and width are multiples of `factor`.
        tile_latent_size: side of a tile, in pixels of the latents.
        overlap: as in `decode_tiled`.
        factor: how many pixels of the image one pixel of the latents is, along each side.

    Raises:
        ValueError: as in `decode_tiled`, or sides that are no multiples of `factor`.
    """
    shared = _shared(tile_latent_size, overlap)
    return _tiled(encode, images, tile_latent_size, shared, cell=factor, result_cell=1)


def sliced(function: Callable[[Array], Array], batch: Array) -> Array:
    """What a network makes of a batch, with one image in it at a time.

    Args:
        function: (1, ...) to (1, ...).
        batch: (batch, ...), at least one.

    Raises:
        ValueError: the batch is empty.
    """
    if not len(batch):
        raise ValueError("a batch to slice needs at least one image")
    return np.concatenate([function(batch[index : index + 1]) for index in range(len(batch))])


def _shared(tile_size: int, overlap: float) -> int:
    """How many pixels of the latents a tile shares with the next."""
    if tile_size < 1:
        raise ValueError(f"tile_latent_size must be at least 1, got {tile_size}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must lie in [0, 1), got {overlap}")
    shared = math.ceil(round(tile_size * overlap, 6))  # rounded first: 25 * 0.28 must not become 8
    if shared == tile_size:
        raise ValueError(f"an overlap of {overlap} leaves nothing of a tile of {tile_size}; make the tile larger")
    return shared


def _tiled(
    function: Callable[[Array], Array], array: Array, tile_size: int, shared: int, *, cell: int, result_cell: int
) -> Array:
    """Sizes of tiles count pixels of the latents: `cell` pixels of the array, `result_cell` of the result."""
    if array.ndim != 4 or not array.size:
        raise ValueError(f"tiling takes an array of (batch, channels, height, width), got {array.shape}")
    height, width = (side // cell for side in array.shape[2:])
    if (height * cell, width * cell) != array.shape[2:]:
        raise ValueError(f"height and width must be multiples of {cell}, got {array.shape[2]} and {array.shape[3]}")
    if max(height, width) <= tile_size:
        return function(array)

    step = tile_size - shared
    blended = shared * result_cell
    kept = step * result_cell
    result: Array | None = None
    above: list[Array] = []  # the lower strips of the row of tiles above, one per column
    for top in range(0, height, step):
        lower: list[Array] = []
        left: Array | None = None  # the right strip of the tile to the left
        for column, start in enumerate(range(0, width, step)):
            part = array[:, :, top * cell : (top + tile_size) * cell, start * cell : (start + tile_size) * cell]
            tile = function(np.ascontiguousarray(part))
            sides = tuple(side // cell * result_cell for side in part.shape[2:])
            if tile.ndim != 4 or tile.shape[2:] != sides:
                raise ValueError(f"a tile of {part.shape} must become one of {sides[0]}x{sides[1]}, got {tile.shape}")
            if above:
                tile = _blend(above[column], tile, axis=2)
            if left is not None:
                tile = _blend(left, tile, axis=3)
            left = tile[:, :, :, max(sides[1] - blended, 0) :].copy()
            lower.append(tile[:, :, max(sides[0] - blended, 0) :].copy())
            if result is None:
                result = np.empty((*tile.shape[:2], height * result_cell, width * result_cell), tile.dtype)
            y, x = top * result_cell, start * result_cell
            result[:, :, y : y + kept, x : x + kept] = tile[:, :, :kept, :kept]
            del tile  # before the next one is made
        above = lower
    assert result is not None
    return result


def _blend(before: Array, tile: Array, *, axis: int) -> Array:
    """The tile, with its first pixels along an axis fading in from the strip that the tile before it ends with."""
    length = min(before.shape[axis], tile.shape[axis])
    weights = (np.arange(length) / max(length, 1)).astype(np.float32)
    weights = np.expand_dims(weights, tuple(other for other in range(4) if other != axis))
    faded_out = np.split(before, [before.shape[axis] - length], axis)[1] * (1 - weights)
    first, rest = np.split(tile, [length], axis)
    return np.concatenate([faded_out + first * weights, rest], axis)
