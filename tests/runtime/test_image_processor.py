"""What depth estimators and CLIP see, against transformers."""

import json
import re

import numpy as np
import pytest
import torch
from pairs import photograph
from PIL import Image
from transformers import CLIPImageProcessorPil, DPTImageProcessorPil

from safelight.runtime.image_processor import CLIPImageProcessor, DPTImageProcessor

CLIP = (CLIPImageProcessor, CLIPImageProcessorPil)
DPT = (DPTImageProcessor, DPTImageProcessorPil)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3), uint8: waves, an edge and some noise."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 17 + columns / 29), np.cos(rows * columns / 9999), np.where(rows > columns, 0.9, -0.9)]
    noise = np.random.default_rng(seed).normal(0, 0.05, (height, width, 3))
    return np.clip(127.5 + 120 * (np.stack(waves, -1) + noise), 0, 255).astype(np.uint8)


def both(images, processor=DPT, **config):
    processor, oracle = processor
    ours = processor.from_config(oracle(**config).to_dict())(images)["pixel_values"]
    expected = np.asarray(oracle(**config)(images=images, return_tensors="np")["pixel_values"])
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    return ours, expected


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (480, 641), (301, 200), (384, 384)], ids=str)
def test_equals_transformers(size):
    ours, expected = both(Image.fromarray(picture(*size)))
    assert ours.shape == (1, 3, 384, 384)
    assert ours.std() > 0.3
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "config",
    [
        {"keep_aspect_ratio": True, "ensure_multiple_of": 32},
        {"keep_aspect_ratio": True, "size": {"height": 600, "width": 200}},
        {"ensure_multiple_of": 50, "size": {"height": 384, "width": 275}},
        {"ensure_multiple_of": 32, "size": {"height": 80, "width": 144}},  # 2.5 and 4.5 of them
        {"resample": 2, "size": {"height": 100, "width": 30}},
        {"resample": 0},
        {"resample": 1},
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"image_mean": [1, 2, 3], "image_std": [1, 2, 4], "do_rescale": False},
    ],
    ids=str,
)
def test_equals_transformers_with_other_configurations(config):
    ours, expected = both([Image.fromarray(picture(240, 360, seed)) for seed in (0, 1)], **config)
    assert ours.shape[0] == 2
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_equals_transformers_for_whole_numbers_in_an_array(dtype):
    images = np.stack([picture(300, 200), picture(300, 200, 1)]).astype(dtype)
    ours, expected = both(images)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(ours[1:], both(list(images)[1])[0])
    np.testing.assert_array_equal(ours[:1], both(Image.fromarray(picture(300, 200)))[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("config", [{}, {"do_rescale": False}], ids=str)
def test_equals_transformers_for_floats_in_0_1(dtype, config):
    """Which transformers rescales though they are rescaled: only `do_rescale` false leaves much of them."""
    image = np.random.default_rng(0).random((200, 300, 3)).astype(dtype)
    ours, expected = both(image, **config)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    assert ours.std() < 0.01 if not config else ours.std() > 0.2


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (480, 640), (300, 200)], ids=str)
def test_is_within_two_levels_of_transformers_with_torchvision(size):
    """Whose resize of 8 bits is this function of torch; where it is installed, diffusers uses it."""
    pixels = picture(*size)
    ours = DPTImageProcessor()(Image.fromarray(pixels))["pixel_values"]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    resized = torch.nn.functional.interpolate(image, size=(384, 384), mode="bicubic", antialias=True)
    levels = np.abs(ours - (resized.numpy() / 127.5 - 1)) * 127.5
    assert levels.max() < 2.01
    assert levels.mean() < 0.3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(picture(50, 60)).convert(mode)
    processor = DPTImageProcessor()
    np.testing.assert_array_equal(
        processor(image)["pixel_values"], processor(image.convert("RGB"))["pixel_values"], strict=True
    )


def test_a_palette_with_transparencies_is_no_warning():
    """The colours remain, whatever they are transparent to."""
    image = Image.fromarray(picture(50, 60)).convert("P", palette=Image.Palette.ADAPTIVE)
    opaque = DPTImageProcessor()(image)["pixel_values"]
    image.info["transparency"] = bytes(range(256))
    np.testing.assert_array_equal(DPTImageProcessor()(image)["pixel_values"], opaque, strict=True)


