"""What the depth estimator sees, against transformers; what becomes of its depth, against torch and diffusers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from diffusers import StableDiffusionDepth2ImgPipeline
from PIL import Image
from transformers import DPTImageProcessorPil

from safelight.runtime.depth import DPTImageProcessor, depth_map_to_latents


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3), uint8: waves, an edge and some noise."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 17 + columns / 29), np.cos(rows * columns / 9999), np.where(rows > columns, 0.9, -0.9)]
    noise = np.random.default_rng(seed).normal(0, 0.05, (height, width, 3))
    return np.clip(127.5 + 120 * (np.stack(waves, -1) + noise), 0, 255).astype(np.uint8)


def both(images, **config):
    ours = DPTImageProcessor.from_config(DPTImageProcessorPil(**config).to_dict())(images)["pixel_values"]
    expected = np.asarray(DPTImageProcessorPil(**config)(images=images, return_tensors="np")["pixel_values"])
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
    ids=repr,
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


def interpolated_and_scaled(depth: np.ndarray, height: int, width: int) -> np.ndarray:
    """What diffusers does after the estimator, by diffusers."""
    image = Image.new("RGB", (8 * width, 8 * height))
    depth_map = torch.from_numpy(depth)
    pipeline = SimpleNamespace(vae_scale_factor=8)
    return StableDiffusionDepth2ImgPipeline.prepare_depth_map(
        pipeline, image, depth_map, len(depth), False, torch.float32, torch.device("cpu")
    ).numpy()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 384, 384), (64, 64)),
        ((3, 384, 384), (96, 64)),
        ((2, 384, 512), (77, 131)),
        ((1, 384, 384), (384, 384)),
        ((2, 20, 30), (64, 48)),
        ((1, 2, 5), (7, 1)),
        ((1, 3, 2), (1, 9)),
    ],
    ids=str,
)
def test_depth_equals_diffusers(shape, size):
    depth = (1000 * np.random.default_rng(0).random(shape)).astype(np.float32)
    result = depth_map_to_latents(depth, *size)
    assert result.shape == (shape[0], 1, *size)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, interpolated_and_scaled(depth, *size), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(result.min(axis=(1, 2, 3)), -1)
    np.testing.assert_array_equal(result.max(axis=(1, 2, 3)), 1)


def test_depth_of_an_image_does_not_depend_on_the_others():
    depth = np.random.default_rng(0).random((2, 40, 40), np.float32) * [[[1]], [[100]]]
    both = depth_map_to_latents(depth, 16, 16)
    np.testing.assert_array_equal(both[1:], depth_map_to_latents(depth[1:], 16, 16))


def test_the_whole_way_equals_diffusers():
    torch.manual_seed(0)
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=16,
    )
    estimator = transformers.DPTForDepthEstimation(config).eval()
    for parameter in estimator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    extractor = DPTImageProcessorPil(size={"height": 64, "width": 64})
    pipeline = SimpleNamespace(vae_scale_factor=8, feature_extractor=extractor, depth_estimator=estimator)
    images = [Image.fromarray(picture(256, 192, seed)) for seed in (0, 1)]
    with torch.no_grad(), pytest.warns(UserWarning, match="autocast"):
        expected = StableDiffusionDepth2ImgPipeline.prepare_depth_map(
            pipeline, images, None, 2, False, torch.float32, torch.device("cpu")
        ).numpy()
    pixel_values = DPTImageProcessor.from_config(extractor.to_dict())(images)["pixel_values"]
    with torch.no_grad():
        depth = estimator(torch.from_numpy(pixel_values)).predicted_depth.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(depth_map_to_latents(depth, 32, 24), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "size", "message"),
    [
        (np.zeros((4, 4)), (2, 2), r"\(batch, height, width\), got \(4, 4\)"),
        (np.zeros((0, 4, 4)), (2, 2), r"got \(0, 4, 4\)"),
        (np.zeros((1, 4, 4)), (2, 2), "equally deep everywhere"),
        (np.full((1, 5, 4), 0.3), (7, 3), "equally deep everywhere"),
        (np.stack([np.eye(4), np.ones((4, 4))]), (2, 2), "equally deep everywhere"),
        (np.full((1, 4, 4), np.inf), (2, 2), "NaN or infinity"),
        (np.ones((1, 4, 4)), (0, 2), "at least 1, got 0 and 2"),
    ],
    ids=["no batch", "empty", "zero", "flat", "one flat", "infinite", "no size"],
)
def test_refuses_depth_that_cannot_be_used(depth, size, message):
    with pytest.raises(ValueError, match=message):
        depth_map_to_latents(depth, *size)
