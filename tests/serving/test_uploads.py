"""Pictures that clients send: what is read, and how what is wrong or too much is refused."""

import io
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from safelight.runtime.image_input import open_image
from safelight.runtime.serving import uploads
from safelight.runtime.serving.errors import ApiError
from safelight.runtime.serving.uploads import read_image, read_mask

ORIENTATION = 0x0112


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *before: bytes, rows: bytes | None = None, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header and content need not fit."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    content = b"\0" * ((1 + 3 * width) * height) if rows is None else rows
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    )


def webp_claiming(kind: bytes, width: int, height: int) -> bytes:
    """The header of a WebP, with nothing behind it."""
    if kind == b"VP8X":
        body = b"\0\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + b"\0" * 5
    else:
        body = b"\x10\0\0\x9d\x01\x2a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")
    riff = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(riff)) + riff


def refusal(call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    error = caught.value
    assert error.status == 400
    assert error.message.isascii()
    assert error.message.isprintable()
    return error


def refused_image(data: bytes, **options: Any) -> ApiError:
    error = refusal(lambda: read_image(data, **options))
    assert error.param == "image"
    return error


# what is read


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
    ],
)
def test_every_mode_is_read_as_open_image_reads_it(mode: str, kind: str, tmp_path: Path) -> None:
    data = saved(picture(mode), kind)
    (tmp_path / "picture").write_bytes(data)
    found = read_image(data)
    assert found.shape == (16, 24, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(open_image(tmp_path / "picture")))
    assert len(np.unique(found)) > 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(kind: str) -> None:
    image = Image.new("RGB", (48, 16))
    image.paste((255, 255, 255), (0, 0, 8, 16))  # white at the left
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    found = read_image(saved(image, kind, exif=exif.tobytes()))
    assert found.shape == (48, 16, 3)
    assert found[2].min() > 200  # at the top
    assert found[-2].max() < 60


def test_transparency_leaves_the_colours() -> None:
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert read_image(saved(image)).reshape(-1, 3).tolist() == [[10, 20, 30]] * 64


def test_of_a_jpeg_with_more_pictures_it_is_the_first() -> None:
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert read_image(data)[8, 8, 0] > 200


def test_a_jpeg_with_restart_markers_and_one_of_many_scans_are_read() -> None:
    image = picture(size=(1152, 1152))
    marked = saved(image, "JPEG", restart_marker_blocks=1)
    assert sum(marked.count(bytes((0xFF, 0xD0 + number))) for number in range(8)) > uploads.MOST_SEGMENTS
    assert read_image(marked).shape == (1152, 1152, 3)
    assert read_image(saved(image, "JPEG", progressive=True)).shape == (1152, 1152, 3)


