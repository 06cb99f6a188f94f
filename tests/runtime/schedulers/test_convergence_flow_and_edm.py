"""Flow matching, EDM and consistency models against closed forms: for data of a normal distribution all is known.

A sample of level (alpha, sigma) is normal with mean alpha * mu and variance alpha**2 * s**2 + sigma**2, the best
prediction is a formula, and the probability-flow ODE keeps a sample's distance from the mean, in deviations.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from safelight.runtime import (
    CMStochasticIterativeScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Generator,
)

MEAN, DEVIATION = 0.7, 0.4
BAND = 0.9, 1.1  # an error is 2**order times that of half the step, give or take this factor
DISTANCES = np.linspace(-2, 2, 8).reshape(2, 4)  # of samples from the mean, in deviations
FINE: dict[str, Any] = {"num_train_timesteps": 100_000}  # so that the last step, from sigma 1e-5, is a short one


def spread(alpha: float, sigma: float) -> float:
    """The deviation of noisy samples."""
    return float((alpha**2 * DEVIATION**2 + sigma**2) ** 0.5)


def best_clean(sample: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """The expectation of the clean sample, given the noisy one."""
    return MEAN + alpha * DEVIATION**2 * (sample - alpha * MEAN) / spread(alpha, sigma) ** 2


def best_velocity(sample: np.ndarray, sigma: float) -> np.ndarray:
    """The expectation of noise - clean."""
    clean = best_clean(sample, 1 - sigma, sigma)
    return (sample - (1 - sigma) * clean) / sigma - clean


def flow_error_of(scheduler: Any, steps: int, **shift: Any) -> float:
    """How far from the ODE's solution a sampler ends that starts on it."""
    scheduler.set_timesteps(steps + 1, **shift)  # one more, since both ends are counted
    start = float(scheduler.sigmas[0])
    sample = (1 - start) * MEAN + spread(1 - start, start) * DISTANCES
    for timestep in scheduler.timesteps.tolist():
        sample = scheduler.step(best_velocity(sample, timestep / len(scheduler)), timestep, sample).prev_sample
    return float(np.abs(sample - MEAN - DEVIATION * DISTANCES).max())


def assert_order(order: int, errors: list[float]) -> None:
    """Each error has twice the steps of the one before it."""
    low, high = BAND
    for error, halved in pairwise(errors):
        assert low * 2**order < error / halved < high * 2**order, errors


@pytest.mark.parametrize(
    ("options", "shift"),
    [
        ({}, {}),
        ({"shift": 2.0}, {}),
        ({"use_dynamic_shifting": True}, {"mu": 0.5}),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.0}),
    ],
)
def test_euler_approaches_the_flow_at_first_order(options: dict[str, Any], shift: dict[str, Any]) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**FINE, **options)
    assert_order(1, [flow_error_of(scheduler, steps, **shift) for steps in (80, 160, 320)])


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_heun_approaches_the_flow_at_second_order(shift: float) -> None:
    scheduler = FlowMatchHeunDiscreteScheduler(**FINE, shift=shift)
    assert_order(2, [flow_error_of(scheduler, steps) for steps in (160, 320, 640)])


def edm_error_of(scheduler: Any, steps: int) -> float:
    """The same in EDM's formulation; the model's output is what its preconditioning makes the best prediction of."""
    scheduler.set_timesteps(steps + 1)
    sigma_data, highest, lowest = scheduler.config.sigma_data, *scheduler.sigmas[[0, -1]].astype(np.float64)
    sign = -1 if scheduler.config.prediction_type == "v_prediction" else 1
    sample = MEAN + spread(1, highest) * DISTANCES
    for timestep in scheduler.timesteps.tolist():
        scaled = scheduler.scale_model_input(sample, timestep)
        sigma = np.exp(4 * timestep)
        variance = sigma**2 + sigma_data**2
        seen = scaled * variance**0.5
        clean = best_clean(seen, 1, sigma)
        output = sign * (clean - sigma_data**2 / variance * seen) * variance**0.5 / (sigma * sigma_data)
        sample = scheduler.step(output, timestep, sample).prev_sample
    return float(np.abs(sample - MEAN - spread(1, lowest) * DISTANCES).max())


EDM: dict[str, Any] = {"sigma_min": 0.1, "sigma_max": 10.0, "final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_edms_euler_approaches_the_ode_at_first_order(schedule: str, prediction_type: str) -> None:
    scheduler = EDMEulerScheduler(**EDM, sigma_schedule=schedule, prediction_type=prediction_type)
    assert_order(1, [edm_error_of(scheduler, steps) for steps in (40, 80, 160)])


# The curvature at the third order is half of what the polynomial has, as in diffusers: so it is of second order.
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(("solver_order", "order"), [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_edms_dpm_solver_approaches_the_ode_at_its_order(
    schedule: str, solver_order: int, order: int, solver_type: str
) -> None:
    scheduler = EDMDPMSolverMultistepScheduler(
        **EDM, sigma_schedule=schedule, solver_order=solver_order, solver_type=solver_type
    )
    assert_order(order, [edm_error_of(scheduler, steps) for steps in (80, 160, 320)])


@pytest.mark.parametrize("wrong", [0, 2])
def test_the_band_tells_orders_apart(wrong: int) -> None:
    scheduler = EDMEulerScheduler(**EDM)
    with pytest.raises(AssertionError):
        assert_order(wrong, [edm_error_of(scheduler, steps) for steps in (40, 80)])


COUNT = 40_000
BOUND = 4.5  # standard errors


def assert_normal(sample: np.ndarray, mean: float, deviation: float) -> None:
    """Mean and variance within statistical bounds."""
    assert abs(sample.mean() - mean) <= deviation * BOUND / COUNT**0.5
    assert abs(sample.var() / deviation**2 - 1) <= BOUND * (2 / COUNT) ** 0.5


@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_consistency_sampling_keeps_the_mean_and_the_variance_of_every_level(steps: int) -> None:
    scheduler = CMStochasticIterativeScheduler(clip_denoised=False, sigma_min=0.05)
    scheduler.set_timesteps(steps)
    generator = Generator(0)
    lowest, levels = scheduler.config.sigma_min, scheduler.sigmas.astype(np.float64)
    sample = MEAN + spread(1, levels[0]) * generator.randn((1, 1, COUNT), np.float64)
    for timestep, sigma, sigma_next in zip(scheduler.timesteps.tolist(), levels, levels[1:], strict=False):
        consistent = MEAN + (sample - MEAN) * spread(1, lowest) / spread(1, sigma)  # the ODE's other end
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition(sigma)
        output = (consistent - c_skip * sample) / c_out
        sample = scheduler.step(output, timestep, sample, generator=generator).prev_sample
        assert_normal(sample, MEAN, spread(1, sigma_next))
