"""Depth to image, from photographs, with the estimator and with a given depth map, against diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import PROMPT, Pair, assert_same, assert_same_pictures, open_pair, photograph, use_scheduler

from safelight.runtime import DiffusionPipeline, StableDiffusionDepth2ImgPipeline

pytestmark = [
    # diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # of several prompts for one image
    pytest.mark.filterwarnings("ignore:.*Initial images are now duplicating:FutureWarning"),
    # diffusers turns autocast on where there is none
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
]

SIZE = (104, 72)


@pytest.fixture(scope="module")
def pair(depth_export: Path, depth_checkpoint: Path) -> Pair:
    return open_pair("StableDiffusionDepth2ImgPipeline", depth_export, depth_checkpoint)


@pytest.fixture(autouse=True)
def ddim(pair: Pair) -> None:
    use_scheduler(pair, "DDIMScheduler")


def test_the_folder_names_the_class(depth_export: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(depth_export)
    assert type(pipeline) is StableDiffusionDepth2ImgPipeline
    assert "depth_estimator" in repr(pipeline)


def test_the_estimators_graph_says_what_it_gives(depth_export: Path) -> None:
    estimator = DiffusionPipeline.from_pretrained(depth_export).depth_estimator
    (pixel_values,), (depth,) = estimator.network.inputs, estimator.network.outputs
    found = estimator(np.zeros((2, *pixel_values.shape[1:]), np.float32)).predicted_depth
    assert (pixel_values.shape[0], depth.shape[0]) == ("batch", "batch")
    assert depth.shape[1:] == found.shape[1:] == (96, 96)  # 16 for a patch of 8, from 48 x 48


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
def test_estimated_depth_equals_diffusers(pair: Pair, photo: str) -> None:
    assert_same_pictures(pair, prompt=PROMPT, image=photograph(photo, SIZE), num_inference_steps=8, strength=0.7)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"num_images_per_prompt": 2, "seed": [7, 5]}, id="a seed per image"),
        pytest.param({"prompt": ["a", "b"], "negative_prompt": ["c", "d"]}, id="two prompts"),
        pytest.param({"strength": 1.0, "eta": 0.5}, id="the whole way, noise in the steps"),
        pytest.param({"image": photograph("chelsea", (109, 83))}, id="sides rounded down"),
    ],
)
def test_options_equal_diffusers(pair: Pair, options: dict[str, Any]) -> None:
    given = {"prompt": PROMPT, "image": photograph("chelsea", SIZE), "num_inference_steps": 6, "strength": 0.7}
    assert_same(pair, **given | options)


def test_a_given_depth_map_equals_diffusers(pair: Pair, depth_export: Path) -> None:
    depth = np.random.default_rng(0).uniform(2, 900, (1, 40, 60)).astype(np.float32)
    options: dict[str, Any] = {"prompt": PROMPT, "image": photograph("coffee", SIZE), "num_inference_steps": 6}
    assert_same(pair, **options, depth_map=depth)
    pipeline = StableDiffusionDepth2ImgPipeline.from_pretrained(depth_export)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(**options, depth_map=depth, seed=0)
    assert "network" not in pipeline.depth_estimator.__dict__, "the estimator is not opened where it is not used"


def test_the_depth_matters(pair: Pair) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "image": photograph("coffee", SIZE), "num_inference_steps": 4}
    ramps = [np.linspace(0, 1, 72 * 104, dtype=np.float32).reshape(1, 72, 104)[..., ::step] for step in (1, -1)]
    first, second = (
        pair[0](**options, depth_map=ramp, seed=0, output_type="latent").images for ramp in (ramps[0], ramps[1] ** 3)
    )
    assert np.abs(first - second).max() > 0.01


def test_arrays_are_images(pair: Pair) -> None:
    image = photograph("coffee", SIZE)
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 3, "seed": 0, "output_type": "np"}
    expected = pair[0](image=image, **options).images
    found = pair[0](image=np.asarray(image, dtype=np.float32) / 255, **options).images
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None}, r"^give an image$"),
        ({"strength": 1.5}, r"^strength must lie in \[0, 1\], got 1.5$"),
        ({"depth_map": np.random.default_rng(0).random((2, 8, 8))}, "2 depth maps for 1 pictures"),
        ({"depth_map": np.zeros((8, 8))}, r"depth must be \(batch, height, width\)|must be"),
        ({"depth_map": np.full((1, 8, 8), np.nan)}, "finite|NaN"),
    ],
)
def test_bad_calls_are_refused(pair: Pair, options: dict[str, Any], message: str) -> None:
    given = {"prompt": PROMPT, "image": photograph("coffee", SIZE), "num_inference_steps": 10}
    with pytest.raises(ValueError, match=message):
        pair[0](**given | options)
