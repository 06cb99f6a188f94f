"""Image to image, from photographs, against diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import PROMPT, Pair, assert_same, assert_same_pictures, call_both, open_pair, photograph, use_scheduler

from safelight.runtime import StableDiffusionImg2ImgPipeline

pytestmark = [
    # diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # of several prompts for one image
    pytest.mark.filterwarnings("ignore:.*Initial images are now duplicating:FutureWarning"),
]

NAME = "StableDiffusionImg2ImgPipeline"
SIZE = (104, 72)


@pytest.fixture(scope="module")
def pair(linear_export: Path, linear_checkpoint: Path) -> Pair:
    return open_pair(NAME, linear_export, linear_checkpoint)


@pytest.fixture(autouse=True)
def ddim(pair: Pair) -> None:
    use_scheduler(pair, "DDIMScheduler")


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
def test_photographs_equal_diffusers(pair: Pair, photo: str) -> None:
    assert_same_pictures(pair, prompt=PROMPT, image=photograph(photo, SIZE), num_inference_steps=10, strength=0.6)


@pytest.mark.parametrize(
    "scheduler",
    [
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "DDPMScheduler",
    ],
)
def test_schedulers_equal_diffusers(pair: Pair, scheduler: str) -> None:
    use_scheduler(pair, scheduler)
    assert_same(pair, prompt=PROMPT, image=photograph("coffee", SIZE), num_inference_steps=10, strength=0.5)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"strength": 1.0}, id="the whole way"),
        pytest.param({"strength": 0.1}, id="one step"),
        pytest.param({"guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"clip_skip": 1, "negative_prompt": "dog"}, id="clip skip"),
        pytest.param({"num_images_per_prompt": 3}, id="images per prompt"),
        pytest.param({"num_images_per_prompt": 2, "seed": [7, 5]}, id="a seed per image"),
        pytest.param({"prompt": ["a", "b"], "negative_prompt": ["c", "d"]}, id="two prompts"),
        pytest.param({"eta": 0.7, "seed": 3}, id="noise in the steps"),
    ],
)
def test_options_equal_diffusers(pair: Pair, options: dict[str, Any]) -> None:
    given = {"prompt": PROMPT, "image": photograph("chelsea", SIZE), "num_inference_steps": 10, "strength": 0.6}
    assert_same(pair, **given | options)


def test_several_images_equal_diffusers(pair: Pair) -> None:
    images = [photograph("chelsea", SIZE), photograph("coffee", SIZE)]
    options: dict[str, Any] = {"prompt": ["a", "b"], "image": images, "num_inference_steps": 5, "strength": 0.8}
    assert_same(pair, **options)
    assert_same(pair, **options, seed=[1, 2])
    assert_same(pair, **options, num_images_per_prompt=2, seed=[1, 2, 3, 4])


def test_sides_that_the_autoencoder_cannot_make_are_rounded_down(pair: Pair) -> None:
    found, expected = call_both(
        pair, prompt=PROMPT, image=photograph("chelsea", (109, 83)), num_inference_steps=2, output_type="np"
    )
    assert found.shape == expected.shape == (1, 80, 104, 3)
    assert_same(pair, prompt=PROMPT, image=photograph("chelsea", (109, 83)), num_inference_steps=2)


def test_arrays_are_images(pair: Pair) -> None:
    image = photograph("coffee", SIZE)
    array = np.asarray(image, dtype=np.float32) / 255
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 2, "seed": 0, "output_type": "np"}
    expected = pair[0](image=image, **options).images
    np.testing.assert_allclose(pair[0](image=array, **options).images, expected, atol=1e-6)
    np.testing.assert_allclose(pair[0](image=array[None], **options).images, expected, atol=1e-6)


def test_latents_are_images(pair: Pair) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 9, 13), dtype=np.float32)
    assert_same(pair, prompt=PROMPT, image=latents, num_inference_steps=4)


def test_custom_timesteps_equal_diffusers(pair: Pair) -> None:
    use_scheduler(pair, "DDPMScheduler")
    options: dict[str, Any] = {"prompt": PROMPT, "image": photograph("coffee", SIZE), "strength": 0.5}
    assert_same(pair, **options, timesteps=[900, 600, 400, 100])


def test_the_picture_shows_less_of_the_image_as_strength_grows(pair: Pair) -> None:
    image = photograph("astronaut", (80, 80))
    clean = pair[0].vae.encode((np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1)[None]).mode()
    options: dict[str, Any] = {"prompt": PROMPT, "image": image, "seed": 0, "output_type": "latent"}
    drifts = [
        np.abs(pair[0](**options, num_inference_steps=20, strength=strength).images - pair[0].vae.scale(clean)).mean()
        for strength in (0.05, 0.3, 0.9)
    ]
    assert drifts == sorted(drifts)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image": None}, ValueError, r"^give an image$"),
        ({"strength": 1.01}, ValueError, r"^strength must lie in \[0, 1\], got 1.01$"),
        ({"strength": -0.1}, ValueError, r"^strength must lie in \[0, 1\], got -0.1$"),
        ({"strength": float("nan")}, ValueError, r"^strength must lie in \[0, 1\], got nan$"),
        ({"strength": 0}, ValueError, r"^strength 0 leaves none of 10 steps: raise either$"),
        ({"strength": 0.09}, ValueError, r"^strength 0.09 leaves none of 10 steps: raise either$"),
        ({"prompt": ["a", "b", "c"], "image": [photograph("coffee", SIZE)] * 2}, ValueError, "2 images for 3 pictures"),
        ({"image": [photograph("coffee", SIZE)] * 2}, ValueError, "2 images for 1 pictures"),
        ({"image": "coffee.png"}, TypeError, "image"),
        ({"image": np.zeros((8, 8, 2))}, ValueError, r"^an array must be \(height, width, 3\)"),
        ({"image": np.full((8, 8, 3), np.nan)}, ValueError, "NaN|finite"),
        ({"output_type": "tensor"}, ValueError, "output_type must be one of"),
    ],
)
def test_bad_calls_are_refused(pair: Pair, options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"prompt": PROMPT, "image": photograph("coffee", SIZE), "num_inference_steps": 10}
    with pytest.raises(error, match=message):
        pair[0](**given | options)


def test_it_opens_a_folder_for_text_to_image(linear_export: Path) -> None:
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(linear_export)
    assert type(pipeline) is StableDiffusionImg2ImgPipeline
    assert repr(pipeline).startswith("StableDiffusionImg2ImgPipeline {")