# what is refused


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPVP8X",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/x.png"/></svg>',
        b"https://example.com/cat.png",
        b"data:image/png;base64,iVBORw0KGgo=",
        b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n",
        saved(picture(), "GIF"),
        saved(picture(), "BMP"),
        saved(picture(), "TIFF"),
    ],
    ids=["nothing", "png", "jpeg", "webp", "webp-x", "svg", "url", "data-url", "eps", "gif", "bmp", "tiff"],
)
def test_other_files_are_refused_and_nothing_is_fetched(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(socket, "socket", lambda *_, **__: opened.append("socket"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: opened.append("process"))
    assert refused_image(data).code == "invalid_image"
    assert refusal(lambda: read_mask(data, width=8, height=8)).param == "mask"
    assert not opened


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(kind: str, part: float) -> None:
    data = saved(picture(size=(200, 200)), kind)
    assert refused_image(data[: int(len(data) * part)]).code == "invalid_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damage_anywhere_gives_a_picture_or_a_refusal_and_no_warning(kind: str) -> None:
    data = saved(
        picture(size=(32, 32)), kind, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    )
    numbers = np.random.default_rng(1)
    refusals = []
    for _ in range(300):
        damaged = bytearray(data)
        for place in numbers.integers(0, len(data), numbers.integers(1, 6)):
            damaged[place] = numbers.integers(0, 256)
        try:
            assert read_image(bytes(damaged)).dtype == np.uint8
        except ApiError as error:
            refusals.append(error)
    assert len(refusals) > 20
    assert {error.status for error in refusals} == {400}


@pytest.mark.parametrize(
    "data",
    [
        png(30_000, 30_000, rows=b""),
        png(2**31 - 1, 2**31 - 1, rows=b""),
        png(4097, 4096, rows=b""),
        webp_claiming(b"VP8X", 16384, 16384),
        webp_claiming(b"VP8L", 16384, 16384),
        webp_claiming(b"VP8 ", 16383, 16383),
        saved(picture(size=(16, 16)), "JPEG").replace(b"\x08\x00\x10\x00\x10\x03", b"\x08\xff\xff\xff\xff\x03"),
    ],
    ids=["png-900M", "png-huge", "png-one-row-more", "webp-x", "webp-lossless", "webp-lossy", "jpeg-4G"],
)
def test_too_many_pixels_are_refused_before_any_is_read(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("pixels are read"))
    if data.startswith(b"RIFF"):
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("libwebp makes room for all pixels"))
    error = refused_image(data)
    assert error.code == "image_too_large"
    assert "16777216" in error.message or "too many pixels" in error.message
    assert refusal(lambda: read_mask(data, width=8, height=8)).code == "image_too_large"


def test_the_limit_of_pixels_is_the_callers() -> None:
    data = saved(picture(size=(24, 16)))
    assert read_image(data, most_pixels=24 * 16).shape == (16, 24, 3)
    error = refused_image(data, most_pixels=24 * 16 - 1)
    assert (error.code, error.param) == ("image_too_large", "image")
    assert "24 times 16" in error.message


def test_a_bomb_of_one_colour_needs_no_more_than_its_pixels() -> None:
    data = png(4096, 4096)  # 50 MB of zeros in 50 KB
    assert len(data) < 100_000
    script = (
        "import resource, sys\n"
        "from safelight.runtime.serving.uploads import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert read_image(sys.stdin.buffer.read()).shape == (4096, 4096, 3)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True, timeout=60)
    assert int(found.stdout) < 30 * 4096 * 4096


def test_rows_beyond_the_picture_are_not_unpacked() -> None:
    data = png(8, 8, rows=b"\0" * 200_000_000)
    started = time.process_time()
    assert read_image(data).shape == (8, 8, 3)
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize("compressed", [False, True])
def test_a_giant_text_is_refused(compressed: bool) -> None:
    info = PngInfo()
    info.add_text("comment", "x" * (2 * uploads.MOST_TEXT), zip=compressed)
    data = saved(picture(), pnginfo=info)
    assert refused_image(data).code == "invalid_image"


def test_a_text_as_generators_write_it_is_no_matter() -> None:
    info = PngInfo()
    info.add_text("workflow", "x" * 200_000)
    assert read_image(saved(picture(), pnginfo=info)).shape == (16, 24, 3)


def test_many_packed_texts_are_refused_before_any_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = chunk(b"zTXt", b"\0\0" + zlib.compress(b"x" * uploads.MOST_TEXT))
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("they are read"))
    assert "chunks" in refused_image(png(8, 8, *[packed] * 300)).message


def test_many_chunks_are_refused_wherever_they_are() -> None:
    before = png(8, 8, *[chunk(b"prVt", b"")] * 300)
    ended = png(8, 8)
    behind = ended[:-12] + chunk(b"prVt", b"") * 300 + ended[-12:]
    pieces = ended[:-12] + chunk(b"IDAT", b"") * (uploads.MOST_CHUNKS + 1) + ended[-12:]
    for data in (before, behind, pieces):
        assert "chunks" in refused_image(data).message


def segment(marker: int, data: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    "inserted",
    [
        segment(0xE5) * 5000,
        b"\xff" * 5000,
        segment(0xE5) + b"\x01" * 5000,
        b"\xff\xd0" * 5000,
        b"\xff\xd9" + segment(0xE5) * 5000,
        b"\xff\xf0" * 5000,
        segment(0xE5, b"x" * 65_000) * 300,
    ],
    ids=["empty-segments", "fill", "junk", "restarts", "behind-an-end", "extensions", "metadata"],
)
def test_a_jpeg_that_is_long_before_its_pixels_is_refused_at_once(
    inserted: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(picture(), "JPEG")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow goes over it"))
    error = refused_image(data[:2] + inserted + data[2:])
    assert error.code == "invalid_image"
    assert "too m" in error.message


def test_a_jpeg_of_very_many_scans_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(picture(size=(64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 200 + data[-2:]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("libjpeg goes over the pixels for each"))
    assert "scans" in refused_image(many).message
    hidden = data[:last] + segment(0xFE, b"\xff\xd9") + data[last:-2] * 200 + data[-2:]
    assert "scans" in refused_image(hidden).message


def test_what_stands_behind_a_jpegs_end_is_no_matter() -> None:
    data = saved(picture(), "JPEG")
    assert read_image(data + b"\xff\xda\x00\x02" * 500).shape == (16, 24, 3)


def test_a_jpeg_that_says_its_size_twice_is_refused() -> None:
    data = saved(picture(), "JPEG")
    start = data.index(b"\xff\xc0")
    header = data[start : start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]]
    assert "twice" in refused_image(data[:start] + header + data[start:]).message


def test_what_pillow_warns_of_is_no_matter() -> None:
    data = saved(picture(), "JPEG")
    wrong = data[:2] + segment(0xE2, b"MPF\0?") + data[2:]
    with pytest.warns(UserWarning, match="malformed MPO"), Image.open(io.BytesIO(wrong)):
        pass
    np.testing.assert_array_equal(read_image(wrong), read_image(data))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    data = saved(picture(), kind, save_all=True, append_images=[Image.new("RGB", (24, 16))])
    assert "animation" in refused_image(data).message


def test_sixteen_bits_of_gray_are_refused() -> None:
    image = Image.fromarray(np.full((8, 8), 1000, np.uint16))
    assert "8 bits" in refused_image(saved(image)).message


def test_a_failure_of_memory_is_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ApiError) as caught:
        read_image(saved(picture()))
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "out_of_memory", 5)


@pytest.mark.parametrize(
    "error", [KeyError("x"), ZeroDivisionError(), struct.error("x"), RuntimeError("x"), EOFError()]
)
def test_whatever_pillow_raises_is_a_refusal(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Image.Image) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    found = refused_image(saved(picture()))
    assert found.code == "invalid_image"
    assert found.__cause__ is error


def test_several_threads_leave_the_filters_of_warnings_as_they_were() -> None:
    before, running, most = list(warnings.filters), [], []
    lock = threading.Lock()

    def read(number: int) -> int:
        with lock:
            running.append(number)
            most.append(len(running))
        found = read_image(data)
        running.remove(number)
        return found.shape[0]

    data = saved(picture(size=(256, 256)))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, range(64))) == [256] * 64
    assert max(most) > 1  # they were together
    assert list(warnings.filters) == before


