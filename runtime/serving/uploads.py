"""The pictures that a client sends, as arrays: what is no picture, or takes too much to read, is refused.

Pillow reads them. Before it sees a byte, the file's own headers are walked: a file of a few kilobytes may claim a
billion pixels, and a file that keeps to the pixels may hold millions of empty segments, or scans that each go over all
of them. One picture is read at a time, so that what is allowed is needed once: up to 30 bytes a pixel.
"""

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ..backends import Array
from ..image_input import check_picture, converted
from .errors import ApiError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 16_777_216  # of a picture
MOST_TEXT = 1 << 20  # bytes of one of a PNG's texts, as many as Pillow unpacks of one
MOST_CHUNKS = 65_536  # of a PNG
MOST_METADATA_CHUNKS = 256  # of them, those that are no pixels
MOST_METADATA = 1 << 24  # bytes before a JPEG's pixels
MOST_SEGMENTS = 4096  # of a JPEG
MOST_SCANS = 100  # of a JPEG; each goes over all pixels

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
#: of JPEG: what ends a run of pixels, or of bytes that mean nothing
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END, _SCAN = 0xD9, 0xDA
#: of JPEG: markers that nothing follows
_ALONE = {0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
#: of JPEG: markers that give a picture's size
_FRAMES = {*range(0xC0, 0xD0), 0xDE} - {0xC4, 0xC8, 0xCC}

#: reading a picture changes the filters of warnings, which are the process's
_ONE_AT_A_TIME = threading.Lock()


def read_image(data: bytes, *, most_pixels: int = MOST_PIXELS) -> Array:
    """The picture of a PNG, JPEG or WebP, upright: (height, width, 3) of uint8.

    As `image_input.open_image`: of one with transparency the colours remain, 16 bits of gray are refused. An animation
    is refused too; of a JPEG with more pictures behind it, it is the first.

    Args:
        data: the file.
        most_pixels: that it may have.

    Raises:
        ApiError: 400, `invalid_image` or `image_too_large`; 503, there is no memory for it.
    """
    with _opened(data, "image", most_pixels) as picture:
        return np.asarray(converted(picture, "RGB"))


def read_mask(data: bytes, *, width: int, height: int) -> Array:
    """What is to be made anew: (height, width) of uint8, 255 where it is and 0 elsewhere.

    That is where a mask is transparent (alpha below 128), as OpenAI has it; of a mask that is nowhere transparent,
    where it is white (brightness of 128 or more), as diffusers has it.

    Args:
        data: a PNG, JPEG or WebP.
        width: of the picture that it goes with, in pixels.
        height: likewise.

    Raises:
        ApiError: 400, `invalid_mask_size`, `invalid_image` or `image_too_large`; 503, there is no memory for it.
    """
    with _opened(data, "mask", max(MOST_PIXELS, width * height)) as picture:
        if picture.size != (width, height):
            raise _refused(
                "mask",
                f"must be of the image's size, {width}x{height}, got {picture.width}x{picture.height}",
                code="invalid_mask_size",
            )
        marked = np.asarray(picture.convert("RGBA").getchannel("A")) < 128 if _has_alpha(picture) else None
        if marked is None or not marked.any():
            marked = np.asarray(converted(picture, "L")) >= 128
        return marked.astype(np.uint8) * np.uint8(255)


def _has_alpha(picture: "Image") -> bool:
    return picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info


@contextmanager
def _opened(data: bytes, param: str, most_pixels: int) -> Iterator["Image"]:
    """The decoded picture of a file, upright; what Pillow raises of it becomes an `ApiError`."""
    from PIL import Image, ImageOps

    _check_file(data, param, most_pixels)
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as picture:
                _check_pixels(picture.width, picture.height, param, most_pixels)
                check_picture(picture, param)
                if getattr(picture, "is_animated", False) and picture.format in ("PNG", "WEBP"):
                    raise _animated(param)
                ImageOps.exif_transpose(picture, in_place=True)
                yield picture
        except ApiError:
            raise
        except MemoryError as error:
            raise ApiError(503, f"there is no memory for {param}", code="out_of_memory", retry_after=5) from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise _refused(param, "has too many pixels", code="image_too_large") from error
        except Exception as error:  # Pillow raises whatever a damaged file leads it to
            raise _refused(param, _reason(error)) from error


def _check_file(data: bytes, param: str, most_pixels: int) -> None:
    """Refuses, by its headers, a file of another format, or one that would take too much to read."""
    if data.startswith(_PNG):
        _check_png(data, param)
    elif data.startswith(_JPEG):
        _check_jpeg(data, param)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_pixels(*_webp_size(data), param, most_pixels)
    else:
        raise _refused(param, "must be a PNG, JPEG or WebP")


def _check_png(data: bytes, param: str) -> None:
    at, chunks, metadata = len(_PNG), 0, 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"acTL":
            raise _animated(param)
        if kind in _TEXTS and length > MOST_TEXT:
            raise _refused(param, f"has a text of {length} bytes; at most {MOST_TEXT} are read")
        chunks += 1
        metadata += kind != b"IDAT"
        if chunks > MOST_CHUNKS or metadata > MOST_METADATA_CHUNKS:
            raise _refused(param, "has too many chunks")
        at += 12 + length


def _check_jpeg(data: bytes, param: str) -> None:
    at, scans, frames, skipped = 2, 0, 0, 0
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        marker = found[0][1] if found else _END
        if scans and marker == _END:
            return
        if not scans:  # Pillow goes byte by byte over what means nothing
            skipped += (found.start() if found else len(data)) - at
        at = found.end() if found else len(data)
        if marker not in _ALONE:
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
        scans += marker == _SCAN
        frames += marker in _FRAMES
        if scans > MOST_SCANS:
            raise _refused(param, f"has more than {MOST_SCANS} scans")
        if frames > 1:
            raise _refused(param, "says its size twice")
        if not scans and (at > MOST_METADATA or skipped > MOST_SEGMENTS):
            raise _refused(param, "has too much before its pixels")
        if not found:
            return
    raise _refused(param, "has too many segments")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels; 0 where there is no size at its place: Pillow finds none either."""
    kind, header = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(header[4:7], "little"), 1 + int.from_bytes(header[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(header[6:8], "little") & 0x3FFF, int.from_bytes(header[8:10], "little") & 0x3FFF


def _check_pixels(width: int, height: int, param: str, most_pixels: int) -> None:
    if width * height > most_pixels:
        raise _refused(
            param, f"must have at most {most_pixels} pixels, got {width} times {height}", code="image_too_large"
        )


def _reason(error: Exception) -> str:
    """Why Pillow does not read a file, where it says so in words."""
    from PIL import UnidentifiedImageError

    if isinstance(error, ValueError | OSError) and not isinstance(error, UnidentifiedImageError):
        return f"cannot be read: {ascii(str(error))[1:-1][:200]}"
    return "is damaged, or of a kind that is not read here"


def _animated(param: str) -> ApiError:
    return _refused(param, "must be one picture, got an animation")


def _refused(param: str, what: str, *, code: str = "invalid_image") -> ApiError:
    return ApiError.invalid(f"{param} {what}", param=param, code=code)
