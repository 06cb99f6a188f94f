"""From the pictures and masks that a user brings to the arrays that an autoencoder takes.

What `VaeImageProcessor` of diffusers does before image to image and inpainting, with Pillow and NumPy alone.
"""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, Union

import numpy as np

from .backends import Array

if TYPE_CHECKING:
    from PIL.Image import Image

ResizeMode = Literal["default", "fill", "crop"]
Box: TypeAlias = tuple[int, int, int, int]  # left, upper, right, lower, in pixels
ImageInput: TypeAlias = Union["Image", Array, Sequence["Image"], Sequence[Array]]

#: the most pixels that a picture may have, as in Pillow: a quarter of a gibibyte in RGB
MAX_PIXELS = 89_478_485

#: what `open_image` reads; some of Pillow's other formats run programs (EPS) or hold no picture of their own
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")

_CHANNELS = {"RGB": 3, "L": 1}


def open_image(path: str | Path) -> "Image":
    """The picture of a file, upright and in RGB, as `load_image` of diffusers gives it.

    The size is read from the header, and refused, before any pixel is. Of an animation it is the first frame.

    Args:
        path: a PNG, JPEG, WebP, BMP, GIF or TIFF.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, a damaged file, more than `MAX_PIXELS` pixels, or more than 8 bits a channel.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture at {path}")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened = Image.open(file, formats=FORMATS)
            check_picture(opened, str(path))
            return converted(ImageOps.exif_transpose(opened), "RGB")
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} has too many pixels: {error}") from error
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is no picture of a known format: {', '.join(FORMATS)}") from error
        except (OSError, SyntaxError, struct.error) as error:
            raise ValueError(f"{path} is damaged, or of a kind that Pillow does not read: {error}") from error


def preprocess_image(
    image: ImageInput,
    height: int | None = None,
    width: int | None = None,
    *,
    factor: int,
    resize_mode: ResizeMode = "default",
    crops_coords: Box | None = None,
    latent_channels: int | None = None,
) -> Array:
    """The sample that an autoencoder encodes: (batch, 3, height, width), float32 in [-1, 1].

    Pictures are resized with Lanczos' filter, then converted to RGB, as in diffusers: of one with transparency the
    colours remain, a palette's picture is resized by nearest neighbour. Arrays are always resized by nearest neighbour.

    Args:
        image: a picture of any mode with 8 bits a channel, an array (height, width, 3) or (batch, height, width, 3) of
            floats in [0, 1], or a list of either.
        height: in pixels, rounded down to a multiple of `factor`; the first picture's own when None.
        width: likewise.
        factor: how many pixels of the image one pixel of the latents is.
        resize_mode: "default" stretches; "fill" keeps the proportions and repeats the edges around the picture; "crop"
            keeps them and cuts off what is too much. For pictures only.
        crops_coords: the part of each picture to take, before it is resized. For pictures only.
        latent_channels: of the autoencoder. When given, an array (batch, latent_channels, height, width) is latents and
            comes back as it is.

    Raises:
        TypeError: neither pictures nor arrays.
        ValueError: no image, pictures of different sizes without `height` and `width`, more than `MAX_PIXELS` pixels,
            more than 8 bits a channel, an array of another shape or dtype, or with NaN or values outside [0, 1].
    """
    if isinstance(image, np.ndarray) and image.ndim == 4 and image.shape[1] == latent_channels:
        if not image.size or not np.isfinite(image).all():
            raise ValueError(
                f"latents must be finite and at least one, got {image.shape} with NaN, infinity or nothing"
            )
        return np.asarray(image, dtype=np.float32)
    pixels = _preprocess(image, "RGB", height, width, factor, resize_mode, crops_coords)
    return 2 * pixels - 1


def preprocess_mask(
    mask: ImageInput,
    height: int | None = None,
    width: int | None = None,
    *,
    factor: int,
    resize_mode: ResizeMode = "default",
    crops_coords: Box | None = None,
) -> Array:
    """Where to paint: (batch, 1, height, width), float32, 1 where the mask is at least one half and 0 elsewhere.

    Args:
        mask: a picture, of which the brightness counts, an array (height, width), (batch, height, width),
            (height, width, 1) or (batch, height, width, 1) of floats in [0, 1], or a list of either.
        height: as in `preprocess_image`, like the other arguments.
        width: likewise.
        factor: likewise.
        resize_mode: likewise.
        crops_coords: likewise.

    Raises:
        TypeError: as in `preprocess_image`.
        ValueError: likewise.
    """
    pixels = _preprocess(mask, "L", height, width, factor, resize_mode, crops_coords)
    return (pixels >= 0.5).astype(np.float32)


def resize_image(picture: "Image", *, height: int | None = None, width: int | None = None) -> "Image":
    """The picture stretched to a height and a width, its own where None, with Lanczos' filter as in `preprocess_image`.

    Raises:
        ValueError: a side below 1, or more than `MAX_PIXELS` pixels.
    """
    height, width = picture.height if height is None else height, picture.width if width is None else width
    return _resized(picture, width, height, "default")


def resize_nearest(array: Array, height: int, width: int) -> Array:
    """The array (batch, channels, height, width) in another size, each pixel the nearest of the old ones.

    As `torch.nn.functional.interpolate` does it, in float32: what inpainting shrinks a mask to the latents' size with.
    """
    rows, columns = (
        np.minimum((np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(np.int64), old - 1)
        for old, new in zip(array.shape[2:], (height, width), strict=True)
    )
    return array[:, :, rows[:, None], columns]


def blur(mask: "Image", blur_factor: float = 4) -> "Image":
    """The mask with soft edges: a Gaussian blur of that radius in pixels. A palette or one bit becomes grayscale."""
    from PIL import ImageFilter

    picture = converted(mask, "L") if mask.mode in ("1", "P") else mask
    return picture.filter(ImageFilter.GaussianBlur(blur_factor))


def crop_region(mask: "Image", width: int, height: int, pad: int = 0) -> Box:
    """The box around all that is painted in a mask, widened to the proportions of the image to be made.

    As far as the mask's borders allow; `VaeImageProcessor.get_crop_region` of diffusers.

    Args:
        mask: what is not black is painted.
        width: of the image to be made.
        height: likewise.
        pad: pixels to leave around what is painted.

    Raises:
        ValueError: nothing is painted, a size below 1, or `pad` below 0.
    """
    if min(width, height) < 1 or pad < 0:
        raise ValueError(f"a crop region needs a positive size and padding, got {width}, {height} and {pad}")
    painted = np.asarray(converted(mask, "L")) != 0
    if not painted.any():
        raise ValueError("the mask is all black, so there is nothing to crop to")
    rows, columns = (np.flatnonzero(painted.any(axis=axis)) for axis in (1, 0))
    left, right = max(int(columns[0]) - pad, 0), min(int(columns[-1]) + 1 + pad, mask.width)
    upper, lower = max(int(rows[0]) - pad, 0), min(int(rows[-1]) + 1 + pad, mask.height)
    if (right - left) / (lower - upper) > width / height:
        upper, lower = _widened(upper, lower, (right - left) / (width / height), mask.height)
    else:
        left, right = _widened(left, right, (lower - upper) * (width / height), mask.width)
    return left, upper, right, lower


def apply_overlay(mask: "Image", init_image: "Image", image: "Image", crop_coords: Box | None = None) -> "Image":
    """The picture that was asked for: `image` where the mask is white and `init_image` where it is black, RGB.

    Args:
        mask: of the size of `init_image`; gray mixes.
        init_image: the picture before.
        image: what was made, of the size of `init_image`; of any size when `crop_coords` is given.
        crop_coords: the part of `init_image` that `image` was made for: what `crop_region` gave.

    Raises:
        ValueError: sizes that do not fit together.
    """
    from PIL import Image, ImageOps

    if mask.size != init_image.size:
        raise ValueError(f"mask and picture must be of one size, got {mask.size} and {init_image.size}")
    if crop_coords is None and image.size != init_image.size:
        raise ValueError(f"the pictures must be of one size, got {image.size} and {init_image.size}")
    kept = Image.new("RGBa", init_image.size)
    kept.paste(init_image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(converted(mask, "L")))
    if crop_coords is not None:
        left, upper, right, lower = _checked_box(crop_coords)
        canvas = Image.new("RGB", init_image.size)
        canvas.paste(_resized(image, right - left, lower - upper, "crop"), (left, upper))
        image = canvas
    combined = image.convert("RGBA")
    combined.alpha_composite(kept.convert("RGBA"))
    return combined.convert("RGB")


def check_picture(picture: "Image", name: str) -> None:
    """Refuses what is too large, and what `convert` would clip to white: integers of 16 or 32 bits, and floats.

    Raises:
        ValueError: more than `MAX_PIXELS` pixels, none, or more than 8 bits a channel.
    """
    _check_pixels(picture.width, picture.height, name)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{name} must have 8 bits a channel, got mode {picture.mode}; scale it and convert it to 'L'")


def converted(picture: "Image", mode: Literal["RGB", "L"]) -> "Image":
    """The picture in another mode; Pillow warns of a palette with transparencies, unless it goes over RGBA."""
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        picture = picture.convert("RGBA")
    return picture.convert(mode)


def _preprocess(
    image: ImageInput,
    mode: Literal["RGB", "L"],
    height: int | None,
    width: int | None,
    factor: int,
    resize_mode: ResizeMode,
    crops_coords: Box | None,
) -> Array:
    """(batch, channels of the mode, height, width), float32 in [0, 1]."""
    from PIL import Image

    if resize_mode not in ("default", "fill", "crop"):
        raise ValueError(f"resize_mode must be 'default', 'fill' or 'crop', got {resize_mode!r}")
    images = list(image) if isinstance(image, list | tuple) else [image]
    pictures = [each for each in images if isinstance(each, Image.Image)]
    arrays = [each for each in images if isinstance(each, np.ndarray)]
    if not images:
        raise ValueError("there must be at least one image, got an empty list")
    if len(pictures) == len(images):
        return _pixels(pictures, mode, height, width, factor, resize_mode, crops_coords)
    if len(arrays) != len(images):
        raise TypeError(f"images must be all of Pillow or all of NumPy, got {[type(each).__name__ for each in images]}")
    if resize_mode != "default" or crops_coords is not None:
        raise ValueError("arrays are neither cropped nor filled: give pictures of Pillow, or leave out both")
    batch = _stacked(arrays, mode)
    return resize_nearest(batch, *_target_size(batch.shape[2], batch.shape[3], height, width, factor))


def _pixels(
    pictures: "list[Image]",
    mode: Literal["RGB", "L"],
    height: int | None,
    width: int | None,
    factor: int,
    resize_mode: ResizeMode,
    crops_coords: Box | None,
) -> Array:
    """(batch, channels of the mode, height, width) of pictures, float32 in [0, 1]."""
    for picture in pictures:
        check_picture(picture, "the picture")
    if crops_coords is not None:
        box = _checked_box(crops_coords)
        pictures = [picture.crop(box) for picture in pictures]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1 and (height is None or width is None):
        raise ValueError(f"images of different sizes need height and width to be resized to, got {sorted(sizes)}")
    height, width = _target_size(pictures[0].height, pictures[0].width, height, width, factor)
    resized = [np.asarray(converted(_resized(each, width, height, resize_mode), mode)) for each in pictures]
    pixels = np.stack(resized).astype(np.float32) / 255
    return pixels[:, None] if mode == "L" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _stacked(arrays: list[Array], mode: Literal["RGB", "L"]) -> Array:
    """(batch, channels of the mode, height, width) of arrays with channels last, float32."""
    batches = [_batch(array, mode) for array in arrays]
    sizes = {batch.shape[1:3] for batch in batches}
    if len(sizes) > 1:
        raise ValueError(f"arrays in a list must be of one size, got {sorted(sizes)}")
    return np.ascontiguousarray(np.concatenate(batches).transpose(0, 3, 1, 2))


def _batch(array: Array, mode: Literal["RGB", "L"]) -> Array:
    """(batch, height, width, channels of the mode), float32 in [0, 1], from what diffusers takes for it."""
    channels = _CHANNELS[mode]
    batch = array
    if mode == "L" and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] not in _CHANNELS.values())):
        batch = array[..., None]
    if batch.ndim == 3:
        batch = batch[None]
    if batch.ndim != 4 or batch.shape[-1] != channels:
        raise ValueError(f"an array must be (height, width, {channels}) or a batch of them, got {array.shape}")
    if not batch.size:
        raise ValueError(f"there must be at least one image with at least one pixel, got {array.shape}")
    if not np.issubdtype(batch.dtype, np.floating):
        raise ValueError(f"an array must be of floats in [0, 1], got {batch.dtype}")
    if not np.isfinite(batch).all():
        raise ValueError("an array must be of numbers in [0, 1], got NaN or infinity")
    if batch.min() < 0 or batch.max() > 1:
        raise ValueError(f"an array must lie in [0, 1], got values from {batch.min()} to {batch.max()}")
    return batch.astype(np.float32)


def _target_size(
    own_height: int, own_width: int, height: int | None, width: int | None, factor: int
) -> tuple[int, int]:
    """Height and width as asked, or one's own, rounded down to multiples of the factor."""
    height, width = own_height if height is None else height, own_width if width is None else width
    if min(height, width) < factor:
        raise ValueError(f"an image must be at least {factor} pixels high and wide, got {height} and {width}")
    _check_pixels(width, height, "the resized picture")
    return height - height % factor, width - width % factor


