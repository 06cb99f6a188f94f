"""Latent consistency models, whose UNet is told the guidance scale, against diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import PROMPT, Pair, assert_same, assert_same_pictures, open_pair, photograph, relative, use_scheduler

from safelight.runtime import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
)
from safelight.runtime.guidance import guidance_scale_embedding

Tiny = Callable[[str], tuple[Path, Path]]
SIZE = (104, 72)


@pytest.fixture(scope="module")
def pair(tiny: Tiny) -> Pair:
    return open_pair("LatentConsistencyModelPipeline", *tiny("LCM"))


@pytest.fixture(scope="module")
def from_image(tiny: Tiny) -> Pair:
    return open_pair("LatentConsistencyModelImg2ImgPipeline", *tiny("LCM"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"num_inference_steps": 1}, id="one step"),
        pytest.param({"num_inference_steps": 8, "guidance_scale": 1.5}, id="eight steps"),
        pytest.param({"original_inference_steps": 20}, id="another schedule"),
        pytest.param({"timesteps": [999, 500, 100]}, id="its own timesteps"),
        pytest.param({"num_images_per_prompt": 2, "seed": [7, 5], "clip_skip": 1}, id="a seed per image"),
        pytest.param({"prompt": ["a", "b"], "height": 56, "width": 88}, id="two prompts"),
    ],
)
def test_text_to_image_equals_diffusers(pair: Pair, options: dict[str, Any]) -> None:
    assert_same(pair, **{"prompt": PROMPT, **options})


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_photographs_equal_diffusers(from_image: Pair, photo: str, strength: float) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "image": photograph(photo, SIZE), "strength": strength}
    assert_same(from_image, **options)
    assert_same_pictures(from_image, **options)


def test_a_pipeline_without_the_name_tells_the_scale_too(tiny: Tiny) -> None:
    pair = open_pair("StableDiffusionPipeline", *tiny("LCM"))
    for scale in (1.0, 7.5):
        assert_same(pair, prompt=PROMPT, num_inference_steps=4, guidance_scale=scale)


@pytest.mark.parametrize("channels", [12, 256, 13])
@pytest.mark.parametrize("scale", [0.0, 0.5, 7.5])
def test_the_scale_is_embedded_as_diffusers_does_it(pair: Pair, channels: int, scale: float) -> None:
    import torch

    expected = pair[1].get_guidance_scale_embedding(torch.tensor([scale]), embedding_dim=channels).numpy()
    found = guidance_scale_embedding(scale, channels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3)  # sines of thousands, whose float32 is that coarse
    assert scale == 0 or np.abs(expected[:, : channels // 2]).max() > 0.1


def test_the_scale_matters(pair: Pair) -> None:
    one, other = (
        pair[0](PROMPT, seed=0, output_type="latent", guidance_scale=scale, num_inference_steps=1).images
        for scale in (1.0, 9.0)
    )
    assert relative(one, other) > 1e-3


def test_the_folder_names_the_class(tiny: Tiny) -> None:
    with DiffusionPipeline.from_pretrained(tiny("LCM")[0]) as pipeline:
        assert type(pipeline) is LatentConsistencyModelPipeline
        assert type(AutoPipelineForImage2Image.from_pipe(pipeline)) is LatentConsistencyModelImg2ImgPipeline


def test_a_unet_that_is_not_told_the_scale_is_refused(pair: Pair, linear_export: Path) -> None:
    with (
        LatentConsistencyModelPipeline.from_pretrained(linear_export) as pipeline,
        pytest.raises(ValueError, match=r"needs a UNet that is told the guidance scale \(time_cond_proj_dim\)"),
    ):
        pipeline(PROMPT)


def test_a_scheduler_without_a_schedule_to_skip_in_is_refused(tiny: Tiny) -> None:
    pair = open_pair("LatentConsistencyModelPipeline", *tiny("LCM"))
    use_scheduler(pair, "DDIMScheduler")
    with pytest.raises(ValueError, match=r"^DDIMScheduler does not take original_inference_steps$"):
        pair[0](PROMPT, original_inference_steps=20)


@pytest.mark.parametrize("strength", [0, -0.1, 1.1, float("nan")])
def test_a_strength_that_is_none_is_refused(from_image: Pair, strength: float) -> None:
    with pytest.raises(ValueError, match=r"^strength must lie between 0 and 1, got"):
        from_image[0](PROMPT, photograph("coffee", SIZE), strength=strength)
