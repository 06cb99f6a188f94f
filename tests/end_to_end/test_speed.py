"""Guidance for a part of the way, against diffusers' recipe, a plain loop, and what it must equal at its ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import PROMPT, Pair, call_both, open_pair, photograph, relative, use_scheduler
from PIL import Image

from safelight.runtime import (
    Generator,
    HeunDiscreteScheduler,
    LatentConsistencyModelPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    bundled_model,
)
from safelight.runtime.conditioning import PromptEncoder, encode_prompts
from safelight.runtime.random import randn
from safelight.runtime.speed import Speed

pytestmark = [
    # diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

Tiny = Callable[[str], tuple[Path, Path]]
STEPS, SIZE = 10, (104, 72)
LATENTS_TOLERANCE = 1e-4


def ends_guidance(after: int, names: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    """Diffusers' recipe of "Dynamic classifier-free guidance": off, and half of each tensor left, from a step on.

    Args:
        after: the last step with guidance.
        names: of the tensors that have an unconditional half.
    """

    def callback(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == after:
            pipeline._guidance_scale = 0.0
            return {name: tensors[name][len(tensors[name]) // 2 :] for name in names}
        return {}

    return callback


@pytest.fixture(scope="module")
def emoji(emoji_checkpoint: Path) -> Pair:
    return open_pair("StableDiffusionPipeline", bundled_model(), emoji_checkpoint)


@pytest.fixture(scope="module")
def bundled(emoji: Pair) -> Any:
    return emoji[0]


def against_recipe(pair: Pair, names: tuple[str, ...], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents of guidance up to 40 % of the way, and those of diffusers' recipe."""
    ours, theirs = pair
    options = {"prompt": PROMPT, "num_inference_steps": STEPS, "output_type": "latent", **options}
    ours.enable_guidance_interval(0.0, 0.4)
    try:
        found = ours(seed=0, **options).images
    finally:
        ours.disable_speed()
    expected = theirs(
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=ends_guidance(int(0.4 * STEPS) - 1, names),
        callback_on_step_end_tensor_inputs=list(names),
        **options,
    ).images
    return np.asarray(found), np.asarray(expected)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_an_interval_equals_diffusers_recipe(emoji: Pair, scheduler: str) -> None:
    use_scheduler(emoji, scheduler)
    found, expected = against_recipe(emoji, ("prompt_embeds",), negative_prompt="red apple", num_images_per_prompt=2)
    assert relative(found, expected) < LATENTS_TOLERANCE
    full, _ = call_both(emoji, prompt=PROMPT, num_inference_steps=STEPS, output_type="latent")
    assert relative(found[:1], full) > 100 * LATENTS_TOLERANCE


def test_sdxls_interval_equals_diffusers_recipe(tiny: Tiny) -> None:
    pair = open_pair("StableDiffusionXLPipeline", *tiny("SDXL"))
    use_scheduler(pair, "EulerDiscreteScheduler")
    names = ("prompt_embeds", "add_text_embeds", "add_time_ids")
    told = {"negative_original_size": (512, 256), "negative_target_size": (64, 96), "negative_prompt": "dog"}
    found, expected = against_recipe(pair, names, height=72, width=104, **told)
    assert relative(found, expected) < LATENTS_TOLERANCE


@pytest.mark.parametrize("interval", [(0.0, 0.6), (0.2, 1.0), (0.3, 0.5)])
def test_an_interval_equals_a_plain_loop(bundled: Any, interval: tuple[float, float]) -> None:
    bundled.enable_guidance_interval(*interval)
    found = bundled(PROMPT, negative_prompt="dog", num_inference_steps=STEPS, seed=3, output_type="latent").images
    bundled.disable_speed()

    encoder = PromptEncoder(bundled.tokenizer, bundled.text_encoder)
    prompt, negative = (encode_prompts(encoder, [text]).hidden for text in (PROMPT, "dog"))
    scheduler = type(bundled.scheduler).from_config(bundled.scheduler.config)
    scheduler.set_timesteps(STEPS)
    latents = randn((1, 4, 16, 16), Generator(3)) * np.float32(scheduler.init_noise_sigma)
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        sample = scheduler.scale_model_input(latents, timestep)
        output = bundled.unet(sample, timestep, prompt).sample
        if interval[0] * STEPS <= step < interval[1] * STEPS:
            away = bundled.unet(sample, timestep, negative).sample
            output = away + np.float32(7.5) * (output - away)
        latents = scheduler.step(output, timestep, latents).prev_sample
    assert relative(found, latents) < LATENTS_TOLERANCE


