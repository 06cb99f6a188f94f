"""The whole way from prompt to picture, against diffusers on the same checkpoint, seed and scheduler."""

from pathlib import Path
from typing import Any

import checkpoints
import diffusers
import numpy as np
import pytest
import torch

import safelight.runtime
from safelight.runtime import StableDiffusionPipeline, bundled_model

# diffusers' own, in set_timesteps of Euler and KDPM2 with NumPy 2
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

PROMPT = "cat face on a blue background"
NEGATIVE = "red apple"
SCHEDULERS = ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DDPMScheduler"]

#: the others that a model of noise predictions can be sampled with; DPMSolverSDEScheduler draws other noise
OTHER_SCHEDULERS = [
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]

LATENTS_TOLERANCE = 1e-4  # relative to the largest
IMAGE_TOLERANCE = 0.1 / 255


def ours(folder: Path) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(checkpoint: Path) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    # diffusers 0.42 looks for the final norm in `text_model`, which transformers 5 no longer has
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    return pipeline


def swap_scheduler(pipeline: Any, module: Any, name: str) -> None:
    pipeline.scheduler = getattr(module, name).from_config(pipeline.scheduler.config, clip_sample=False)


@pytest.fixture(scope="module")
def odd(odd_export: Path, odd_checkpoint: Path) -> tuple[Any, Any]:
    return ours(odd_export), theirs(odd_checkpoint)


@pytest.fixture(scope="module")
def linear(linear_export: Path, linear_checkpoint: Path) -> tuple[Any, Any]:
    return ours(linear_export), theirs(linear_checkpoint)


@pytest.fixture(scope="module")
def emoji(emoji_checkpoint: Path) -> tuple[Any, Any]:
    return ours(bundled_model()), theirs(emoji_checkpoint)