def _check_pixels(width: int, height: int, name: str) -> None:
    if min(width, height) < 1:
        raise ValueError(f"{name} has no pixels: {width} wide, {height} high")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} must have at most {MAX_PIXELS} pixels, got {width} times {height}")


def _checked_box(box: Box) -> Box:
    left, upper, right, lower = box
    _check_pixels(right - left, lower - upper, f"the crop {tuple(box)}")
    return left, upper, right, lower


def _widened(start: int, end: int, length: float, limit: int) -> tuple[int, int]:
    """A side of a box, made longer to both directions, then shifted and cut to lie in [0, limit]."""
    missing = int(length - (end - start))
    start, end = start - missing // 2, end + missing - missing // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def _resized(picture: "Image", width: int, height: int, mode: ResizeMode) -> "Image":
    """The picture in another size; RGB if it does not simply stretch. As `VaeImageProcessor.resize`, to the pixel."""
    from PIL import Image

    # With its proportions kept, one side fits the frame: the other is shorter for "fill" and longer for "crop".
    inner_width, inner_height = width, height
    frame, own = width / height, picture.width / picture.height
    if mode != "default" and frame != own:
        if (frame > own) == (mode == "fill"):
            inner_width = picture.width * height // picture.height
        else:
            inner_height = picture.height * width // picture.width
    _check_pixels(inner_width, inner_height, "the resized picture")
    resized = picture.resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    if mode == "default":
        return resized
    left, upper = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    result = Image.new("RGB", (width, height))
    result.paste(converted(resized, "RGB"), (left, upper))
    if mode == "fill":
        _repeat_edges(result, resized, left, upper)
    return result


def _repeat_edges(canvas: "Image", picture: "Image", left: int, upper: int) -> None:
    """Fills what is free to both sides of a picture in the middle of a canvas with its outermost pixels."""
    width, height = picture.size
    if upper > 0:
        size, before, after, place = (width, upper), (0, 0, width, 0), (0, height, width, height), (0, upper + height)
    elif left > 0:
        size, before, after, place = (left, height), (0, 0, 0, height), (width, 0, width, height), (left + width, 0)
    else:
        return
    canvas.paste(converted(picture.resize(size, box=before), "RGB"), (0, 0))
    canvas.paste(converted(picture.resize(size, box=after), "RGB"), place)
