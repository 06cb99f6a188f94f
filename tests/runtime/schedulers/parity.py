"""Walks one of our schedulers and diffusers' through the same steps; what the parity tests of all families share."""

import copy
import json
import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import safelight.runtime
from safelight.runtime import Generator

STEPS = (1, 2, 5, 20, 50)
TOLERANCE = 1e-5  # of each step, relative to the largest value
SHAPE = (2, 4, 6, 5)

LATENT: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHARED: list[dict[str, Any]] = [
    {},
    LATENT,
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(2e-4, 0.015, 1000).tolist()},
    {"prediction_type": "v_prediction"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
    {"num_train_timesteps": 500},
]


def cases(options: dict[str, list[dict[str, Any]]]) -> list[Any]:
    """Scheduler names with each of their options, as parameters of a test."""
    return [
        pytest.param(name, one, id=f"{name}-{json.dumps(one)[:60]}")
        for name, listed in options.items()
        for one in listed
    ]


def pair(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    return getattr(safelight.runtime, name)(**options), getattr(diffusers, name)(**options)


def model(sample: np.ndarray, step: int, channels: int) -> np.ndarray:
    """Something that looks like a model: it depends on the sample and the step, and is not linear."""
    output = np.tanh(sample * 0.7 + 0.1 * step).astype(np.float32)
    variance = np.abs(output) * 0.5
    return np.concatenate([output, variance], axis=1) if channels == 2 * sample.shape[1] else output


def assert_steps_equal(
    ours: Any, theirs: Any, *, channels: int = 4, dtype: type = np.float32, **step_options: Any
) -> None:
    """Walks both through their timesteps from the same sample; each step starts from diffusers' result."""
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6, atol=1e-5)  # of 1000
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype) * dtype(ours.init_noise_sigma)
    generators: dict[str, Any] = {}
    if "generator" in type(ours).step.__annotations__:
        generators = {"ours": Generator(3), "theirs": torch.Generator().manual_seed(3)}
    for index, (own, timestep) in enumerate(zip(ours.timesteps.tolist(), theirs.timesteps, strict=True)):
        before = sample.copy()
        scaled = theirs.scale_model_input(torch.from_numpy(sample.copy()), timestep).numpy()
        assert_close(ours.scale_model_input(sample, own), scaled)
        output = model(scaled, index, channels).astype(dtype)
        expected = theirs.step(
            torch.from_numpy(output.copy()),
            timestep,
            torch.from_numpy(sample.copy()),
            **step_options,
            **({"generator": generators["theirs"]} if generators else {}),
        )
        found = ours.step(
            output, own, sample, **step_options, **({"generator": generators["ours"]} if generators else {})
        )
        np.testing.assert_array_equal(sample, before)
        assert found.prev_sample.dtype == dtype
        # a zero terminal SNR starts at sigma 4096: what is left of the sample there is a difference of large numbers
        cancelled = np.abs(sample).max() if ours.config.get("rescale_betas_zero_snr") else 0.0
        assert_close(found.prev_sample, expected.prev_sample.numpy(), scale=cancelled)
        clean = getattr(expected, "pred_original_sample", None)
        if clean is not None:
            assert_close(found.pred_original_sample, clean.numpy())
        sample = expected.prev_sample.numpy().copy()


def carries_float32(theirs: Any) -> bool:
    """Whether diffusers' float32 steps are within the tolerance of its own float64 steps from the same samples."""
    sample = torch.from_numpy(np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32))
    sample *= float(theirs.init_noise_sigma)
    exact = copy.deepcopy(theirs)
    for index, timestep in enumerate(theirs.timesteps):
        output = torch.from_numpy(model(theirs.scale_model_input(sample, timestep).numpy(), index, 4))
        expected = exact.step(output.double(), timestep, sample.double(), return_dict=False)[0]
        sample = theirs.step(output, timestep, sample, return_dict=False)[0]
        if not (sample - expected).abs().max() <= TOLERANCE * expected.abs().max():
            return False
    return True


def assert_close(found: np.ndarray, expected: np.ndarray, *, scale: float = 0.0) -> None:
    assert found.shape == expected.shape
    if np.isnan(expected).any():
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        return
    assert np.abs(found - expected).max() <= TOLERANCE * max(np.abs(expected).max(), scale)


def set_both(ours: Any, theirs: Any, **options: Any) -> None:
    with warnings.catch_warnings():  # diffusers' own: NumPy arrays of torch tensors, in Euler's set_timesteps
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs.set_timesteps(**options)
    ours.set_timesteps(**options)
