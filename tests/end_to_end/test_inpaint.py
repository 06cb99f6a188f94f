"""Inpainting photographs, with UNets of 4 channels and of 9, against diffusers."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import (
    LATENTS_TOLERANCE,
    PROMPT,
    Pair,
    assert_same,
    assert_same_pictures,
    call_both,
    open_pair,
    photograph,
    relative,
    use_scheduler,
)
from PIL import Image, ImageDraw

from safelight.runtime import StableDiffusionInpaintPipeline, bundled_model

pytestmark = [
    # diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

NAME = "StableDiffusionInpaintPipeline"
WIDTH, HEIGHT = SIZE = (104, 72)


def disc(size: tuple[int, int] = SIZE, *, at: tuple[float, float] = (0.55, 0.45), radius: float = 0.3) -> Image.Image:
    """A mask: a white disc on black."""
    mask = Image.new("L", size)
    x, y, r = at[0] * size[0], at[1] * size[1], radius * min(size)
    ImageDraw.Draw(mask).ellipse([x - r, y - r, x + r, y + r], fill=255)
    return mask


def inputs(photo: str = "coffee", **options: Any) -> dict[str, Any]:
    given = {"image": photograph(photo, SIZE), "mask_image": disc(), "height": HEIGHT, "width": WIDTH}
    return {"prompt": PROMPT, "num_inference_steps": 8, **given, **options}


@pytest.fixture(scope="module")
def four(linear_export: Path, linear_checkpoint: Path) -> Pair:
    return open_pair(NAME, linear_export, linear_checkpoint)


@pytest.fixture(scope="module")
def nine(inpainting_export: Path, inpainting_checkpoint: Path) -> Pair:
    return open_pair(NAME, inpainting_export, inpainting_checkpoint)


@pytest.fixture(params=["four", "nine"])
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    use_scheduler(found, "DDIMScheduler")
    return found


@pytest.mark.parametrize("photo", ["astronaut", "chelsea"])
def test_photographs_equal_diffusers(pair: Pair, photo: str) -> None:
    assert_same_pictures(pair, **inputs(photo))


@pytest.mark.parametrize(
    "scheduler", ["PNDMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DDPMScheduler"]
)
def test_schedulers_equal_diffusers(pair: Pair, scheduler: str) -> None:
    use_scheduler(pair, scheduler)
    assert_same(pair, **inputs(strength=0.7))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"strength": 0.5, "eta": 0.6, "seed": 4}, id="half the way, noise in the steps"),
        pytest.param({"guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"num_images_per_prompt": 2, "seed": [7, 5]}, id="a seed per image"),
        pytest.param({"num_images_per_prompt": 2, "strength": 0.9}, id="images per prompt"),
        pytest.param({"prompt": ["a", "b"], "negative_prompt": ["c", "d"]}, id="two prompts"),
        pytest.param({"height": 80, "width": 88}, id="resized"),
        pytest.param({"clip_skip": 1}, id="clip skip"),
    ],
)
def test_options_equal_diffusers(pair: Pair, options: dict[str, Any]) -> None:
    assert_same(pair, **inputs(**options))


def test_several_images_and_masks_equal_diffusers(pair: Pair) -> None:
    images = [photograph("chelsea", SIZE), photograph("coffee", SIZE)]
    masks = [disc(), disc(at=(0.3, 0.6), radius=0.2)]
    options = inputs(image=images, mask_image=masks, prompt=["a", "b"], num_inference_steps=4)
    assert_same(pair, **options, strength=0.8)
    assert_same(pair, **options, seed=[1, 2])


def test_the_crop_around_the_mask_equals_diffusers(pair: Pair) -> None:
    options = inputs(
        image=photograph("astronaut", (300, 260)),
        mask_image=disc((300, 260), at=(0.7, 0.3), radius=0.15),
        padding_mask_crop=12,
        num_inference_steps=4,
    )
    found, expected = (result.astype(float) for result in call_both(pair, **options))
    assert found.shape == expected.shape == (1, 260, 300, 3)
    assert np.abs(found - expected).max() <= 1  # of 255: both round
    before = np.asarray(options["image"], float)
    assert np.abs(found[0, -50:] - before[-50:]).max() == 0, "far from the mask nothing changes"
    assert np.abs(found[0] - before).max() > 20


def test_a_blurred_mask_equals_diffusers(pair: Pair) -> None:
    from diffusers.image_processor import VaeImageProcessor

    theirs = VaeImageProcessor().blur(disc(), 6)
    np.testing.assert_array_equal(np.asarray(pair[0].mask_processor.blur(disc(), blur_factor=6)), np.asarray(theirs))
    assert_same(pair, **inputs(mask_image=theirs, num_inference_steps=4))


@pytest.mark.parametrize("mode", ["fill", "crop"])
def test_resize_modes_equal_diffusers_processors(pair: Pair, mode: Any) -> None:
    options = inputs(image=photograph("chelsea"), mask_image=disc((451, 300)), num_inference_steps=3)
    found = pair[0](**options, resize_mode=mode, seed=0, output_type="latent").images
    stretched = pair[0](**options, seed=0, output_type="latent").images
    prepare = {"height": HEIGHT, "width": WIDTH, "resize_mode": mode}
    ready = {
        "image": pair[1].image_processor.preprocess(options["image"], **prepare),
        "mask_image": pair[1].mask_processor.preprocess(options["mask_image"], **prepare),
    }
    generator = torch.Generator().manual_seed(0)
    with pytest.warns(FutureWarning, match="Passing `image` as torch tensor with value range in"):
        expected = pair[1](**options | ready, generator=generator, output_type="latent").images
    assert relative(found, np.asarray(expected)) < LATENTS_TOLERANCE
    assert relative(stretched, np.asarray(expected)) > LATENTS_TOLERANCE


def test_arrays_are_images_and_masks(pair: Pair) -> None:
    given = inputs(num_inference_steps=3, seed=0, output_type="latent")
    expected = pair[0](**given).images
    image, mask = (np.asarray(given[name], dtype=np.float32) / 255 for name in ("image", "mask_image"))
    for arrays in ({"image": image, "mask_image": mask}, {"image": [image], "mask_image": mask[None, ..., None]}):
        np.testing.assert_allclose(pair[0](**given | arrays).images, expected, rtol=0, atol=1e-5)


def test_latents_given_equal_diffusers(pair: Pair) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, HEIGHT // 8, WIDTH // 8), dtype=np.float32)
    assert_same(pair, **inputs(latents=latents, num_inference_steps=4))


def test_masked_latents_given_equal_diffusers(nine: Pair) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, HEIGHT // 8, WIDTH // 8), dtype=np.float32)
    use_scheduler(nine, "DDIMScheduler")
    assert_same(nine, **inputs(masked_image_latents=latents, num_inference_steps=4))


def test_what_the_mask_leaves_out_stays() -> None:
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(bundled_model())
    pipeline.set_progress_bar_config(disable=True)
    image, mask = photograph("chelsea", (64, 64)), disc((64, 64))
    options: dict[str, Any] = {"image": image, "seed": 0, "num_inference_steps": 6, "output_type": "latent"}
    made = pipeline("red apple", mask_image=mask, **options).images
    again = pipeline("red apple", mask_image=mask, **options | {"seed": 1}).images
    outside = np.asarray(mask)[::4, ::4] < 128
    clean = pipeline("red apple", mask_image=Image.new("L", (64, 64)), **options).images
    assert np.abs(made - again)[..., ~outside].mean() > 0.1
    # both draw the picture's latents from their distribution
    spread = np.abs(made - clean)[..., outside].mean()
    assert spread < 0.1 * np.abs(clean).mean()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image": None}, ValueError, r"^give an image$"),
        ({"mask_image": None}, ValueError, r"^give a mask_image$"),
        (
            {"mask_image": disc((64, 64))},
            ValueError,
            r"image and mask must be of one size, got \(104, 72\) and \(64, 64\)",
        ),
        ({"strength": 2}, ValueError, r"^strength must lie in \[0, 1\], got 2$"),
        ({"strength": 0.01}, ValueError, r"^strength 0.01 leaves none of 8 steps"),
        ({"height": 71}, ValueError, "height must be a multiple of 8, got 71"),
        ({"padding_mask_crop": 4, "output_type": "np"}, ValueError, "padding_mask_crop needs"),
        ({"padding_mask_crop": 4, "image": np.zeros((72, 104, 3))}, ValueError, "padding_mask_crop needs"),
        ({"image": [photograph("coffee", SIZE)] * 3, "prompt": ["a", "b"]}, ValueError, "3 images for 2 pictures"),
        ({"mask_image": [disc()] * 3, "prompt": ["a", "b"]}, ValueError, "3 .*s for 2 pictures"),
    ],
)
def test_bad_calls_are_refused(pair: Pair, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pair[0](**inputs(**options))


def test_a_unet_of_other_channels_is_refused(four: Pair) -> None:
    pipeline = StableDiffusionInpaintPipeline.from_pipe(four[0])
    pipeline.unet = copy.copy(pipeline.unet)
    pipeline.unet.config = {**pipeline.unet.config, "in_channels": 5}
    with pytest.raises(ValueError, match=r"^inpainting needs a UNet of 4 or 9 channels, this one has 5$"):
        pipeline(**inputs())


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (np.zeros((64, 64, 3), np.float32), np.ones((32, 48), np.float32)),
        (np.zeros((1, 64, 64, 3), np.float32), np.ones((1, 32, 48, 1), np.float32)),
        ([photograph("coffee", (64, 64))], photograph("coffee", (48, 32)).convert("L")),
        (photograph("coffee", (64, 64)), np.ones((32, 48), np.float32)),
    ],
    ids=["arrays", "batches", "a list", "a picture and an array"],
)
def test_an_image_and_a_mask_of_different_sizes_are_refused(four: Pair, image: Any, mask: Any) -> None:
    with pytest.raises(ValueError, match=r"^image and mask must be of one size, got \(64, 64\) and \(48, 32\)$"):
        four[0](**inputs(image=image, mask_image=mask))
