"""Pictures and files: numbers against diffusers, the PNG against a parser written here."""

import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from safelight.runtime.image import image_grid, read_parameters, save_png, to_pil, to_unit_interval

PARAMETERS = {
    "prompt": 'cat face \U0001f431\u200d\U0001f464 caf\u00e9, \u732b\non a "blue" background',
    "negative_prompt": "blurry",
    "num_inference_steps": 25,
    "guidance_scale": 7.5,
    "seed": 0,
    "scheduler": "EulerDiscreteScheduler",
    "model": "emoji",
    "eta": None,
    "nested": {"sizes": [1, 2.5, True]},
}


@pytest.fixture
def sample() -> np.ndarray:
    """(3, 3, 6, 10), some of it outside [-1, 1], with every value at which rounding to 8 bits turns."""
    values = np.random.default_rng(0).normal(size=(3, 3, 6, 10)).astype(np.float32)
    edges = ((np.arange(180) + 0.5) / 255 * 2 - 1).astype(np.float32)
    values[0] = edges.reshape(3, 6, 10)
    return values


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.fixture
def written(image: Image.Image, tmp_path: Path) -> Path:
    save_png(image, tmp_path / "cat.png", PARAMETERS)
    return tmp_path / "cat.png"


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    result, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", data, position + 8 + length)[0] == zlib.crc32(kind + content)
        result.append((kind, content))
        position += length + 12
    assert result[-1] == (b"IEND", b"")
    return result


def texts(data: bytes) -> dict[str, str]:
    found = {}
    for kind, content in chunks(data):
        keyword, _, rest = content.partition(b"\0")
        if kind == b"tEXt":
            found[keyword.decode()] = rest.decode("latin-1")
        elif kind == b"iTXt":
            assert rest[:2] == b"\0\0", "not compressed"
            found[keyword.decode()] = rest[2:].split(b"\0", 2)[2].decode("utf-8")
    return found


def with_text(path: Path, data: bytes, kind: bytes = b"iTXt") -> Path:
    """A PNG whose only text chunk holds these bytes."""
    plain = path.with_name("plain.png")
    Image.new("RGB", (2, 2)).save(plain)
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    original = plain.read_bytes()
    path.write_bytes(original[:-12] + chunk + original[-12:])  # after the pixels, as some editors write it
    return path


def test_unit_interval_equals_diffusers(sample: np.ndarray) -> None:
    before = sample.copy()
    ours = to_unit_interval(sample)
    theirs = VaeImageProcessor().postprocess(torch.from_numpy(sample.copy()), output_type="np")
    assert ours.dtype == np.float32
    assert ours.min() == 0
    assert ours.max() == 1
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(sample, before)


def test_pixels_equal_diffusers(sample: np.ndarray) -> None:
    ours = to_pil(to_unit_interval(sample))
    theirs = VaeImageProcessor().postprocess(torch.from_numpy(sample), output_type="pil")
    assert [image.size for image in ours] == [(10, 6)] * 3
    for our, their in zip(ours, theirs, strict=True):
        assert our.mode == their.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(our), np.asarray(their))


def test_one_channel_and_one_image(sample: np.ndarray) -> None:
    (gray,) = to_pil(to_unit_interval(sample[:1, :1])[0])
    (expected,) = VaeImageProcessor().postprocess(torch.from_numpy(sample[:1, :1]), output_type="pil")
    assert gray.mode == "L"
    np.testing.assert_array_equal(np.asarray(gray), np.asarray(expected))


def test_half_precision_is_widened_first() -> None:
    half = np.linspace(-1, 1, 300).reshape(1, 3, 10, 10).astype(np.float16)
    np.testing.assert_array_equal(to_unit_interval(half), to_unit_interval(half.astype(np.float32)))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)])
