"""UniPC, DEIS, SA-Solver and iPNDM against closed forms: for data of a normal distribution everything is known.

Data of mean mu and deviation s, seen through a noise level (alpha, sigma), is normal with mean alpha * mu and variance
alpha**2 * s**2 + sigma**2. So the best prediction is a formula, and the probability-flow ODE only moves and scales: a
sample keeps its distance from the mean, in deviations.
"""

from typing import Any

import numpy as np
import pytest

from safelight.runtime import (
    DEISMultistepScheduler,
    Generator,
    IPNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

MEAN, DEVIATION = 0.7, 0.4
HIGHEST, LOWEST = 20.0, 0.2  # sigma
DISTANCES = np.linspace(-2, 2, 8).reshape(2, 4)  # of samples from the mean, in deviations


def spread(alpha: float, sigma: float) -> float:
    """The deviation of noisy samples."""
    return float((alpha**2 * DEVIATION**2 + sigma**2) ** 0.5)


def best_noise(sample: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """The expectation of the noise, given the noisy sample."""
    return sigma * (sample - alpha * MEAN) / spread(alpha, sigma) ** 2


def best_output(kind: str, sample: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    noise = best_noise(sample, alpha, sigma)
    clean = (sample - sigma * noise) / alpha
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha * noise - sigma * clean,
        "flow_prediction": noise - clean,
    }[kind]


def error_of(scheduler: Any, steps: int) -> float:
    """How far from the ODE's solution a solver ends that starts on it; levels are evenly spaced in log-SNR."""
    scheduler.set_timesteps(steps)
    if not scheduler.config["use_flow_sigmas"]:
        scheduler.sigmas = np.geomspace(HIGHEST, LOWEST, steps + 1)  # in float64
        scheduler.timesteps = np.arange(steps, 0, -1)
    else:
        scheduler.sigmas = np.linspace(0.95, 0.15, steps + 1)
    levels = [tuple(map(float, scheduler._alpha_sigma(sigma))) for sigma in scheduler.sigmas]
    sample = levels[0][0] * MEAN + spread(*levels[0]) * DISTANCES
    for timestep, level in zip(scheduler.timesteps.tolist(), levels[:-1], strict=True):
        output = best_output(scheduler.config["prediction_type"], sample, *level)
        sample = scheduler.step(output, timestep, sample).prev_sample
    return float(np.abs(sample - levels[-1][0] * MEAN - spread(*levels[-1]) * DISTANCES).max())


def order_of(scheduler: Any, *steps: int) -> float:
    """The order that two numbers of steps show."""
    few, many = steps
    return float(np.log(error_of(scheduler, few) / error_of(scheduler, many)) / np.log(many / few))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_approaches_the_ode_at_its_order(order: int, kind: str) -> None:
    scheduler = DEISMultistepScheduler(solver_order=order, prediction_type=kind, lower_order_final=False)
    assert order - 0.3 < order_of(scheduler, 80, 160) < order + 0.3


# with its corrector UniPC is one order better than its predictor, but for the last step, which nobody corrects
@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_approaches_the_ode_above_its_order(order: int, solver_type: str, predict_x0: bool) -> None:
    scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type=solver_type, predict_x0=predict_x0, lower_order_final=False
    )
    assert order_of(scheduler, 80, 160) > order + 0.6


# "bh2" has a third order at the second for this data, by luck
@pytest.mark.parametrize(("order", "solver_type"), [(1, "bh1"), (1, "bh2"), (2, "bh1"), (3, "bh1"), (3, "bh2")])
def test_unipcs_predictor_alone_has_its_order(order: int, solver_type: str) -> None:
    scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type=solver_type, disable_corrector=list(range(160)), lower_order_final=False
    )
    assert order - 0.3 < order_of(scheduler, 80, 160) < order + 0.3


@pytest.mark.parametrize("algorithm_type", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize(("predictor", "corrector", "order"), [(1, 1, 1), (2, 2, 2), (3, 3, 3), (3, 4, 4)])
def test_sa_solver_without_noise_approaches_the_ode_at_its_order(
    predictor: int, corrector: int, order: int, algorithm_type: str
) -> None:
    scheduler = SASolverScheduler(
        predictor_order=predictor,
        corrector_order=corrector,
        algorithm_type=algorithm_type,
        tau_func=lambda timestep: 0.0,
        lower_order_final=False,
    )
    assert order_of(scheduler, 80, 160) > order - 0.4


@pytest.mark.parametrize("kind", [UniPCMultistepScheduler, DEISMultistepScheduler])
def test_flows_are_followed_at_the_second_order(kind: Any) -> None:
    scheduler = kind(use_flow_sigmas=True, prediction_type="flow_prediction", lower_order_final=False)
    assert order_of(scheduler, 80, 160) > 1.7


COUNT = 40_000
BOUND = 4.5  # standard errors


@pytest.mark.parametrize("algorithm_type", ["data_prediction", "noise_prediction"])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_sa_solver_with_noise_keeps_the_mean_and_the_variance(tau: float, algorithm_type: str) -> None:
    scheduler = SASolverScheduler(algorithm_type=algorithm_type, tau_func=lambda timestep: tau)
    scheduler.set_timesteps(300)
    generator = Generator(0)
    alpha, sigma = map(float, scheduler._alpha_sigma(scheduler.sigmas[0]))
    sample = alpha * MEAN + spread(alpha, sigma) * generator.randn((1, 1, COUNT), np.float64)
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        alpha, sigma = map(float, scheduler._alpha_sigma(scheduler.sigmas[index]))
        sample = scheduler.step(best_noise(sample, alpha, sigma), timestep, sample, generator=generator).prev_sample
    alpha, sigma = map(float, scheduler._alpha_sigma(scheduler.sigmas[-1]))
    deviation = spread(alpha, sigma)
    assert abs(sample.mean() - alpha * MEAN) <= deviation * BOUND / COUNT**0.5
    assert abs(sample.var() / deviation**2 - 1) <= BOUND * (2 / COUNT) ** 0.5 + 5e-3


def ipndm_error_of(steps: int) -> float:
    """The same for iPNDM, whose levels end without noise."""
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(steps)
    angles = np.linspace(0.9, 0.1, steps + 1) * np.pi / 2
    scheduler.betas, scheduler.alphas = np.sin(angles), np.cos(angles)
    scheduler.timesteps = angles[:-1]
    level = scheduler.alphas[0], scheduler.betas[0]
    sample = level[0] * MEAN + spread(*level) * DISTANCES
    for index, timestep in enumerate(scheduler.timesteps.tolist()):
        level = scheduler.alphas[index], scheduler.betas[index]
        noise = best_noise(sample, *level)
        output = (noise - level[1] * sample) / level[0]  # what stands for that noise
        sample = scheduler.step(output, timestep, sample).prev_sample
    level = scheduler.alphas[-1], scheduler.betas[-1]
    return float(np.abs(sample - level[0] * MEAN - spread(*level) * DISTANCES).max())


# of second order, not fourth: its weights are those of even steps, which the noise levels are not
def test_ipndm_approaches_the_ode_at_second_order() -> None:
    assert 1.7 < np.log2(ipndm_error_of(80) / ipndm_error_of(160)) < 2.3
