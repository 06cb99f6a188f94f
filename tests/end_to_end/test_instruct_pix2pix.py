"""InstructPix2Pix, with its two guidance scales, against diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import PROMPT, Pair, assert_same, assert_same_pictures, open_pair, photograph, relative, use_scheduler

from safelight.runtime import DiffusionPipeline, StableDiffusionInstructPix2PixPipeline

pytestmark = [
    # diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # of several prompts for one image
    pytest.mark.filterwarnings("ignore:.*Initial images are now duplicating:FutureWarning"),
]

Tiny = Callable[[str], tuple[Path, Path]]
NAME = "StableDiffusionInstructPix2PixPipeline"
SIZE = (104, 72)


@pytest.fixture(scope="module")
def pair(tiny: Tiny) -> Pair:
    return open_pair(NAME, *tiny("PIX2PIX"))


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
def test_photographs_equal_diffusers(pair: Pair, photo: str) -> None:
    use_scheduler(pair, "EulerAncestralDiscreteScheduler")
    options: dict[str, Any] = {"prompt": PROMPT, "image": photograph(photo, SIZE), "num_inference_steps": 6}
    assert_same(pair, **options)
    assert_same_pictures(pair, **options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"image_guidance_scale": 2.5, "guidance_scale": 3.0}, id="scales"),
        pytest.param({"image_guidance_scale": 1.0}, id="no image guidance"),
        pytest.param({"image_guidance_scale": 0.5}, id="none at all"),
        pytest.param({"guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"negative_prompt": "dog"}, id="negative prompt"),
        pytest.param({"num_images_per_prompt": 2, "seed": [7, 5]}, id="a seed per image"),
        pytest.param({"prompt": ["a", "b"], "negative_prompt": ["c", "d"]}, id="two prompts"),
        pytest.param({"image": np.full((1, 4, 9, 13), 0.5, np.float32)}, id="latents"),
        pytest.param({"latents": np.full((1, 4, 9, 13), 0.5, np.float32)}, id="its own noise"),
    ],
)
def test_options_equal_diffusers(pair: Pair, options: dict[str, Any]) -> None:
    use_scheduler(pair, "DDIMScheduler")
    given = {"prompt": PROMPT, "image": photograph("chelsea", SIZE), "num_inference_steps": 5}
    assert_same(pair, **given | options)


def test_scales_matter(pair: Pair) -> None:
    use_scheduler(pair, "DDIMScheduler")
    given: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "seed": 0}
    image = photograph("coffee", SIZE)
    usual = pair[0](PROMPT, image, **given).images
    for changed in ({"image_guidance_scale": 2.5}, {"guidance_scale": 3.0}, {"negative_prompt": "dog"}):
        assert relative(pair[0](PROMPT, image, **given, **changed).images, usual) > 1e-3


def test_the_folder_names_the_class(tiny: Tiny) -> None:
    with DiffusionPipeline.from_pretrained(tiny("PIX2PIX")[0]) as pipeline:
        assert type(pipeline) is StableDiffusionInstructPix2PixPipeline


def test_bad_calls_are_refused(pair: Pair, linear_export: Path) -> None:
    with pytest.raises(ValueError, match=r"^give an image$"):
        pair[0](PROMPT)
    with pytest.raises(ValueError, match=r"2 images for 1 pictures"):
        pair[0](PROMPT, [photograph("coffee", SIZE)] * 2)
    with (
        StableDiffusionInstructPix2PixPipeline.from_pretrained(linear_export) as pipeline,
        pytest.raises(ValueError, match=rf"^{NAME} needs a UNet of 8 channels, this one has 4$"),
    ):
        pipeline(PROMPT, photograph("coffee", SIZE))
