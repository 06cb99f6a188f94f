"""What a user brings: to the pixel what diffusers makes of it, and refused where diffusers goes on with nonsense."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from PIL import Image

from safelight.runtime import image_input
from safelight.runtime.image_input import (
    MAX_PIXELS,
    apply_overlay,
    blur,
    crop_region,
    open_image,
    preprocess_image,
    preprocess_mask,
    resize_nearest,
)

FACTOR = 8
MODES = ["RGB", "L", "RGBA", "LA", "P", "P with transparency", "1", "CMYK", "YCbCr"]
IMAGES = VaeImageProcessor(vae_scale_factor=FACTOR, do_convert_rgb=True)
MASKS = VaeImageProcessor(
    vae_scale_factor=FACTOR, do_normalize=False, do_binarize=True, do_convert_grayscale=True
)  # as in StableDiffusionInpaintPipeline


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Gradients and noise, with soft transparency where the mode has it."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 40, (height, width, 4))
    channels = [x / width, y / height, (x + y) / (width + height), np.sin(x / 9) / 2 + 0.5]
    pixels = (np.stack(channels, axis=-1) * 215 + noise).astype(np.uint8)
    rgba = Image.fromarray(pixels)
    if mode == "P with transparency":
        palette = rgba.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        palette.info["transparency"] = bytes(range(256))
        return palette
    if mode == "P":
        return rgba.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    return rgba.convert(mode) if mode in ("RGBA", "LA") else rgba.convert("RGB").convert(mode)


def painted(width: int, height: int, box: tuple[int, int, int, int], mode: str = "L") -> Image.Image:
    """A mask: black, with a white box."""
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask.convert(mode)


def oracle(processor: VaeImageProcessor, *args: Any, **options: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of palettes with transparency
        return processor.preprocess(*args, **options).numpy()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
@pytest.mark.parametrize("target", [(None, None), (64, 128), (200, 96), (95, 95), (None, 77)])
@pytest.mark.parametrize("crops_coords", [None, (10, 20, 91, 75), (-5, -5, 160, 110)])
def test_pictures_are_prepared_as_in_diffusers(
    mode: str, resize_mode: Any, target: tuple[int | None, int | None], crops_coords: Any
) -> None:
    source = picture(151, 100, mode)
    before = source.copy()
    options = {"resize_mode": resize_mode, "crops_coords": crops_coords}
    sample = preprocess_image(source, *target, factor=FACTOR, **options)
    expected = oracle(IMAGES, source, *target, **options)
    assert sample.dtype == np.float32
    np.testing.assert_array_equal(sample, expected)
    mask = preprocess_mask(source, *target, factor=FACTOR, **options)
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, oracle(MASKS, source, *target, **options))
    assert source.tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("size", "resize_mode", "expected"),
    [((451, 300), "default", (296, 448)), ((300, 451), "fill", (448, 296)), ((8, 15), "crop", (8, 8))],
)
def test_sizes_are_rounded_down(size: tuple[int, int], resize_mode: Any, expected: tuple[int, int]) -> None:
    source = picture(*size)
    sample = preprocess_image(source, factor=FACTOR, resize_mode=resize_mode)
    assert sample.shape == (1, 3, *expected)
    np.testing.assert_array_equal(sample, oracle(IMAGES, source, resize_mode=resize_mode))


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (37, 37), (1000, 20), (20, 1000), (513, 257)])
@pytest.mark.parametrize("target", [(64, 64), (96, 40), (40, 96), (256, 512), (8, 8)])
@pytest.mark.parametrize("resize_mode", ["fill", "crop"])
def test_proportions_of_all_kinds(size: tuple[int, int], target: tuple[int, int], resize_mode: Any) -> None:
    source = picture(*size)
    try:
        expected = oracle(IMAGES, source, *target, resize_mode=resize_mode)
    except ValueError:  # Pillow's: a side of no pixels
        with pytest.raises(ValueError, match="has no pixels"):
            preprocess_image(source, *target, factor=FACTOR, resize_mode=resize_mode)
        return
    np.testing.assert_array_equal(preprocess_image(source, *target, factor=FACTOR, resize_mode=resize_mode), expected)


def test_lists_make_a_batch() -> None:
    sources = [picture(50, 40, seed=seed) for seed in range(3)]
    sample = preprocess_image(sources, factor=FACTOR)
    assert sample.shape == (3, 3, 40, 48)
    np.testing.assert_array_equal(sample, oracle(IMAGES, sources))
    mixed = [picture(50, 40), picture(70, 30, "L")]
    np.testing.assert_array_equal(
        preprocess_image(mixed, 32, 32, factor=FACTOR), oracle(IMAGES, mixed, height=32, width=32)
    )


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


@pytest.mark.parametrize("target", [(None, None), (64, 24), (16, 80), (100, 100), (32, 40)])
def test_arrays_are_prepared_as_in_diffusers(target: tuple[int | None, int | None]) -> None:
    for image in (floats(50, 43, 3), floats(2, 50, 43, 3), [floats(50, 43, 3), floats(50, 43, 3) / 2]):
        before = np.copy(image)
        sample = preprocess_image(image, *target, factor=FACTOR)
        expected = oracle(IMAGES, image, *target)
        assert sample.dtype == np.float32
        np.testing.assert_array_equal(sample, expected)
        np.testing.assert_array_equal(image, before)
    masks = (
        floats(50, 43),
        floats(2, 50, 43),
        floats(50, 43, 1),
        floats(2, 50, 43, 1),
        [floats(50, 43), floats(50, 43)],
    )
    for mask in masks:
        before = np.copy(mask)
        got = preprocess_mask(mask, *target, factor=FACTOR)
        assert got.shape[1] == 1
        np.testing.assert_array_equal(got, oracle(MASKS, mask, *target))
        np.testing.assert_array_equal(mask, before)


def test_arrays_of_doubles_become_float32() -> None:
    image = np.random.default_rng(0).random((16, 16, 3))
    sample = preprocess_image(image, factor=FACTOR)
    assert sample.dtype == np.float32
    np.testing.assert_allclose(sample, oracle(IMAGES, image), rtol=0, atol=1e-6)


def test_nearest_neighbours_are_torchs() -> None:
    for old in range(1, 40):
        array = floats(1, 2, old, 7)
        for new in range(1, 90):
            expected = torch.nn.functional.interpolate(torch.from_numpy(array), size=(new, 5)).numpy()
            np.testing.assert_array_equal(resize_nearest(array, new, 5), expected)


def test_a_mask_turns_white_at_one_half() -> None:
    mask = np.full((8, 16), 0.5, np.float32)
    mask[:, 8:] = np.nextafter(np.float32(0.5), np.float32(0))
    assert preprocess_mask(mask, factor=FACTOR)[0, 0, 0].tolist() == [1.0] * 8 + [0.0] * 8
    gray = Image.fromarray(np.repeat(np.array([[127, 128]], np.uint8), 8, axis=0).repeat(8, axis=1))
    assert preprocess_mask(gray, factor=FACTOR)[0, 0, 0].tolist() == [0.0] * 8 + [1.0] * 8


def test_latents_come_back_as_they_are() -> None:
    latents = np.random.default_rng(0).normal(size=(2, 4, 6, 7)).astype(np.float32) * 5
    same = preprocess_image(latents, 512, 512, factor=FACTOR, latent_channels=4)
    np.testing.assert_array_equal(same, latents)
    np.testing.assert_array_equal(same, IMAGES.preprocess(torch.from_numpy(latents)).numpy())
    with pytest.raises(ValueError, match=r"\(height, width, 3\) or a batch of them, got \(2, 4, 6, 7\)"):
        preprocess_image(latents, factor=FACTOR, latent_channels=16)
    with pytest.raises(ValueError, match="latents must be finite"):
        preprocess_image(np.full((1, 4, 2, 2), np.nan), factor=FACTOR, latent_channels=4)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_blur_is_diffusers(mode: str) -> None:
    mask = painted(90, 60, (30, 10, 70, 33), mode)
    for blur_factor in (0, 1, 4, 33):
        assert blur(mask, blur_factor).tobytes() == VaeImageProcessor.blur(mask, blur_factor).tobytes()
    assert blur(mask).tobytes() == VaeImageProcessor.blur(mask).tobytes()


@pytest.mark.parametrize("mode", ["1", "P"])
def test_blur_takes_masks_that_diffusers_does_not(mode: str) -> None:
    mask = painted(90, 60, (30, 10, 70, 33), mode)
    with pytest.raises(ValueError, match=r"image has wrong mode|cannot filter"):
        VaeImageProcessor.blur(mask)
    assert blur(mask).tobytes() == blur(mask.convert("L")).tobytes()


def test_crop_regions_are_diffusers() -> None:
    random = np.random.default_rng(0)
    for _ in range(400):
        width, height = random.integers(1, 80, 2).tolist()
        left, upper = random.integers(0, [width, height]).tolist()
        right, lower = left + random.integers(1, width - left + 1), upper + random.integers(1, height - upper + 1)
        mask = painted(width, height, (left, upper, int(right), int(lower)))
        target = random.integers(1, 100, 2).tolist()
        pad = int(random.integers(0, 20))
        region = crop_region(mask, *target, pad=pad)
        assert region == VaeImageProcessor.get_crop_region(mask, *target, pad=pad)
        assert all(type(side) is int for side in region)


def test_a_mask_with_nothing_painted_has_no_region() -> None:
    with pytest.raises(ValueError, match="all black"):
        crop_region(Image.new("L", (20, 10)), 64, 64)
    with pytest.raises(ValueError, match="positive size"):
        crop_region(painted(20, 10, (3, 3, 5, 5)), 0, 64)
    with pytest.raises(ValueError, match="positive size"):
        crop_region(painted(20, 10, (3, 3, 5, 5)), 64, 64, pad=-1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("crop_coords", [None, (20, 5, 84, 69), (0, 0, 91, 40)])
def test_overlays_are_diffusers(mode: str, crop_coords: Any) -> None:
    before, mask = picture(91, 70, mode), blur(painted(91, 70, (30, 20, 60, 50)))
    made = picture(64, 64, seed=1) if crop_coords else picture(91, 70, seed=1)
    expected = IMAGES.apply_overlay(mask, before, made, crop_coords)
    combined = apply_overlay(mask, before, made, crop_coords)
    assert combined.mode == "RGB"
    assert combined.tobytes() == expected.tobytes()


def test_overlays_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask and picture .* \(20, 20\) and \(30, 20\)"):
        apply_overlay(Image.new("L", (20, 20)), picture(30, 20), picture(30, 20))
    with pytest.raises(ValueError, match=r"\(40, 20\) and \(30, 20\)"):
        apply_overlay(Image.new("L", (30, 20)), picture(30, 20), picture(40, 20))


def forged_png(path: Path, width: int, height: int) -> Path:
    """A header that promises pixels, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("size", [(10_000, 9_000), (60_000, 60_000), (MAX_PIXELS + 1, 1)])
