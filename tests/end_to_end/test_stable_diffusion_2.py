"""Stable Diffusion 2 against diffusers: velocities, scores in float32, OpenCLIP's padding, a UNet of 9 channels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from pairs import PROMPT, Pair, assert_same, assert_same_pictures, open_pair, photograph, relative, use_scheduler
from PIL import Image

import safelight.runtime
from safelight.runtime import DDIMScheduler, DiffusionPipeline, StableDiffusionInpaintPipeline

pytestmark = [
    # diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

Tiny = Callable[[str], tuple[Path, Path]]
SIZE = (104, 72)


@pytest.fixture(scope="module")
def pair(tiny: Tiny) -> Pair:
    return open_pair("StableDiffusionPipeline", *tiny("SD2"))


def for_task(pair: Pair, name: str) -> Pair:
    ours, theirs = pair
    return getattr(safelight.runtime, name).from_pipe(ours), getattr(diffusers, name).from_pipe(theirs)


@pytest.fixture
def mask() -> Image.Image:
    painted = np.zeros(SIZE[::-1], np.uint8)
    painted[20:60, 30:90] = 255
    return Image.fromarray(painted)


def test_the_scheduler_predicts_velocities(pair: Pair) -> None:
    assert pair[0].scheduler.config["prediction_type"] == "v_prediction"
    assert_same(pair, prompt=PROMPT, num_inference_steps=10)


@pytest.mark.parametrize(
    "scheduler",
    ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler"],
)
def test_schedulers_equal_diffusers(pair: Pair, scheduler: str) -> None:
    use_scheduler(pair, scheduler)
    assert_same(pair, prompt=PROMPT, num_inference_steps=10)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"negative_prompt": "red apple", "guidance_rescale": 0.7}, id="rescaled guidance"),
        pytest.param({"clip_skip": 1}, id="clip skip"),
        pytest.param({"height": 56, "width": 88}, id="another size"),
        pytest.param({"guidance_scale": 0.0, "num_inference_steps": 1}, id="as SD-Turbo is called"),
        pytest.param({"prompt": ["a", ""], "seed": [4, 2]}, id="two prompts, one empty"),
    ],
)
def test_options_equal_diffusers(pair: Pair, options: dict[str, Any]) -> None:
    use_scheduler(pair, "DDIMScheduler")
    assert_same(pair, **{"prompt": PROMPT, "num_inference_steps": 5, **options})


def test_turbo_takes_one_step_of_an_ancestral_scheduler(pair: Pair) -> None:
    use_scheduler(pair, "EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    for steps in (1, 2, 4):
        assert_same(pair, prompt=PROMPT, num_inference_steps=steps, guidance_scale=0.0)


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
def test_image_to_image_equals_diffusers(pair: Pair, photo: str) -> None:
    use_scheduler(pair, "DDIMScheduler")
    from_image = for_task(pair, "StableDiffusionImg2ImgPipeline")
    options: dict[str, Any] = {"image": photograph(photo, SIZE), "num_inference_steps": 10, "strength": 0.6}
    assert_same_pictures(from_image, prompt=PROMPT, **options)


def test_turbo_starts_from_images_too(pair: Pair) -> None:
    use_scheduler(pair, "EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    from_image = for_task(pair, "StableDiffusionImg2ImgPipeline")
    options: dict[str, Any] = {"image": photograph("coffee", SIZE), "strength": 0.5, "guidance_scale": 0.0}
    assert_same(from_image, prompt=PROMPT, num_inference_steps=2, **options)


def test_inpainting_equals_diffusers(pair: Pair, mask: Image.Image) -> None:
    use_scheduler(pair, "DDIMScheduler")
    inpainting = for_task(pair, "StableDiffusionInpaintPipeline")
    options: dict[str, Any] = {"image": photograph("chelsea", SIZE), "mask_image": mask, "height": 72, "width": 104}
    assert_same(inpainting, prompt=PROMPT, num_inference_steps=6, **options)


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_the_inpainting_unet_equals_diffusers(tiny: Tiny, mask: Image.Image, strength: float) -> None:
    folder, checkpoint = tiny("SD2_INPAINTING")
    with DiffusionPipeline.from_pretrained(folder) as named:
        assert type(named) is StableDiffusionInpaintPipeline
    inpainting = open_pair("StableDiffusionInpaintPipeline", folder, checkpoint)
    options: dict[str, Any] = {"image": photograph("coffee", SIZE), "mask_image": mask, "height": 72, "width": 104}
    assert_same(inpainting, prompt=PROMPT, num_inference_steps=6, strength=strength, **options)


def test_what_tells_it_from_stable_diffusion_1_matters(pair: Pair) -> None:
    use_scheduler(pair, "DDIMScheduler")
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "seed": 0}
    with DiffusionPipeline.from_pretrained(pair[0].folder.path) as ours:
        ours.scheduler = DDIMScheduler.from_config(pair[0].scheduler.config)
        right = ours(PROMPT, **options).images
        ours.scheduler = DDIMScheduler.from_config(ours.scheduler.config, prediction_type="epsilon")
        assert relative(ours(PROMPT, **options).images, right) > 0.01
        ours.scheduler = pair[0].scheduler
        ours.tokenizer.pad_token_id = ours.tokenizer.eos_token_id
        assert relative(ours(PROMPT, **options).images, right) > 1e-3
