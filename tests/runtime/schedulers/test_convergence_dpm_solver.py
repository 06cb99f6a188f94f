"""DPM-Solver against the closed form of normal data, for which the ODE only moves and scales; see test_convergence.py.

The model is asked at the noise level itself, rather than at the whole timestep that is nearest to it.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from safelight.runtime import (
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    Generator,
)

MEAN, DEVIATION = 0.7, 0.4
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: levels evenly spaced in lambda, the formulas' own variable, so that orders show
EVEN: dict[str, Any] = {**BETAS, "use_exponential_sigmas": True}
ENDING: dict[str, Any] = {**EVEN, "final_sigmas_type": "sigma_min"}
BAND = 0.8, 1.25  # an error is 2**order times that of half the step, give or take this factor


def levels(sigma: float) -> tuple[float, float]:
    """Alpha and sigma at variance 1."""
    alpha = 1 / (sigma**2 + 1) ** 0.5
    return alpha, sigma * alpha


def on_the_ode(sigma: float) -> np.ndarray:
    """Samples of a noise level that keep their distances from the mean, in deviations."""
    alpha, sigma = levels(sigma)
    return alpha * MEAN + (alpha**2 * DEVIATION**2 + sigma**2) ** 0.5 * np.linspace(-2, 2, 8).reshape(2, 4)


def best_output(prediction_type: str, sample: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    noise = sigma * (sample - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
    clean = (sample - sigma * noise) / alpha
    return {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[prediction_type]


def error_of(scheduler: Any, steps: int) -> float:
    """How far from the ODE's solution a sampler ends that starts on it."""
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.astype(np.float64)
    scheduler._step_index = 0
    sample = on_the_ode(sigmas[0])
    for timestep, sigma in zip(scheduler.timesteps.tolist(), sigmas[:-1], strict=True):
        output = best_output(scheduler.config["prediction_type"], sample, *levels(sigma))
        sample = scheduler.step(output, timestep, sample).prev_sample
    return float(np.abs(sample - on_the_ode(sigmas[-1])).max())


def assert_order(order: int, errors: list[float]) -> None:
    """Each error has twice the steps of the one before it."""
    low, high = BAND
    for error, halved in pairwise(errors):
        assert low * 2**order < error / halved < high * 2**order, errors


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm_type", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize("solver_order", [1, 2, 3])
def test_single_steps_approach_the_ode_at_their_order(
    solver_order: int, algorithm_type: str, solver_type: str, prediction_type: str
) -> None:
    options = {"algorithm_type": algorithm_type, "solver_type": solver_type, "prediction_type": prediction_type}
    scheduler = DPMSolverSinglestepScheduler(solver_order=solver_order, **ENDING, **options)
    assert_order(solver_order, [error_of(scheduler, steps) for steps in (24, 48, 96)])


# The third order is of the second, with a smaller error: the curvature in the authors' formula, and in diffusers, is
# half of the polynomial's.
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm_type", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize(("solver_order", "order"), [(1, 1), (2, 2), (3, 2)])
def test_multiple_steps_approach_the_ode_at_their_order(
    solver_order: int, order: int, algorithm_type: str, solver_type: str, prediction_type: str
) -> None:
    options = {"algorithm_type": algorithm_type, "solver_type": solver_type, "prediction_type": prediction_type}
    scheduler = DPMSolverMultistepScheduler(solver_order=solver_order, **ENDING, **options)
    errors = [error_of(scheduler, steps) for steps in (48, 96, 192)]
    assert_order(order, errors)
    if solver_order > 1:
        lower = DPMSolverMultistepScheduler(solver_order=solver_order - 1, **ENDING, **options)
        assert 2 * errors[-1] < error_of(lower, 192)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm_type", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize(("solver_order", "order"), [(1, 1), (2, 2), (3, 2)])
def test_steps_towards_noise_approach_the_ode_at_their_order(
    solver_order: int, order: int, algorithm_type: str, solver_type: str
) -> None:
    scheduler = DPMSolverMultistepInverseScheduler(
        solver_order=solver_order, algorithm_type=algorithm_type, solver_type=solver_type, **EVEN
    )
    # one more: the last stays at the noisy end
    assert_order(order, [error_of(scheduler, steps + 1) for steps in (48, 96, 192)])


@pytest.mark.parametrize("wrong", [1, 3])
def test_the_band_tells_orders_apart(wrong: int) -> None:
    scheduler = DPMSolverMultistepScheduler(**ENDING)
    with pytest.raises(AssertionError):
        assert_order(wrong, [error_of(scheduler, steps) for steps in (48, 96)])


# Stochastic algorithms: the mean and the variance at every noise level


COUNT = 40_000
BOUND = 4.5  # standard errors


def assert_normal(sample: np.ndarray, mean: float, deviation: float, bias: float) -> None:
    """Mean and variance within statistical bounds, and a bias of the solver's."""
    assert abs(sample.mean() - mean) <= deviation * BOUND / COUNT**0.5 + bias
    assert abs(sample.var() / deviation**2 - 1) <= BOUND * (2 / COUNT) ** 0.5 + bias


@pytest.mark.parametrize(
    ("scheduler", "steps", "deviation", "bias"),
    [
        # one point: the clean sample is known, and the solution exact
        *(
            pytest.param(
                kind(algorithm_type="sde-dpmsolver++", solver_order=order, **ENDING),
                steps,
                0.0,
                0.0,
                id=f"{order} {steps}",
            )
            for kind in (DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler)
            for order in (1, 2, 3)
            for steps in (6, 24)
        ),
        *(
            pytest.param(
                DPMSolverMultistepScheduler(algorithm_type=algorithm, solver_order=order, **ENDING),
                200,
                DEVIATION,
                0.02,
                id=f"{algorithm} {order}",
            )
            for algorithm, order in (("sde-dpmsolver", 2), ("sde-dpmsolver", 3), ("sde-dpmsolver++", 2))
        ),
    ],
)
def test_noise_keeps_the_mean_and_the_variance_of_every_level(
    scheduler: Any, steps: int, deviation: float, bias: float
) -> None:
    generator = Generator(0)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.astype(np.float64)
    scheduler._step_index = 0
    alpha, sigma = levels(sigmas[0])
    sample = alpha * MEAN + (alpha**2 * deviation**2 + sigma**2) ** 0.5 * generator.randn((1, 1, COUNT), np.float64)
    for place, timestep in enumerate(scheduler.timesteps.tolist()):
        noise = sigma * (sample - alpha * MEAN) / (alpha**2 * deviation**2 + sigma**2)
        sample = scheduler.step(noise, timestep, sample, generator=generator).prev_sample
        alpha, sigma = levels(sigmas[place + 1])
        assert_normal(sample, alpha * MEAN, (alpha**2 * deviation**2 + sigma**2) ** 0.5, bias)