@pytest.mark.parametrize("limit_of_pillow", [MAX_PIXELS, None])
def test_bombs_are_refused_by_their_header(
    size: tuple[int, int], limit_of_pillow: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit_of_pillow)
    path = forged_png(tmp_path / "bomb.png", *size)
    with pytest.raises(ValueError, match=r"pixels.*\d"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(path) as lazy, pytest.raises(ValueError, match=f"at most {MAX_PIXELS} pixels"):
        preprocess_image(lazy, 64, 64, factor=FACTOR)


def test_small_pictures_that_would_become_bombs_are_refused() -> None:
    line = Image.new("RGB", (1, 10_000))
    with pytest.raises(ValueError, match="the resized picture must have at most"):
        preprocess_image(line, 512, 512, factor=FACTOR, resize_mode="crop")
    with pytest.raises(ValueError, match=r"the crop .* must have at most"):
        preprocess_image(line, 512, 512, factor=FACTOR, crops_coords=(0, 0, 100_000, 100_000))
    with pytest.raises(ValueError, match="the resized picture must have at most"):
        preprocess_image(line, 80_000, 80_000, factor=FACTOR)
    with pytest.raises(ValueError, match="has no pixels"):
        preprocess_image(line, factor=1, crops_coords=(0, 5, 1, 5))


@pytest.mark.parametrize("prepare", [preprocess_image, preprocess_mask])
@pytest.mark.parametrize("resize_mode", ["default", "fill", "crop"])
def test_large_results_are_refused_before_they_are_made(
    prepare: Any, resize_mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_input, "MAX_PIXELS", 4096)  # the true limit would take gigabytes where it is forgotten
    line, square = picture(16, 256), np.full((64, 64), 0.5)
    given = square if prepare is preprocess_mask else np.stack([square] * 3, axis=-1)
    assert prepare(line, 64, 64, factor=FACTOR, resize_mode="fill").shape[2:] == (64, 64)
    assert prepare(given, 32, 128, factor=FACTOR).shape[2:] == (32, 128)
    with pytest.raises(ValueError, match="the resized picture must have at most 4096 pixels, got 72 times 64"):
        prepare(line, 64, 72, factor=FACTOR, resize_mode=resize_mode)
    with pytest.raises(ValueError, match="the resized picture must have at most 4096 pixels, got 72 times 64"):
        prepare(given, 64, 72, factor=FACTOR)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_opened_upright(orientation: int, tmp_path: Path) -> None:
    source = picture(40, 24)
    exif = source.getexif()
    exif[0x0112] = orientation
    path = tmp_path / "photograph.jpg"
    source.save(path, exif=exif)
    opened = open_image(path)
    assert opened.size == ((40, 24) if orientation < 5 else (24, 40))
    assert opened.tobytes() == load_image(str(path)).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "P with transparency", "1"])