# masks


def test_a_mask_marks_what_is_transparent() -> None:
    image = Image.new("RGBA", (16, 8), (255, 255, 255, 255))
    image.paste((255, 255, 255, 0), (0, 0, 4, 8))
    found = read_mask(saved(image), width=16, height=8)
    assert found.shape == (8, 16)
    assert found.dtype == np.uint8
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == 0).all()


def test_a_mask_without_alpha_marks_what_is_white() -> None:
    image = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    assert read_mask(saved(image), width=4, height=1).tolist() == [[0, 0, 255, 255]]


def test_a_mask_that_is_nowhere_transparent_marks_what_is_white() -> None:
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 255))
    image.putpixel((3, 0), (255, 255, 255, 255))
    assert read_mask(saved(image), width=4, height=1).tolist() == [[0, 0, 0, 255]]


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_mask_may_name_the_colour_that_is_transparent(mode: str) -> None:
    image = Image.new(mode, (4, 4), 1 if mode != "RGB" else (1, 1, 1))
    image.putpixel((2, 1), 0 if mode != "RGB" else (0, 0, 0))
    data = saved(image, transparency=0 if mode != "RGB" else (0, 0, 0))
    expected = np.zeros((4, 4), np.uint8)
    expected[1, 2] = 255
    np.testing.assert_array_equal(read_mask(data, width=4, height=4), expected)


@pytest.mark.parametrize("size", [(16, 8), (17, 16), (16, 15), (1, 1)])
def test_a_mask_of_another_size_is_refused(size: tuple[int, int]) -> None:
    error = refusal(lambda: read_mask(saved(Image.new("L", size)), width=16, height=16))
    assert (error.code, error.param) == ("invalid_mask_size", "mask")
    assert "16x16" in error.message
    assert f"{size[0]}x{size[1]}" in error.message


def test_a_mask_is_measured_when_it_is_upright() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = saved(Image.new("L", (16, 8), 255), exif=exif.tobytes())
    assert read_mask(data, width=8, height=16).shape == (16, 8)
    assert refusal(lambda: read_mask(data, width=16, height=8)).code == "invalid_mask_size"


def test_the_most_that_is_let_in_takes_seconds_at_most() -> None:
    """The worst that was found: as many scans as are read, over as many pixels."""
    data = saved(Image.new("RGB", (2048, 2048), (128, 64, 32)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 60 + data[-2:]
    started = time.process_time()
    assert read_image(many).shape == (2048, 2048, 3)
    assert time.process_time() - started < 10
