"""DPM-Solver-SDE step by step against diffusers, which is given our noise; its mean and variance in closed form.

diffusers imports torchsde for its own noise only. Where that is not installed, an empty module stands in for it.

Where diffusers fails, or is not followed:

- A loop that starts at the second call of a step (an odd place in the timesteps) is refused here; diffusers takes the
  call for a first one, between two equal levels, and divides by zero.
- Two equal levels (as many "leading" steps as training timesteps, and an offset) give NaN there, no noise here.
- prediction_type "sample" is refused when the scheduler is made; in diffusers, by the first step.
"""

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import LATENT, SHAPE, SHARED, STEPS, assert_close, cases, model

from safelight.runtime import DPMSolverSDEScheduler
from safelight.runtime.schedulers.brownian import BrownianNoise

# diffusers' own: NumPy arrays of torch tensors, in set_timesteps
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OPTIONS: list[dict[str, Any]] = [
    *SHARED,
    {**LATENT, "use_karras_sigmas": True},
    {**LATENT, "use_exponential_sigmas": True},
    {**LATENT, "use_beta_sigmas": True},
    {**LATENT, "prediction_type": "v_prediction", "use_karras_sigmas": True},
]


@pytest.fixture(scope="module")
def diffusers_scheduler() -> Iterator[Any]:
    """diffusers' class, whether or not torchsde is there."""
    stand_in = "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None
    if stand_in:
        sys.modules["torchsde"] = types.ModuleType("torchsde")
    try:
        yield importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    finally:
        if stand_in:
            del sys.modules["torchsde"]


class Recorded:
    """A noise sampler that remembers what it gave; `again` gives it to diffusers, at the same levels."""

    def __init__(self, sample: np.ndarray, sigmas: np.ndarray) -> None:
        self.sampler = BrownianNoise(sample.shape, 0.0, float(sigmas.max()), 5)
        self.given: list[tuple[float, float, np.ndarray]] = []

    def __call__(self, sigma: float, sigma_next: float) -> np.ndarray:
        self.given.append((sigma, sigma_next, self.sampler(sigma, sigma_next)))
        return self.given[-1][-1].copy()

    def again(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        expected = self.given.pop(0)
        assert (float(sigma), float(sigma_next)) == pytest.approx(expected[:2], rel=2e-6)
        return torch.from_numpy(expected[-1])


def start_of(scheduler: Any, dtype: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(SHAPE) * scheduler.init_noise_sigma).astype(dtype)


def pair(scheduler: Any, **options: Any) -> tuple[Any, Any]:
    return DPMSolverSDEScheduler(**options), scheduler(**options)


def assert_schedules_equal(ours: Any, theirs: Any) -> None:
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)
    # a middle timestep comes of the difference of two logarithms, in float32 here
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6, atol=5e-5)


def assert_steps_equal(ours: Any, theirs: Any, begin: int = 0, **step_options: Any) -> None:
    """Walks both from the same sample, with the same noise; each step starts from diffusers' result."""
    assert_schedules_equal(ours, theirs)
    sample = start_of(ours)
    recorded = Recorded(sample, ours.sigmas)
    ours.noise_sampler, theirs.noise_sampler = recorded, recorded.again
    calls = zip(ours.timesteps.tolist()[begin:], theirs.timesteps[begin:], strict=True)
    for index, (own, timestep) in enumerate(calls):
        assert ours.state_in_first_order == theirs.state_in_first_order
        before = sample.copy()
        scaled = theirs.scale_model_input(torch.from_numpy(sample.copy()), timestep).numpy()
        assert_close(ours.scale_model_input(sample, own), scaled)
        output = model(scaled, index, 4)
        found = ours.step(output, own, sample, **step_options)
        np.testing.assert_array_equal(sample, before)
        if not step_options.get("s_noise", 1.0):
            theirs.noise_sampler = lambda *levels: torch.zeros(1)
        expected = theirs.step(torch.from_numpy(output), timestep, torch.from_numpy(sample), **step_options)
        assert found.prev_sample.dtype == np.float32
        assert_close(found.prev_sample, expected.prev_sample.numpy())
        assert_close(found.pred_original_sample, expected.pred_original_sample.numpy())
        assert ours.step_index == theirs.step_index
        assert not recorded.given
        sample = expected.prev_sample.numpy().copy()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "options"), cases({"DPMSolverSDEScheduler": OPTIONS}))
