"""Every option of every scheduler, step by step against diffusers."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from parity import LATENT, SHAPE, SHARED, STEPS, assert_close, assert_steps_equal, cases, pair, set_both

import safelight.runtime
from safelight.runtime import Generator

CLIPPED: list[dict[str, Any]] = [
    {"clip_sample": False},
    {"clip_sample_range": 0.5},
    {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.9},
    {"prediction_type": "sample"},
]
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [*SHARED, *CLIPPED, {"set_alpha_to_one": False}, {**ZERO_SNR, "clip_sample": False}],
    "DDPMScheduler": [
        *SHARED,
        *CLIPPED,
        *({"variance_type": kind} for kind in ("fixed_small_log", "fixed_large")),
        *({"variance_type": kind} for kind in ("learned", "learned_range")),
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "laplace"},
        {**ZERO_SNR, "clip_sample": False},
    ],
    "PNDMScheduler": [
        *SHARED,
        *({**options, "skip_prk_steps": True} for options in SHARED),
        {"set_alpha_to_one": True, "skip_prk_steps": True},
    ],
    "EulerDiscreteScheduler": [
        *SHARED,
        {"prediction_type": "sample"},
        {**LATENT, "use_karras_sigmas": True},
        {**LATENT, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        {**LATENT, "use_exponential_sigmas": True},
        {**LATENT, "use_beta_sigmas": True},
        {**LATENT, "interpolation_type": "log_linear"},
        {**LATENT, "final_sigmas_type": "sigma_min"},
        {**LATENT, "prediction_type": "v_prediction", "timestep_type": "continuous"},
        {**LATENT, **ZERO_SNR},
    ],
}


@pytest.mark.parametrize(("name", "options"), cases(OPTIONS))
def test_each_step_equals_diffusers(name: str, options: dict[str, Any]) -> None:
    runge_kutta = name == "PNDMScheduler" and not options.get("skip_prk_steps")
    for steps in STEPS:
        if runge_kutta and steps < 4:
            continue  # four steps are the least that Runge-Kutta can start from; refused, see test_face.py
        ours, theirs = pair(name, options)
        set_both(ours, theirs, num_inference_steps=steps)
        learned = str(options.get("variance_type")).startswith("learned")
        if max(theirs.timesteps.tolist()) >= len(ours) or (name == "PNDMScheduler" and steps == 1):
            continue  # diffusers fails with an IndexError; refused here, see test_face.py
        assert_steps_equal(ours, theirs, channels=8 if learned else 4)


@pytest.mark.parametrize("steps", [1000, 999, 333])
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "PNDMScheduler"])
def test_many_steps_visit_diffusers_timesteps(name: str, steps: int) -> None:
    ours, theirs = pair(name, LATENT)
    set_both(ours, theirs, num_inference_steps=steps)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())


@pytest.mark.parametrize(
    "options",
    [{"eta": 0.5}, {"eta": 1.0}, {"eta": 0.3, "use_clipped_model_output": True}, {"use_clipped_model_output": True}],
)
def test_ddims_step_options(options: dict[str, Any]) -> None:
    ours, theirs = pair("DDIMScheduler", LATENT)
    set_both(ours, theirs, num_inference_steps=10)
    assert_steps_equal(ours, theirs, **options)


def test_ddims_variance_noise() -> None:
    ours, theirs = pair("DDIMScheduler", LATENT)
    set_both(ours, theirs, num_inference_steps=10)
    noise, sample = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    found = ours.step(sample, 501, sample, eta=0.7, variance_noise=noise)
    tensor = torch.from_numpy(sample)
    expected = theirs.step(tensor, 501, tensor, eta=0.7, variance_noise=torch.from_numpy(noise))
    assert_close(found.prev_sample, expected.prev_sample.numpy())


@pytest.mark.parametrize(
    "options",
    [{"s_churn": 5.0}, {"s_churn": 40.0, "s_noise": 1.1}, {"s_churn": 5.0, "s_tmin": 0.5, "s_tmax": 5.0}],
)
def test_eulers_churn(options: dict[str, Any]) -> None:
    ours, theirs = pair("EulerDiscreteScheduler", LATENT)
    set_both(ours, theirs, num_inference_steps=12)
    assert_steps_equal(ours, theirs, **options)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("DDPMScheduler", {"timesteps": [900, 500, 499, 20, 0]}),
        ("EulerDiscreteScheduler", {"timesteps": [900, 500, 499, 20]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.6, 3.0, 0.7, 0.2, 0.0]}),
    ],
)
def test_own_timesteps_and_sigmas(name: str, own: dict[str, Any]) -> None:
    ours, theirs = pair(name, LATENT)
    set_both(ours, theirs, **own)
    assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_adding_noise(name: str) -> None:
    ours, theirs = pair(name, {**LATENT, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {})})
    set_both(ours, theirs, num_inference_steps=10)
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    timesteps = theirs.timesteps[[2, 7]]
    arrays = torch.from_numpy(clean), torch.from_numpy(noise)
    assert_close(ours.add_noise(clean, noise, timesteps.numpy()), theirs.add_noise(*arrays, timesteps).numpy())
    if name in ("DDIMScheduler", "DDPMScheduler"):  # PNDM has none there, and Euler's takes places for timesteps
        expected = theirs.get_velocity(*arrays, timesteps).numpy()
        assert_close(ours.get_velocity(clean, noise, timesteps.numpy()), expected)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_configurations_go_both_ways(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, LATENT)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    read = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    assert {key: read.config[key] for key in theirs.config if key != "_use_default_values"} == {
        key: value for key, value in theirs.config.items() if key != "_use_default_values"
    }
    back = getattr(safelight.runtime, name).from_pretrained(tmp_path / "theirs")
    assert repr(back) == repr(ours)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_samples_dtype_is_kept(name: str, dtype: type) -> None:
    ours, _ = pair(name, {**LATENT, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {})})
    ours.set_timesteps(5)
    sample = np.ones(SHAPE, dtype)
    options = {"generator": Generator(0)} if "generator" in type(ours).step.__annotations__ else {}
    assert ours.step(sample, ours.timesteps.tolist()[0], sample, **options).prev_sample.dtype == dtype