def test_sample_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"(batch, 3, height, width), got {shape}")):
        to_unit_interval(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_overflow_is_an_error_and_no_black_image(value: float, sample: np.ndarray) -> None:
    sample[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"holds 1 values of 540 that are not finite.* VAE in float32"):
        to_unit_interval(sample)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_images_outside_the_unit_interval_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        to_pil(np.full((1, 2, 2, 3), value, np.float32))
    with pytest.raises(ValueError, match=r"got \(1, 3, 2, 2\)"):
        to_pil(np.zeros((1, 3, 2, 2), np.float32))


@pytest.mark.parametrize(
    ("count", "columns", "size"), [(1, None, (4, 2)), (5, None, (12, 4)), (5, 2, (8, 6)), (3, 5, (20, 2))]
)
def test_grid_places_row_by_row(count: int, columns: int | None, size: tuple[int, int]) -> None:
    images = [Image.new("RGB", (4, 2), (index + 1, 0, 0)) for index in range(count)]
    grid = image_grid(images, columns)
    assert grid.size == size
    per_row = size[0] // 4
    for index in range(size[0] * size[1] // 8):
        pixel = grid.getpixel((index % per_row * 4 + 3, index // per_row * 2 + 1))
        assert pixel == (index + 1 if index < count else 0, 0, 0)


def test_grid_refuses_what_has_no_grid(image: Image.Image) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        image_grid([])
    with pytest.raises(ValueError, match=r"of one size, got \[\(2, 2\), \(64, 48\)\]"):
        image_grid([image, Image.new("RGB", (2, 2))])
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        image_grid([image], columns=0)


def test_pixels_survive_the_file(image: Image.Image, written: Path) -> None:
    with Image.open(written) as loaded:
        assert (loaded.format, loaded.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image))


def test_parameters_survive_the_file(written: Path) -> None:
    assert read_parameters(written) == PARAMETERS
    assert json.loads(texts(written.read_bytes())["safelight"]) == PARAMETERS


def test_people_read_the_parameters_as_automatic1111_writes_them(
    image: Image.Image, written: Path, tmp_path: Path
) -> None:
    assert texts(written.read_bytes())["parameters"] == (
        f"{PARAMETERS['prompt']}\nNegative prompt: blurry\n"
        "Steps: 25, Sampler: Euler, CFG scale: 7.5, Seed: 0, Size: 64x48, Model: emoji"
    )
    save_png(
        image, tmp_path / "plain.png", {"prompt": "caf\u00e9 \x00", "model": "a, b: c", "scheduler": "MyScheduler"}
    )
    data = (tmp_path / "plain.png").read_bytes()
    expected = 'Sampler: MyScheduler, Size: 64x48, Model: "a, b: c"'
    assert texts(data)["parameters"] == f"caf\u00e9 \ufffd\n{expected}"
    save_png(image, tmp_path / "unprompted.png", {"num_inference_steps": 2})
    assert texts((tmp_path / "unprompted.png").read_bytes())["parameters"] == "Steps: 2, Size: 64x48"


def test_origin_is_marked_in_xmp(image: Image.Image, written: Path, tmp_path: Path) -> None:
    def origin(path: Path) -> str | None:
        packet = texts(path.read_bytes())["XML:com.adobe.xmp"]
        (description,) = ET.fromstring(packet).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
        return description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")

    assert origin(written) == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    save_png(image, tmp_path / "other.png", {}, digital_source_type='a"<&>')
    assert origin(tmp_path / "other.png") == 'a"<&>'


def test_numpy_scalars_become_numbers(image: Image.Image, tmp_path: Path) -> None:
    save_png(image, tmp_path / "a.png", {"seed": np.int64(2**63 - 1), "guidance_scale": np.float32(0.5)})  # type: ignore[dict-item]
    assert read_parameters(tmp_path / "a.png") == {"seed": 2**63 - 1, "guidance_scale": 0.5}


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"seed": object()}, TypeError, "parameters must be JSON values, got object"),
        ({"guidance_scale": float("nan")}, ValueError, "cannot be written as JSON"),
        ({"prompt": "\ud800"}, ValueError, "cannot be written as JSON"),
    ],
)
def test_bad_parameters_leave_the_old_file(
    written: Path, image: Image.Image, parameters: dict[str, object], error: type[Exception], message: str
) -> None:
    before = written.read_bytes()
    with pytest.raises(error, match=message):
        save_png(image, written, parameters)  # type: ignore[arg-type]
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_a_failed_write_leaves_the_old_file(written: Path, image: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_write(_self: Image.Image, file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    before = written.read_bytes()
    monkeypatch.setattr(Image.Image, "save", half_write)
    with pytest.raises(OSError, match="disk full"):
        save_png(image, written, PARAMETERS)
    assert written.read_bytes() == before
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_path_must_be_a_png_in_a_folder(image: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png, got .*cat\.jpg"):
        save_png(image, tmp_path / "cat.jpg", {})
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere to write cat\.png into"):
        save_png(image, tmp_path / "nowhere" / "cat.png", {})


def test_reading_what_is_no_png_or_carries_nothing(tmp_path: Path, written: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_parameters(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png is no PNG file"):
        read_parameters(tmp_path / "text.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "bare.png")
    with pytest.raises(ValueError, match=r"bare\.png: it carries no parameters"):
        read_parameters(tmp_path / "bare.png")
    for end in (20, 70, 300):
        (tmp_path / "short.png").write_bytes(written.read_bytes()[:end])
        with pytest.raises(ValueError, match="truncated"):
            read_parameters(tmp_path / "short.png")
    flipped = bytearray(written.read_bytes())
    flipped[flipped.index(b"blurry")] ^= 1
    (tmp_path / "flipped.png").write_bytes(flipped)
    with pytest.raises(ValueError, match="damaged"):
        read_parameters(tmp_path / "flipped.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot read the parameters of .*: Expecting property name"),
        (b"[1]", "they are no JSON object"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b"[" * 100_000, "cannot read the parameters"),
        (b" " * 2_000_000, "text chunk of 2000014 bytes, more than the 1048576 allowed"),
    ],
)
def test_corrupt_json_is_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = with_text(tmp_path / "a.png", b"safelight\0\0\0\0\0" + content)
    with pytest.raises(ValueError, match=message):
        read_parameters(path)


def test_compressed_parameters_are_read_within_the_limit(tmp_path: Path) -> None:
    small = zlib.compress('{"prompt": "caf\u00e9"}'.encode())
    assert read_parameters(with_text(tmp_path / "a.png", b"safelight\0\x01\0\0\0" + small)) == {"prompt": "caf\u00e9"}
    assert read_parameters(with_text(tmp_path / "b.png", b"safelight\0\0" + zlib.compress(b'{"a": 1}'), b"zTXt")) == {
        "a": 1
    }
    assert read_parameters(with_text(tmp_path / "c.png", b'safelight\0{"a": 1}', b"tEXt")) == {"a": 1}
    bomb = zlib.compress(b" " * 50_000_000)
    with pytest.raises(ValueError, match="larger than 1048576 bytes"):
        read_parameters(with_text(tmp_path / "d.png", b"safelight\0\x01\0\0\0" + bomb))


def test_parameters_that_another_program_saved_again_are_read(written: Path, tmp_path: Path) -> None:
    with Image.open(written) as loaded:
        info = PngInfo()
        for keyword, text in loaded.text.items():  # type: ignore[attr-defined]
            info.add_text(keyword, text, zip=True)
        loaded.save(tmp_path / "again.png", pnginfo=info)
    assert read_parameters(tmp_path / "again.png") == PARAMETERS


def test_import_does_not_load_pillow() -> None:
    code = "import sys, safelight.runtime.image; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
