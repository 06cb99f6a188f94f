"""What a user says of speed: options, presets, and the sentences that refuse them."""

import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from pairs import PROMPT, photograph

from safelight.runtime import (
    AutoPipelineForImage2Image,
    DDPMPipeline,
    DiffusionPipeline,
    StableDiffusionPipeline,
    bundled_model,
)
from safelight.runtime.speed import PRESETS, Speed
from safelight.runtime.step_reuse import StepReuse


@pytest.fixture(scope="module")
def opened() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(bundled_model())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(opened: StableDiffusionPipeline) -> StableDiffusionPipeline:
    opened.disable_speed()
    return opened


def latents(pipeline: Any, **options: Any) -> np.ndarray:
    found: np.ndarray = pipeline(
        PROMPT, **{"num_inference_steps": 8, "seed": 0, "output_type": "latent", **options}
    ).images
    return found


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"guidance_interval": (0.5, 0.2)}, "0 <= start <= stop <= 1, got 0.5 and 0.2"),
        ({"guidance_interval": (-0.1, 1.0)}, "0 <= start <= stop <= 1, got -0.1 and 1"),
        ({"guidance_interval": 0.5}, "two numbers, start and stop, got 0.5"),
        ({"guidance_interval": (0.0, float("nan"))}, "two numbers, start and stop, got"),
        ({"guidance_interval": ("0", "1")}, "two numbers, start and stop, got"),
        ({"deep_cache_interval": 0}, "deep_cache_interval must be a whole number from 1 on, got 0"),
        ({"reuse_threshold": -0.1}, "reuse_threshold must be a number from 0, which is off, on, got -0.1"),
        ({"reuse_threshold": True}, "reuse_threshold must be a number from 0, which is off, on, got True"),
        ({"reuse_limit": 1.5}, "reuse_limit must be a whole number from 1 on, got 1.5"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Speed(**options)


def test_presets_and_options_are_told_apart() -> None:
    assert Speed.of("exact") == Speed() == Speed.of(Speed())
    assert Speed.of("balanced") == PRESETS["balanced"] != Speed()
    with pytest.raises(
        ValueError, match=r"^unknown speed 'fast'; known: exact, balanced; or options, Speed\(\.\.\.\)$"
    ):
        Speed.of("fast")
    with pytest.raises(TypeError, match=r"^speed must be one of exact, balanced, or a Speed, got int$"):
        Speed.of(2)  # type: ignore[arg-type]


def test_it_says_what_it_leaves_out() -> None:
    assert str(Speed()) == "everything computed"
    speed = Speed(guidance_interval=(0, 0.5), deep_cache_interval=3, reuse_threshold=0.05)
    assert str(speed) == (
        "guidance from 0 to 0.5 of the way, the whole UNet in every 3. call, "
        "predictions reused below a threshold of 0.05"
    )
    assert (
        str(Speed(reuse_threshold=0.1, reuse_limit=1))
        == "predictions reused below a threshold of 0.1, at most 1 in a row"
    )


@pytest.mark.parametrize(("calls", "limit"), [(4, 1), (20, 1), (39, 1), (50, 2), (99, 4), (1000, 50)])
def test_a_prediction_is_reused_for_a_part_of_the_way(calls: int, limit: int) -> None:
    reuse = Speed(reuse_threshold=0.1).step_reuse(calls)
    assert reuse == StepReuse(0.1, limit, calls)
    assert Speed(reuse_threshold=0.1, reuse_limit=3).step_reuse(calls) == StepReuse(0.1, 3, calls)
    assert Speed().step_reuse(calls) is None


@pytest.mark.parametrize("calls", [1, 5, 20, 39, 50])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.4), (0.1, 0.7), (0.5, 0.5)])
def test_the_interval_holds_the_calls_of_diffusers_guider(calls: int, interval: tuple[float, float]) -> None:
    guider = diffusers.guiders.ClassifierFreeGuidance(guidance_scale=7.5, start=interval[0], stop=interval[1])
    expected = []
    for step in range(calls):
        guider.set_state(step=step, num_inference_steps=calls, timestep=None)
        expected.append(guider.num_conditions == 2)
    guided = Speed(guidance_interval=interval).guided_calls(calls)
    assert [step in guided for step in range(calls)] == expected


def test_off_is_bit_equal(pipeline: StableDiffusionPipeline) -> None:
    exact = latents(pipeline)
    pipeline.enable_speed(Speed(guidance_interval=(0, 0.5), reuse_threshold=0.2))
    assert not np.array_equal(latents(pipeline), exact)
    pipeline.enable_speed(Speed(guidance_interval=(0, 1), reuse_threshold=0))
    np.testing.assert_array_equal(latents(pipeline), exact)


def test_single_options_are_turned_on_and_off(pipeline: StableDiffusionPipeline) -> None:
    pipeline.enable_guidance_interval(0.1, 0.8)
    pipeline.enable_step_reuse(0.05, limit=1)
    assert pipeline.speed == Speed(guidance_interval=(0.1, 0.8), reuse_threshold=0.05, reuse_limit=1)
    pipeline.disable_guidance_interval()
    assert pipeline.speed.guidance_interval == (0, 1)
    pipeline.disable_step_reuse()
    assert pipeline.speed == Speed()
    pipeline.enable_speed()
    assert pipeline.speed == PRESETS["balanced"]
    with pytest.raises(ValueError, match="0 <= start <= stop <= 1"):
        pipeline.enable_guidance_interval(0.9, 0.1)
    assert pipeline.speed == PRESETS["balanced"]


def test_it_is_opened_with_and_goes_to_other_tasks() -> None:
    with DiffusionPipeline.from_pretrained(bundled_model(), speed="balanced") as pipeline:
        assert pipeline.speed == PRESETS["balanced"]
        other = AutoPipelineForImage2Image.from_pipe(pipeline)
        assert other.speed == PRESETS["balanced"]
        other.set_progress_bar_config(disable=True)
        image = photograph("coffee", (64, 64))
        balanced = latents(other, image=image, num_inference_steps=16)
        other.disable_speed()
        assert pipeline.speed == PRESETS["balanced"]
        assert not np.array_equal(latents(other, image=image, num_inference_steps=16), balanced)
    with pytest.raises(ValueError, match=r"^unknown speed 'fast'"):
        DiffusionPipeline.from_pretrained(bundled_model(), speed="fast")


def test_scheduler_and_steps_stay_the_users(pipeline: StableDiffusionPipeline) -> None:
    scheduler, seen = pipeline.scheduler, []
    pipeline.enable_speed("balanced")
    latents(pipeline, num_inference_steps=7, callback_on_step_end=lambda _p, step, _t, _k: seen.append(step))
    assert pipeline.scheduler is scheduler
    assert seen == list(range(7))


def test_the_negative_prompt_is_encoded_once_for_a_batch(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    network = pipeline.text_encoder.network
    monkeypatch.setattr(
        pipeline.text_encoder,
        "network",
        lambda inputs, names: (rows.append(len(inputs["input_ids"])), network(inputs, names))[1],
    )
    pipeline(["a", "b", "c"], negative_prompt="d", num_images_per_prompt=2, num_inference_steps=1, output_type="latent")
    assert rows == [3, 1]


def test_a_pipeline_without_text_computes_everything(unconditional_export: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^DDPMPipeline computes everything: only text-guided pipelines leave out some$"
    ):
        DDPMPipeline.from_pretrained(unconditional_export, speed="balanced")
    assert DDPMPipeline.from_pretrained(unconditional_export, speed="exact").speed == Speed()