def test_each_step_equals_diffusers(diffusers_scheduler: Any, name: str, options: dict[str, Any], steps: int) -> None:
    ours, theirs = pair(diffusers_scheduler, **options)
    assert_schedules_equal(ours, theirs)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("s_noise", [0.0, 0.7, 1.1])
def test_the_noises_deviation(diffusers_scheduler: Any, s_noise: float) -> None:
    ours, theirs = pair(diffusers_scheduler, **LATENT)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    assert_steps_equal(ours, theirs, s_noise=s_noise)


@pytest.mark.parametrize("train_steps", [500, 700])
def test_steps_over_a_part_of_the_training(diffusers_scheduler: Any, train_steps: int) -> None:
    ours, theirs = pair(diffusers_scheduler, **LATENT)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10, num_train_timesteps=train_steps)
    assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("begin", [4, 18])
def test_a_loop_may_start_late(diffusers_scheduler: Any, begin: int, told: bool) -> None:
    ours, theirs = pair(diffusers_scheduler, **LATENT)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
        if told:
            scheduler.set_begin_index(begin)
    assert_steps_equal(ours, theirs, begin)


def test_a_loop_that_starts_within_a_step_is_refused() -> None:
    scheduler = DPMSolverSDEScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="is in the middle of a step"):
        scheduler.step(np.zeros(SHAPE, np.float32), scheduler.timesteps[5], np.zeros(SHAPE, np.float32))


def test_adding_noise(diffusers_scheduler: Any) -> None:
    ours, theirs = pair(diffusers_scheduler, **LATENT)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    for begin in (None, 4):
        if begin is not None:
            ours.set_begin_index(begin)
            theirs.set_begin_index(begin)
        found = ours.add_noise(clean, noise, ours.timesteps[[2, 8]])
        expected = theirs.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), theirs.timesteps[[2, 8]])
        assert_close(found, expected.numpy())


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float16, 1e-2)])
def test_the_samples_dtype_is_kept(diffusers_scheduler: Any, dtype: Any, tolerance: float) -> None:
    ours, theirs = pair(diffusers_scheduler, **LATENT)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(5)
    sample = start_of(ours, dtype)
    recorded = Recorded(sample, ours.sigmas)
    ours.noise_sampler, theirs.noise_sampler = recorded, lambda *levels: recorded.again(*levels).to(tensor.dtype)
    for own, timestep in zip(ours.timesteps, theirs.timesteps, strict=True):
        output = np.tanh(sample)
        found = ours.step(output, own, sample)
        tensor = torch.from_numpy(sample)
        expected = theirs.step(torch.from_numpy(output), timestep, tensor).prev_sample.numpy()
        assert found.prev_sample.dtype == found.pred_original_sample.dtype == expected.dtype == dtype
        assert np.abs(found.prev_sample - expected).max() <= tolerance * np.abs(expected).max()
        sample = found.prev_sample


def test_the_keywords_are_diffusers(diffusers_scheduler: Any) -> None:
    found, expected = (
        [(one.name, one.default) for one in inspect.signature(scheduler).parameters.values()]
        for scheduler in (DPMSolverSDEScheduler, diffusers_scheduler)
    )
    assert found == expected
    for method in ("set_timesteps", "step", "scale_model_input", "add_noise"):
        found, expected = (
            list(inspect.signature(getattr(scheduler, method)).parameters)
            for scheduler in (DPMSolverSDEScheduler, diffusers_scheduler)
        )
        assert found == expected
    assert DPMSolverSDEScheduler.order == diffusers_scheduler.order == 2