def test_leaves_its_input_as_it_was():
    image = picture(50, 60)
    before = image.copy()
    DPTImageProcessor(do_resize=False)(image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"image_processor_type": None, "feature_extractor_type": "DPTFeatureExtractor", "size": 384},
        {"image_processor_type": "DPTImageProcessorFast", "size": [384, 384], "do_pad": False, "size_divisor": None},
    ],
    ids=["transformers 5", "a feature extractor's", "a fast processor's"],
)
def test_reads_what_checkpoints_have(tmp_path, change):
    DPTImageProcessorPil(keep_aspect_ratio=True, ensure_multiple_of=32).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    expected = DPTImageProcessor(keep_aspect_ratio=True, ensure_multiple_of=32)
    assert DPTImageProcessor.from_pretrained(tmp_path) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type must be one of .* 'CLIPImageProcessor'"),
        ({"do_pad": True}, "do_pad = True is not implemented"),
        ({"size": {"shortest_edge": 384}}, "size must have height and width, got {'shortest_edge': 384}"),
        ({"size": "384"}, "size must be of type int, got '384'"),
        ({"size": 0}, "must be positive"),
        ({"ensure_multiple_of": 0}, "must be positive"),
        ({"resample": 7}, r"resample must be one of \[0, 1, 2, 3, 4, 5\], got 7"),
        ({"resample": "bicubic"}, "resample must be of type int"),
        ({"do_rescale": 1}, "do_rescale must be of type bool, got 1"),
        ({"image_mean": [0.5]}, "one number for red, green and blue"),
        ({"image_std": [0.5, 0.5, 0]}, "the latter not 0"),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(value),
)
def test_refuses_other_configurations(tmp_path, config, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        DPTImageProcessor.from_pretrained(tmp_path)


def test_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        DPTImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "there are none"),
        ("cat.png", TypeError, "PIL image or an array, got str"),
        (None, TypeError, "got NoneType"),
        (np.zeros((8, 8)), ValueError, r"\(height, width, 3\), got \(8, 8\)"),
        (np.zeros((3, 8, 8)), ValueError, r"got \(3, 8, 8\)"),
        (np.zeros((0, 8, 3)), ValueError, r"got \(0, 8, 3\)"),
        (np.full((8, 8, 3), np.nan), ValueError, "finite"),
        (np.full((8, 8, 3), "a"), ValueError, "finite numbers"),
        (np.full((8, 8, 3), -0.5), ValueError, "got values from -0.5 to -0.5"),
        (np.full((8, 8, 3), 100.5), ValueError, "got values from 100.5 to 100.5"),
        (np.full((8, 8, 3), 256), ValueError, "got values from 256 to 256"),
        (Image.new("I;16", (8, 8)), ValueError, "mode I;16"),
        (Image.new("F", (8, 8)), ValueError, "mode F"),
        (Image.new("1", (10_000, 9_000)), ValueError, "an image must have at most 89478485 pixels"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9A-F]+", "", repr(value)),  # no addresses: the same names in every process
)
def test_refuses_what_is_no_picture(images, error, message):
    with pytest.raises(error, match=message):
        DPTImageProcessor()(images)


def test_refuses_pictures_that_come_out_in_several_sizes():
    images = [Image.fromarray(picture(*size)) for size in ((60, 80), (60, 90))]
    assert DPTImageProcessor()(images)["pixel_values"].shape == (2, 3, 384, 384)
    with pytest.raises(ValueError, match=r"one size in a batch, they come out as \[\(256, 384\), \(288, 384\)\]"):
        DPTImageProcessor(keep_aspect_ratio=True)(images)
    with pytest.raises(ValueError, match="1 x 999 would be resized to 0 x 999"):
        DPTImageProcessor(keep_aspect_ratio=True, size=(1, 384), ensure_multiple_of=3)(np.zeros((1, 999, 3)))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("astronaut", None),
        ("coffee", None),
        ("chelsea", None),
        ("coffee", (225, 224)),
        ("chelsea", (97, 501)),
        ("astronaut", (1024, 768)),
        ("astronaut", (64, 64)),
        ("coffee", (224, 224)),
    ],
)
def test_clips_equals_transformers_on_photographs(name, size):
    ours, expected = both(photograph(name, size), CLIP)
    assert ours.shape == (1, 3, 224, 224)
    assert ours.std() > 0.3
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 96}, "crop_size": {"height": 64, "width": 48}},
        {"size": {"shortest_edge": 97}, "crop_size": 96},
        {"size": {"height": 100, "width": 130}, "crop_size": 100},
        {"do_center_crop": False, "size": {"height": 70, "width": 50}},
        {"do_center_crop": False, "size": {"shortest_edge": 50}},
        {"do_resize": False, "crop_size": 99},
        {"resample": 2},
        {"do_rescale": False},
        {"do_normalize": False, "rescale_factor": 1 / 127.5},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    ],
    ids=str,
)
def test_clips_equals_transformers_with_other_configurations(config):
    ours, expected = both([photograph("chelsea", (200, 150)), photograph("coffee", (200, 150))], CLIP, **config)
    assert ours.shape[0] == 2
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224},
        {"image_processor_type": "CLIPImageProcessorFast", "size": [224], "do_pad": None, "do_rescale": None},
    ],
    ids=["transformers 5", "a feature extractor's", "a fast processor's"],
)
def test_clips_reads_what_checkpoints_have(tmp_path, change):
    CLIPImageProcessorPil(image_std=[0.5, 0.5, 0.5]).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert CLIPImageProcessor.from_pretrained(tmp_path) == CLIPImageProcessor(image_std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "DPTImageProcessor"}, "image_processor_type must be one of CLIP.* 'DPTImageProc"),
        ({"do_pad": True}, "do_pad = True is not implemented"),
        (
            {"size": {"shortest_edge": 224, "longest_edge": 300}},
            "size must have shortest_edge, or height",
        ),
        ({"crop_size": {"shortest_edge": 224}}, "crop_size must have height and width, got {'shortest_edge': 224}"),
        ({"size": [1, 2, 3]}, r"size must be one positive number or two, .* got \[1, 2, 3\] and \[224, 224\]"),
        ({"crop_size": 0}, r"and crop_size two, got \[224\] and \[0, 0\]"),
        ({"image_mean": {"height": 1, "width": 2}}, "image_mean must be of type float, got {'height': 1, 'width': 2}"),
        ({"do_center_crop": "yes"}, "do_center_crop must be of type bool, got 'yes'"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_clips_refuses_other_configurations(tmp_path, config, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{tmp_path}.*{message}"):
        CLIPImageProcessor.from_pretrained(tmp_path)


def test_clips_refuses_pictures_that_are_smaller_than_the_crop():
    with pytest.raises(ValueError, match="is resized to 60 x 90 is too small for a crop of 64 x 64"):
        CLIPImageProcessor(size=(60,), crop_size=(64, 64))(photograph("coffee", (300, 200)))