def test_pictures_are_opened_in_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture(40, 24, mode).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = load_image(str(path))
    opened = open_image(str(path))
    assert opened.mode == "RGB"
    assert opened.tobytes() == expected.tobytes()


def test_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no picture at"):
        open_image(tmp_path / "missing.png")
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(ValueError, match="no picture of a known format: PNG, JPEG"):
        open_image(text)
    picture(40, 24).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    with pytest.raises(ValueError, match="damaged"):
        open_image(tmp_path / "half.png")
    picture(40, 24).save(tmp_path / "script.eps")
    with pytest.raises(ValueError, match="no picture of a known format"):
        open_image(tmp_path / "script.eps")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_damage_of_any_kind_is_a_value_error(suffix: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / f"picture.{suffix}"
    picture(40, 24).save(path)
    data = path.read_bytes()
    refused = 0
    for attempt in range(150):
        damaged = bytearray(data[: random.integers(len(data))] if attempt % 3 == 0 else data)
        for _ in range(attempt % 3 * 3):
            damaged[random.integers(min(len(data), 300))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of the metadata
                open_image(path)
        except ValueError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused_not_clipped(dtype: Any, tmp_path: Path) -> None:
    deep = Image.fromarray((np.arange(600).reshape(20, 30) * 100).astype(dtype))
    for prepare in (preprocess_image, preprocess_mask):
        with pytest.raises(ValueError, match="must have 8 bits a channel, got mode"):
            prepare(deep, factor=FACTOR)
    deep.save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep.tiff must have 8 bits a channel"):
        open_image(tmp_path / "deep.tiff")


HALF = np.full((16, 16, 3), 0.5)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        ([], {}, "at least one image, got an empty list"),
        (np.zeros((0, 16, 16, 3)), {}, "at least one image"),
        (np.zeros((16, 0, 3)), {}, "at least one image"),
        (np.where(HALF > 0, np.nan, 0), {}, "got NaN or infinity"),
        (np.zeros((16, 16, 4)), {}, r"must be \(height, width, 3\) or a batch of them, got \(16, 16, 4\)"),
        (np.zeros((1, 3, 16, 16)), {}, r"got \(1, 3, 16, 16\)"),
        (np.zeros((16, 16)), {}, r"got \(16, 16\)"),
        (np.zeros((16, 16, 3), np.uint8), {}, r"floats in \[0, 1\], got uint8"),
        (HALF * 255, {}, r"must lie in \[0, 1\], got values from 127.5 to 127.5"),
        (-HALF, {}, "got values from -0.5 to -0.5"),
        ([HALF, HALF[:8]], {}, r"arrays in a list must be of one size, got \[\(8, 16\), \(16, 16\)\]"),
        ([picture(16, 16), picture(24, 16)], {}, r"different sizes need height and width"),
        ([picture(16, 16), picture(24, 16)], {"height": 16}, r"different sizes need height and width"),
        (picture(5, 300), {}, "at least 8 pixels high and wide, got 300 and 5"),
        (HALF, {"height": 4}, "at least 8 pixels high and wide, got 4 and 16"),
        (HALF, {"resize_mode": "fill"}, "arrays are neither cropped nor filled"),
        (HALF, {"crops_coords": (0, 0, 8, 8)}, "arrays are neither cropped nor filled"),
        (picture(16, 16), {"resize_mode": "stretch"}, "resize_mode must be .* got 'stretch'"),
        (picture(16, 16), {"crops_coords": (9, 0, 3, 8)}, "has no pixels"),
    ],
)
def test_bad_images_are_refused(image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        preprocess_image(image, factor=FACTOR, **options)
    assert "\n" not in str(caught.value)


def test_bad_masks_are_refused() -> None:
    for shape in ((16, 16, 3), (1, 16, 16, 3), (16,)):
        with pytest.raises(ValueError, match=r"\(height, width, 1\) or a batch of them"):
            preprocess_mask(np.zeros(shape), factor=FACTOR)
    with pytest.raises(ValueError, match=r"floats in .* got bool"):
        preprocess_mask(np.zeros((16, 16), bool), factor=FACTOR)


@pytest.mark.parametrize("image", ["cat.png", None, [picture(16, 16), HALF], torch.zeros(1, 3, 16, 16)])
def test_other_types_are_refused(image: Any) -> None:
    with pytest.raises(TypeError, match="all of Pillow or all of NumPy"):
        preprocess_image(image, factor=FACTOR)