@pytest.mark.parametrize("seed", [None, 3, [4, 5]])
def test_configurations_go_both_ways(diffusers_scheduler: Any, tmp_path: Path, seed: Any) -> None:
    ours, theirs = pair(diffusers_scheduler, **LATENT, noise_sampler_seed=seed)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    read = diffusers_scheduler.from_pretrained(tmp_path / "ours")
    assert {key: value for key, value in read.config.items() if key != "_use_default_values"} == {
        key: value for key, value in theirs.config.items() if key != "_use_default_values"
    }
    assert repr(DPMSolverSDEScheduler.from_pretrained(tmp_path / "theirs")) == repr(ours)


def test_a_tuple_holds_the_same() -> None:
    scheduler = DPMSolverSDEScheduler(noise_sampler_seed=3)
    sample = start_of(scheduler)
    results = []
    for return_dict in (True, False):
        scheduler.set_timesteps(4)
        results.append(scheduler.step(sample, scheduler.timesteps[0], sample, return_dict=return_dict))
    assert isinstance(results[1], tuple)
    np.testing.assert_array_equal(results[1][0], results[0].prev_sample)
    np.testing.assert_array_equal(results[1][1], results[0].pred_original_sample)


# Noise


def sampled(steps: int = 4, **options: Any) -> np.ndarray:
    scheduler = DPMSolverSDEScheduler(**LATENT, **options)
    scheduler.set_timesteps(steps)
    sample = start_of(scheduler)
    for index, timestep in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(sample, timestep), index, 4)
        sample = scheduler.step(output, timestep, sample).prev_sample
    return sample


def test_a_seed_gives_the_same_picture() -> None:
    np.testing.assert_array_equal(sampled(noise_sampler_seed=0), sampled(noise_sampler_seed=0))
    assert not np.array_equal(sampled(noise_sampler_seed=0), sampled(noise_sampler_seed=1))
    assert not np.array_equal(sampled(), sampled())


def test_each_image_may_have_its_seed() -> None:
    both, other = sampled(noise_sampler_seed=[4, 5]), sampled(noise_sampler_seed=[9, 5])
    np.testing.assert_array_equal(both[1], other[1])
    assert not np.array_equal(both[0], other[0])
    with pytest.raises(ValueError, match="there are 2 images and 3 seeds"):
        sampled(noise_sampler_seed=[1, 2, 3])


def test_setting_the_timesteps_starts_the_noise_anew() -> None:
    scheduler = DPMSolverSDEScheduler(noise_sampler_seed=0)
    sample = start_of(scheduler)
    firsts = []
    for _ in range(2):
        scheduler.set_timesteps(4)
        assert scheduler.noise_sampler is None
        firsts.append(scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample)
        assert scheduler.noise_sampler is not None
    np.testing.assert_array_equal(*firsts)


def test_equal_levels_have_no_noise() -> None:
    scheduler = DPMSolverSDEScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(1000)
    sample = start_of(scheduler)
    for timestep in scheduler.timesteps[:3].tolist():
        sample = scheduler.step(sample, timestep, sample).prev_sample
        assert np.isfinite(sample).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "sample"}, "unknown prediction_type 'sample'; known: epsilon, v_prediction"),
        ({"beta_schedule": "sigmoid"}, "unknown beta_schedule 'sigmoid'"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of use_karras_sigmas"),
    ],
)
def test_options_that_are_not_possible_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPMSolverSDEScheduler(**options)


def test_what_every_scheduler_refuses() -> None:
    scheduler = DPMSolverSDEScheduler()
    sample = np.zeros(SHAPE, np.float32)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(sample, 999, sample)
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError, match=f"num_inference_steps must lie between 1 and 1000, got {steps}"):
            scheduler.set_timesteps(steps)
    scheduler.set_timesteps(1)
    with pytest.raises(ValueError, match="model_output must have the sample's shape"):
        scheduler.step(sample[:1], scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match="timestep 450 is not in the schedule"):
        scheduler.step(sample, 450, sample)
    scheduler.step(sample, scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match="the schedule is at its end"):
        scheduler.step(sample, scheduler.timesteps[0], sample)


