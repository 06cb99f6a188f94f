"""The samplers of k-diffusion against closed forms: for data of a normal distribution everything is known.

Of data of mean mu and deviation s, samples clean + sigma * noise are normal with mean mu and variance s**2 + sigma**2;
along the probability-flow ODE a sample keeps its distance from the mean, in deviations.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import safelight.runtime
from safelight.runtime import Generator

MEAN, DEVIATION = 0.7, 0.4
LATENT: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAINING = np.sqrt(1 / np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2) - 1)  # sigma of each timestep
DISTANCES = np.linspace(-2, 2, 8).reshape(2, 4)
BAND = 0.85, 1.15  # an error is 2**order times that of half the step, give or take this factor


def level(timestep: float) -> float:
    """Sigma of a timestep, which need not be whole."""
    return float(np.exp(np.interp(timestep, np.arange(1000), np.log(TRAINING))))


def best_output(prediction_type: str, scaled: np.ndarray, sigma: float, deviation: float = DEVIATION) -> np.ndarray:
    """What the best model predicts of its input, a sample over sqrt(sigma**2 + 1)."""
    scale = (sigma**2 + 1) ** 0.5
    sample = scaled * scale
    clean = (sigma**2 * MEAN + deviation**2 * sample) / (sigma**2 + deviation**2)
    noise = (sample - clean) / sigma
    return {"epsilon": noise, "sample": clean, "v_prediction": (noise - sigma * clean) / scale}[prediction_type]


def error_of(name: str, steps: int, prediction_type: str, **step_options: Any) -> float:
    """How far from the ODE's solution a sampler gets that starts on it, before its last step, which is Euler's to 0."""
    scheduler = getattr(safelight.runtime, name)(**LATENT, use_exponential_sigmas=True, prediction_type=prediction_type)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    sample = MEAN + (DEVIATION**2 + level(timesteps[0]) ** 2) ** 0.5 * DISTANCES
    for timestep in timesteps[:-1]:
        output = best_output(prediction_type, scheduler.scale_model_input(sample, timestep), level(timestep))
        sample = scheduler.step(output, timestep, sample, **step_options).prev_sample
    exact = MEAN + (DEVIATION**2 + level(timesteps[-1]) ** 2) ** 0.5 * DISTANCES
    return float(np.abs(sample - exact).max())


def assert_order(order: int, errors: list[float]) -> None:
    """Each error has twice the steps of the one before it."""
    low, high = BAND
    for error, halved in pairwise(errors):
        assert low * 2**order < error / halved < high * 2**order, errors


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        *(("HeunDiscreteScheduler", kind) for kind in ("epsilon", "sample", "v_prediction")),
        *(("KDPM2DiscreteScheduler", kind) for kind in ("epsilon", "v_prediction")),
    ],
)
def test_two_calls_are_of_second_order(name: str, prediction_type: str) -> None:
    assert_order(2, [error_of(name, steps + 1, prediction_type) for steps in (40, 80, 160)])


# The first steps of a high order are of lower ones. They are taken where there is little but noise and a step changes
# little of the direction, so that the order shows all the same.
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    ("order", "steps"), [(1, (80, 160, 320)), (2, (80, 160, 320)), (3, (80, 160, 320)), (4, (80, 160))]
)
def test_lms_is_of_the_order_that_a_step_is_asked_for(order: int, steps: tuple[int, ...], prediction_type: str) -> None:
    errors = [error_of("LMSDiscreteScheduler", count + 1, prediction_type, order=order) for count in steps]
    if order < 4:
        assert_order(order, errors)
    else:  # not there yet where the float32 levels begin to show, but past the third
        assert 2**3.5 < errors[0] / errors[1] < 2**4.5


# Ancestral samplers: the mean and the variance of every noise level


COUNT = 40_000
BOUND = 4.5  # standard errors
ANCESTRAL = ["EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"]


def moments(name: str, steps: int, deviation: float) -> list[tuple[float, float, float]]:
    """Of each level: its sigma, and the mean and the deviation of the samples there."""
    scheduler = getattr(safelight.runtime, name)(**LATENT)
    scheduler.set_timesteps(steps)
    generator = Generator(0)
    calls, found = scheduler.timesteps.tolist(), []
    first = level(calls[0])
    sample = MEAN + (deviation**2 + first**2) ** 0.5 * generator.randn((1, 1, COUNT), np.float64)
    for index, timestep in enumerate(calls[:-1]):
        output = best_output("epsilon", scheduler.scale_model_input(sample, timestep), level(timestep), deviation)
        sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
        if index % scheduler.order == scheduler.order - 1:
            found.append((level(calls[index + 1]), float(sample.mean()), float(sample.std())))
    return found


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", ANCESTRAL)
def test_ancestral_steps_are_exact_for_one_point(name: str, steps: int) -> None:
    # not its first levels, where a sampler starts; the direction to a point never changes
    found = moments(name, steps, 0.0)
    assert len(found) == steps - 1
    for sigma, mean, deviation in found:
        assert abs(mean - MEAN) <= BOUND * sigma / COUNT**0.5
        assert abs(deviation / sigma - 1) <= BOUND / (2 * COUNT) ** 0.5


@pytest.mark.parametrize("name", ANCESTRAL)
def test_many_ancestral_steps_give_the_datas_mean_and_variance(name: str) -> None:
    sigma, mean, deviation = moments(name, 600, DEVIATION)[-1]
    assert abs(mean - MEAN) <= BOUND * DEVIATION / COUNT**0.5
    assert abs(deviation / (DEVIATION**2 + sigma**2) ** 0.5 - 1) <= 0.03
