"""What becomes of an estimated depth, against torch and diffusers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from diffusers import StableDiffusionDepth2ImgPipeline
from pairs import photograph
from PIL import Image
from transformers import DPTImageProcessorPil

from safelight.runtime.depth import depth_map_to_latents
from safelight.runtime.image_processor import DPTImageProcessor


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
    images = [photograph(name, (192, 256)) for name in ("coffee", "chelsea")]
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