# Closed forms. Without its noise the solver's equation is d(x)/d(log sigma) = 2 (x - clean), where the ODE has 1 (x -
# clean). For data of a normal distribution the best clean sample is linear in the sample, a step is then exact, and a
# sample's distance from the mean goes as the variance at its level.

MEAN, DEVIATION = 0.7, 0.4

Denoiser = Callable[[np.ndarray, float], np.ndarray]


def variance(sigma: Any) -> Any:
    return DEVIATION**2 + sigma**2


def best(sample: np.ndarray, sigma: float) -> np.ndarray:
    return MEAN + (sample - MEAN) * DEVIATION**2 / variance(sigma)


def halfway(sample: np.ndarray, sigma: float) -> np.ndarray:
    """Of no data, but one for which the equation is solved: the distance from the mean goes as sigma."""
    return (sample + MEAN) / 2


def levels_of_calls(scheduler: DPMSolverSDEScheduler) -> np.ndarray:
    """Where the model is called, for all steps but the last; then the level where they end."""
    starts = scheduler.sigmas[:-1:2].astype(np.float64)
    middles = (starts[:-1] * starts[1:]) ** 0.5
    return np.append(np.stack([starts[:-1], middles], axis=1).reshape(-1), starts[-1])


def walked(
    scheduler: DPMSolverSDEScheduler, denoiser: Denoiser, sample: np.ndarray, s_noise: float
) -> Iterator[tuple[float, np.ndarray]]:
    """The samples at the end of each step but the last, with their level."""
    levels = levels_of_calls(scheduler)
    for index, (timestep, sigma) in enumerate(zip(scheduler.timesteps[:-1], levels, strict=False)):
        clean = denoiser(sample, sigma)
        noise = (sample - clean) / sigma
        velocity = (noise - sigma * clean) / (1 + sigma**2) ** 0.5
        output = noise if scheduler.config["prediction_type"] == "epsilon" else velocity
        sample = scheduler.step(output, timestep, sample, s_noise=s_noise).prev_sample
        if index % 2:
            yield levels[index + 1], sample


def noiseless_error(
    denoiser: Denoiser, distance: Callable[[float], float], steps: int, prediction_type: str, spacing: str
) -> float:
    """How far from the solution the last sample is, relative to its distance from the mean."""
    options: dict[str, Any] = {spacing: True, "prediction_type": prediction_type}
    scheduler = DPMSolverSDEScheduler(**LATENT, **options)
    scheduler.set_timesteps(steps + 1)
    start = np.linspace(-2, 2, 8).reshape(2, 4)
    first = float(scheduler.sigmas[0])
    *_, (sigma, sample) = walked(scheduler, denoiser, MEAN + distance(first) * start, 0.0)
    return float(np.abs((sample - MEAN) / distance(sigma) - start).max())


@pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_noise_it_is_of_second_order(prediction_type: str, spacing: str) -> None:
    errors = [noiseless_error(halfway, lambda sigma: sigma, steps, prediction_type, spacing) for steps in (20, 40, 80)]
    for error, halved in pairwise(errors):
        assert 0.8 * 4 < error / halved < 1.2 * 4, errors


@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_noise_it_is_exact_for_a_normal_distribution(prediction_type: str, steps: int) -> None:
    assert noiseless_error(best, variance, steps, prediction_type, "use_karras_sigmas") < 1e-4


def test_with_noise_the_mean_and_the_variance_of_every_level_are_kept() -> None:
    count = 40_000
    scheduler = DPMSolverSDEScheduler(**LATENT, use_karras_sigmas=True, noise_sampler_seed=0)
    scheduler.set_timesteps(60)
    first = float(scheduler.sigmas[0])
    start = MEAN + variance(first) ** 0.5 * np.random.default_rng(1).standard_normal((1, count))
    for sigma, sample in walked(scheduler, best, start, 1.0):
        deviation = variance(sigma) ** 0.5
        assert abs(sample.mean() - MEAN) <= 4.5 * deviation / count**0.5
        assert abs(sample.var() / deviation**2 - 1) <= 4.5 * (2 / count) ** 0.5