def both(pair: tuple[Any, Any], *, seed: int | list[int] = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same call of both pipelines, as arrays."""
    options = {"prompt": PROMPT, "num_inference_steps": 20, **options}
    seeds = seed if isinstance(seed, list) else [seed]
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    expected = pair[1](generator=generators if isinstance(seed, list) else generators[0], **options).images
    found = pair[0](seed=seed, **options).images
    return np.asarray(found), np.asarray(expected)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def assert_same(pair: tuple[Any, Any], tolerance: float = IMAGE_TOLERANCE, **options: Any) -> None:
    latents = both(pair, output_type="latent", **options)
    assert relative(*latents) < LATENTS_TOLERANCE
    images = both(pair, output_type="np", **options)
    assert images[1].std() > 0.02, "a flat picture would hide a difference"
    assert np.abs(images[0] - images[1]).max() < tolerance


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_odd_latents_equal_diffusers(odd: tuple[Any, Any], scheduler: str) -> None:
    swap_scheduler(odd[0], safelight.runtime, scheduler)
    swap_scheduler(odd[1], diffusers, scheduler)
    assert_same(odd, height=88, width=176)  # latents of 11x22


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_linear_projections_equal_diffusers(linear: tuple[Any, Any], scheduler: str) -> None:
    swap_scheduler(linear[0], safelight.runtime, scheduler)
    swap_scheduler(linear[1], diffusers, scheduler)
    assert_same(linear, negative_prompt=NEGATIVE)


@pytest.mark.parametrize("scheduler", OTHER_SCHEDULERS)
def test_swapped_schedulers_equal_diffusers(linear: tuple[Any, Any], scheduler: str) -> None:
    for pipeline, module in zip(linear, (safelight.runtime, diffusers), strict=True):
        pipeline.scheduler = getattr(module, scheduler).from_config(checkpoints.SCHEDULER)
    latents = both(linear, output_type="latent", num_inference_steps=10)
    assert relative(*latents) < LATENTS_TOLERANCE


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_bundled_model_equals_diffusers(emoji: tuple[Any, Any], scheduler: str) -> None:
    swap_scheduler(emoji[0], safelight.runtime, scheduler)
    swap_scheduler(emoji[1], diffusers, scheduler)
    found, expected = both(emoji, output_type="np", guidance_scale=5.0, seed=3)
    assert np.abs(found - expected).max() < 1 / 255


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"guidance_scale": 1.0, "negative_prompt": NEGATIVE}, id="negative prompt without guidance"),
        pytest.param({"num_inference_steps": 1}, id="one step"),
        pytest.param({"height": 72, "width": 104}, id="odd multiples"),
        pytest.param({"guidance_rescale": 0.7}, id="guidance rescale"),
        pytest.param({"clip_skip": 1}, id="clip skip"),
        pytest.param({"num_images_per_prompt": 3, "num_inference_steps": 5}, id="images per prompt"),
        pytest.param({"seed": [7, 5]}, id="a seed per image"),
        pytest.param({"prompt": ["", "dog " * 60], "negative_prompt": ["a", "b"], "seed": 2}, id="two prompts"),
        pytest.param({"prompt": "naïve café 🐱 日本"}, id="unicode"),
    ],
)
def test_options_equal_diffusers(linear: tuple[Any, Any], options: dict[str, Any]) -> None:
    for pipeline, module in zip(linear, (safelight.runtime, diffusers), strict=True):
        swap_scheduler(pipeline, module, "DDIMScheduler")
    if isinstance(options.get("seed"), list):
        options = {**options, "num_images_per_prompt": 2}
    assert_same(linear, **options)


def test_stochastic_ddim_equals_diffusers(linear: tuple[Any, Any]) -> None:
    for pipeline, module in zip(linear, (safelight.runtime, diffusers), strict=True):
        swap_scheduler(pipeline, module, "DDIMScheduler")
    assert_same(linear, eta=0.8, seed=11)


def test_thousand_steps_equal_diffusers(linear: tuple[Any, Any]) -> None:
    for pipeline, module in zip(linear, (safelight.runtime, diffusers), strict=True):
        swap_scheduler(pipeline, module, "EulerDiscreteScheduler")
    found, expected = both(linear, num_inference_steps=1000, output_type="latent", height=16, width=24)
    assert relative(found, expected) < LATENTS_TOLERANCE


def test_embeddings_and_latents_given_equal_diffusers(linear: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "latents": rng.standard_normal((2, 4, 5, 7), dtype=np.float32),
        "prompt_embeds": rng.standard_normal((2, 9, 24), dtype=np.float32),
        "negative_prompt_embeds": rng.standard_normal((2, 9, 24), dtype=np.float32),
    }
    options: dict[str, Any] = {"height": 40, "width": 56, "num_inference_steps": 5, "output_type": "latent"}
    for pipeline, module in zip(linear, (safelight.runtime, diffusers), strict=True):
        swap_scheduler(pipeline, module, "DDIMScheduler")
    expected = linear[1](**{name: torch.from_numpy(a.copy()) for name, a in arrays.items()}, **options).images
    found = linear[0](**arrays, **options).images
    assert relative(found, np.asarray(expected)) < LATENTS_TOLERANCE


def test_callback_sees_and_changes_what_diffusers_does(linear: tuple[Any, Any]) -> None:
    seen: tuple[list[Any], list[Any]] = ([], [])

    def halve(which: int) -> Any:
        def callback(_pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen[which].append((step, int(timestep), np.asarray(tensors["latents"]).copy()))
            return {"latents": tensors["latents"] * 0.5} if step == 1 else {}

        return callback

    for pipeline, module in zip(linear, (safelight.runtime, diffusers), strict=True):
        swap_scheduler(pipeline, module, "DDIMScheduler")
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 4, "output_type": "latent"}
    found = linear[0](seed=0, callback_on_step_end=halve(0), **options).images
    expected = linear[1](
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda *a: {"latents": a[3]["latents"], **halve(1)(*a)},
        **options,
    ).images
    assert [entry[:2] for entry in seen[0]] == [entry[:2] for entry in seen[1]]
    assert all(relative(a[2], b[2]) < LATENTS_TOLERANCE for a, b in zip(*seen, strict=True))
    assert relative(found, np.asarray(expected)) < LATENTS_TOLERANCE


def test_swapping_the_activation_would_be_seen(odd_checkpoint: Path, odd: tuple[Any, Any]) -> None:
    """The limit is tight enough: a text encoder with gelu for quick_gelu is further away than it allows."""
    wrong = theirs(odd_checkpoint)
    for layer in wrong.text_encoder.modules():
        if hasattr(layer, "activation_fn"):
            layer.activation_fn = torch.nn.GELU()
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 20, "output_type": "np"}
    images = [
        np.asarray(pipeline(generator=torch.Generator().manual_seed(0), height=88, width=176, **options).images)
        for pipeline in (theirs(odd_checkpoint), wrong)
    ]
    assert np.abs(images[0] - images[1]).max() > 2 * IMAGE_TOLERANCE