def test_no_interval_equals_no_guidance(bundled: Any, tiny: Tiny) -> None:
    image, mask = photograph("chelsea", SIZE), Image.new("L", SIZE, 255)
    painting = StableDiffusionInpaintPipeline.from_pretrained(tiny("INPAINTING")[0])  # which sees nine channels
    changing = StableDiffusionInstructPix2PixPipeline.from_pretrained(tiny("PIX2PIX")[0])  # which has three branches
    calls: list[tuple[Any, dict[str, Any]]] = [
        (bundled, {"num_images_per_prompt": 2}),
        (painting, {"image": image, "mask_image": mask, "height": 72, "width": 104}),
        (changing, {"image": image, "num_images_per_prompt": 2}),
    ]
    for pipeline, options in calls:
        pipeline.set_progress_bar_config(disable=True)
        options = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 0, "output_type": "latent", **options}
        expected = pipeline(guidance_scale=1.0, **options).images
        guided = pipeline(**options).images
        pipeline.enable_guidance_interval(0.5, 0.5)
        np.testing.assert_array_equal(pipeline(**options).images, expected)
        pipeline.disable_speed()
        assert relative(guided, expected) > 1e-3


def test_three_branches_become_one_as_a_callback_makes_them(tiny: Tiny) -> None:
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(tiny("PIX2PIX")[0])
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {
        "prompt": PROMPT, "image": photograph("coffee", SIZE), "seed": 0, "output_type": "latent",
        "num_inference_steps": STEPS, "negative_prompt": "dog",
    }  # fmt: skip

    def off(which: Any, step: int, _timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        if step != 3:
            return {}
        which._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"][:1]}

    expected = pipeline(
        **options, callback_on_step_end=off, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    ).images
    pipeline.enable_guidance_interval(0.0, 0.4)
    np.testing.assert_array_equal(pipeline(**options).images, expected)


def test_a_callback_sees_both_halves_and_ends_guidance_itself(bundled: Any) -> None:
    options: dict[str, Any] = {
        "prompt": PROMPT, "num_inference_steps": STEPS, "seed": 0, "output_type": "latent",
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }  # fmt: skip
    expected = bundled(**options, callback_on_step_end=ends_guidance(1, ("prompt_embeds",))).images
    bundled.enable_speed(Speed(guidance_interval=(0.0, 0.4), reuse_threshold=1e-9))
    found = bundled(**options, callback_on_step_end=ends_guidance(1, ("prompt_embeds",))).images
    bundled.disable_speed()
    np.testing.assert_array_equal(found, expected)


def test_schedulers_that_call_twice_a_step_obey(bundled: Any) -> None:
    own = bundled.scheduler
    bundled.scheduler = HeunDiscreteScheduler.from_config(own.config)
    rows: list[int] = []
    network = bundled.unet.network

    class Counting:
        inputs, outputs = network.inputs, network.outputs

        def __call__(self, inputs: Any, *others: Any) -> Any:
            rows.append(len(inputs["sample"]))
            return network(inputs, *others)

    bundled.unet.network = Counting()
    bundled.enable_guidance_interval(0.0, 0.5)
    try:
        bundled(PROMPT, num_inference_steps=5, seed=0, output_type="latent")
    finally:
        bundled.disable_speed()
        bundled.unet.network, bundled.scheduler = network, own
    assert rows == [2] * 4 + [1] * 5  # nine calls, of which int(4.5) are guided


def test_what_is_told_the_scale_has_no_interval(tiny: Tiny) -> None:
    sentence = (
        "^LatentConsistencyModelPipeline cannot have a guidance interval: its UNet is told the guidance scale, "
        "so that there is no unconditional half to leave out$"
    )
    pipeline = LatentConsistencyModelPipeline.from_pretrained(tiny("LCM")[0])
    with pytest.raises(ValueError, match=sentence):
        pipeline.enable_guidance_interval(0.0, 0.5)
    assert pipeline.speed == Speed()
    pipeline.enable_step_reuse(0.05)


def test_the_balanced_picture_is_nearly_the_same(bundled: Any) -> None:
    options: dict[str, Any] = {"num_inference_steps": 20, "seed": 1, "output_type": "np"}
    full = bundled(PROMPT, **options).images
    bundled.enable_speed("balanced")
    found = bundled(PROMPT, **options).images
    bundled.disable_speed()
    error = float(np.mean((found - full) ** 2))
    assert 0 < error < 1e-3  # 30 dB
