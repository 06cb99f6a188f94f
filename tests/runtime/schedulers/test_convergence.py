"""Samplers against closed forms: for data of a normal distribution everything is known.

Data of mean mu and deviation s, seen through a noise level (alpha, sigma), is normal with mean alpha * mu and variance
alpha**2 * s**2 + sigma**2. So the best prediction is a formula, and the probability-flow ODE only moves and scales: a
sample keeps its distance from the mean, in deviations, from the noisy end to the clean one.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from safelight.runtime import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, Generator, PNDMScheduler
from safelight.runtime.schedulers import Scheduler

MEAN, DEVIATION = 0.7, 0.4
TRAIN_STEPS = 961  # timesteps 0, ..., 960, which many numbers of steps divide
BAND = 0.9, 1.1  # an error is 2**order times that of half the step, give or take this factor


def log_alpha_bar(timestep: float) -> float:
    """A noise schedule that is smooth as far as its clean end, so that orders show with few steps."""
    time = timestep / (TRAIN_STEPS - 1)
    return -0.1 - time - 4 * time**2


def smooth_betas() -> list[float]:
    logs = np.array([0.0, *map(log_alpha_bar, range(TRAIN_STEPS))])
    return (1 - np.exp(np.diff(logs))).tolist()


def levels(timestep: float) -> tuple[float, float]:
    """Alpha and sigma of a timestep, which need not be whole."""
    alpha_bar = np.exp(log_alpha_bar(timestep))
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def spread(alpha: float, sigma: float, deviation: float = DEVIATION) -> float:
    """The deviation of noisy samples."""
    return float((alpha**2 * deviation**2 + sigma**2) ** 0.5)


def best_noise(
    sample: np.ndarray, alpha: float, sigma: float, *, mean: float = MEAN, deviation: float = DEVIATION
) -> np.ndarray:
    """The expectation of the noise, given the noisy sample."""
    return sigma * (sample - alpha * mean) / spread(alpha, sigma, deviation) ** 2


def best_output(prediction_type: str, sample: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    noise = best_noise(sample, alpha, sigma)
    clean = (sample - sigma * noise) / alpha
    return {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}[prediction_type]


# Deterministic samplers: the order at which they approach the ODE


def distances() -> np.ndarray:
    """Of samples from the mean, in deviations."""
    return np.linspace(-2, 2, 8).reshape(2, 4)


def error_of(scheduler: Scheduler, steps: int, *, calls: int | None = None) -> float:
    """How far from the ODE's solution a sampler ends that starts on it, for samples of variance 1.

    Stops after so many calls of the model.
    """
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    alpha, sigma = levels(timesteps[0])
    sample = alpha * MEAN + spread(alpha, sigma) * distances()
    for timestep in timesteps[:calls]:
        output = best_output(scheduler.config["prediction_type"], sample, *levels(timestep))
        sample = scheduler.step(output, timestep, sample).prev_sample
    alpha, sigma = levels(0 if calls is None else timesteps[calls])
    return float(np.abs(sample - alpha * MEAN - spread(alpha, sigma) * distances()).max())


def euler_error_of(scheduler: EulerDiscreteScheduler, steps: int) -> float:
    """The same for samples that are not scaled down."""
    scheduler.set_timesteps(steps)
    alpha, sigma = levels(float(scheduler.timesteps[0]))
    sample = MEAN + spread(1, sigma / alpha) * distances()
    for timestep in scheduler.timesteps.tolist():
        scaled = scheduler.scale_model_input(sample, timestep)
        output = best_output(scheduler.config["prediction_type"], scaled, *levels(timestep))
        sample = scheduler.step(output, timestep, sample).prev_sample
    alpha, sigma = levels(0)
    return float(np.abs(sample - MEAN - spread(1, sigma / alpha) * distances()).max())


def assert_order(order: int, errors: list[float]) -> None:
    """Each error has twice the steps of the one before it."""
    low, high = BAND
    for error, halved in pairwise(errors):
        assert low * 2**order < error / halved < high * 2**order, errors


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_ddim_approaches_the_ode_at_first_order(prediction_type: str) -> None:
    scheduler = DDIMScheduler(
        TRAIN_STEPS,
        trained_betas=smooth_betas(),
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction_type,
    )
    assert_order(1, [error_of(scheduler, steps) for steps in (20, 40, 80, 160)])


@pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_exponential_sigmas", None])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_euler_approaches_the_ode_at_first_order(prediction_type: str, spacing: str | None) -> None:
    options: dict[str, Any] = {spacing: True} if spacing else {}
    scheduler = EulerDiscreteScheduler(
        TRAIN_STEPS,
        trained_betas=smooth_betas(),
        final_sigmas_type="sigma_min",
        prediction_type=prediction_type,
        **options,
    )
    # one more, since "linspace" counts both ends
    assert_order(1, [euler_error_of(scheduler, steps + 1) for steps in (20, 40, 80, 160)])


# PNDM is of second order, not fourth: its weights are those of equal steps in the noise level, which are not equal.
# With v-prediction, which the paper does not have, diffusers and so PNDMScheduler mix the velocities of several levels
# and turn the mixture into noise at one of them: that is of first order.
@pytest.mark.parametrize(("prediction_type", "order"), [("epsilon", 2), ("v_prediction", 1)])
@pytest.mark.parametrize("skip_prk_steps", [True, False])
def test_pndm_approaches_the_ode_at_its_order(skip_prk_steps: bool, prediction_type: str, order: int) -> None:
    scheduler = PNDMScheduler(
        TRAIN_STEPS, trained_betas=smooth_betas(), skip_prk_steps=skip_prk_steps, prediction_type=prediction_type
    )
    assert_order(order, [error_of(scheduler, steps) for steps in (40, 80, 160)])


@pytest.mark.parametrize(("skip_prk_steps", "calls"), [(True, (2, 3, 4)), (False, (4, 8, 12))])
def test_pndms_first_steps_are_of_second_order_too(skip_prk_steps: bool, calls: tuple[int, ...]) -> None:
    scheduler = PNDMScheduler(TRAIN_STEPS, trained_betas=smooth_betas(), skip_prk_steps=skip_prk_steps)
    for first in calls:  # one, two and three steps; each adds an error of third order, or less near noise
        error, halved = (error_of(scheduler, steps, calls=first) for steps in (20, 40))
        assert error / halved > 2**3


@pytest.mark.parametrize("wrong", [0, 2])
def test_the_band_tells_orders_apart(wrong: int) -> None:
    scheduler = DDIMScheduler(TRAIN_STEPS, trained_betas=smooth_betas(), clip_sample=False, set_alpha_to_one=False)
    with pytest.raises(AssertionError):
        assert_order(wrong, [error_of(scheduler, steps) for steps in (40, 80)])


# Stochastic samplers: the mean and the variance at every noise level


COUNT = 40_000
BOUND = 4.5  # standard errors


def assert_normal(sample: np.ndarray, mean: float, deviation: float) -> None:
    """Mean and variance within statistical bounds."""
    assert abs(sample.mean() - mean) <= deviation * BOUND / COUNT**0.5
    assert abs(sample.var() / deviation**2 - 1) <= BOUND * (2 / COUNT) ** 0.5


def best_variance(timestep: int, previous: int, alpha_bars: np.ndarray, deviation: float) -> float:
    """The variance of the sample at the previous timestep, given that at this one."""
    ratio = alpha_bars[timestep] / alpha_bars[previous]
    now, before = (alpha_bars[time] * deviation**2 + 1 - alpha_bars[time] for time in (timestep, previous))
    return float(before - ratio * before**2 / now)


@pytest.mark.parametrize("steps", [4, 20, 100])
@pytest.mark.parametrize(
    ("scheduler", "deviation", "options"),
    [
        # one point: the posterior, given the clean sample, is exact
        pytest.param(DDPMScheduler(clip_sample=False), 0.0, {}, id="DDPM, fixed_small, one point"),
        pytest.param(DDIMScheduler(clip_sample=False), 0.0, {"eta": 1.0}, id="DDIM, eta 1, one point"),
        # variance 1: that of the forward step is exact (Ho et al., section 3.2)
        pytest.param(
            DDPMScheduler(clip_sample=False, variance_type="fixed_large"), 1.0, {}, id="DDPM, fixed_large, variance 1"
        ),
        # any: the best variance is a formula too
        *(
            pytest.param(
                DDPMScheduler(clip_sample=False, variance_type="learned"),
                deviation,
                {},
                id=f"DDPM, learned, {deviation}",
            )
            for deviation in (0.3, 1.7)
        ),
    ],
)
def test_ancestral_sampling_keeps_the_mean_and_the_variance_of_every_level(
    scheduler: Scheduler, deviation: float, options: dict[str, Any], steps: int
) -> None:
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    generator = Generator(0)
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps.tolist()
    alpha, sigma = alpha_bars[visited[0]] ** 0.5, (1 - alpha_bars[visited[0]]) ** 0.5
    sample = alpha * MEAN + spread(alpha, sigma, deviation) * generator.randn((1, 1, COUNT), np.float64)
    for timestep, previous in pairwise(visited):
        output = best_noise(sample, alpha, sigma, mean=MEAN, deviation=deviation)
        if scheduler.config.get("variance_type") == "learned":
            variance = best_variance(timestep, previous, alpha_bars, deviation)
            output = np.concatenate([output, np.full_like(output, variance)], axis=1)
        sample = scheduler.step(output, timestep, sample, generator=generator, **options).prev_sample
        alpha, sigma = alpha_bars[previous] ** 0.5, (1 - alpha_bars[previous]) ** 0.5
        assert_normal(sample, alpha * MEAN, spread(alpha, sigma, deviation))


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        pytest.param(DDPMScheduler(clip_sample=False), {}, id="DDPM"),
        pytest.param(DDIMScheduler(clip_sample=False), {"eta": 1.0}, id="DDIM, eta 1"),
        pytest.param(DDIMScheduler(clip_sample=False), {}, id="DDIM"),
    ],
)
def test_all_training_steps_give_the_datas_mean_and_variance(scheduler: Scheduler, options: dict[str, Any]) -> None:
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    generator = Generator(0)
    scheduler.set_timesteps(1000)
    sample = generator.randn((1, 1, COUNT))
    for timestep in scheduler.timesteps.tolist():
        alpha, sigma = alpha_bars[timestep] ** 0.5, (1 - alpha_bars[timestep]) ** 0.5
        output = best_noise(sample, alpha, sigma).astype(np.float32)
        sample = scheduler.step(output, timestep, sample, generator=generator, **options).prev_sample
    assert_normal(sample, MEAN, DEVIATION)


def test_ddim_with_all_of_the_noise_is_ddpm() -> None:
    ddim, ddpm = DDIMScheduler(clip_sample=False), DDPMScheduler(clip_sample=False)
    for scheduler in (ddim, ddpm):
        scheduler.set_timesteps(20)
    sample, output = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8))
    for timestep in ddpm.timesteps.tolist():
        expected = ddpm.step(output, timestep, sample, generator=Generator(timestep)).prev_sample
        found = ddim.step(output, timestep, sample, eta=1.0, generator=Generator(timestep)).prev_sample
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
