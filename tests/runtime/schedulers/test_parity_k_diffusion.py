"""The samplers of k-diffusion, step by step against diffusers."""

import copy
import sys
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from parity import (
    LATENT,
    SHAPE,
    SHARED,
    STEPS,
    TOLERANCE,
    assert_close,
    assert_steps_equal,
    carries_float32,
    cases,
    model,
    pair,
    set_both,
)

import safelight.runtime
from safelight.runtime import Generator

# diffusers' own: NumPy arrays of torch tensors, in the constructors too
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

RESPACED: list[dict[str, Any]] = [
    {**LATENT, "use_karras_sigmas": True},
    {**LATENT, "use_exponential_sigmas": True},
    {**LATENT, "use_beta_sigmas": True},
    {"use_karras_sigmas": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "HeunDiscreteScheduler": [
        *SHARED,
        *RESPACED,
        {"prediction_type": "sample"},
        {"beta_schedule": "exp"},
        {**LATENT, "clip_sample": True},
        {**LATENT, "clip_sample": True, "clip_sample_range": 0.3, "prediction_type": "v_prediction"},
    ],
    "EulerAncestralDiscreteScheduler": [
        *SHARED,
        {
            **LATENT,
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
        {**LATENT, "rescale_betas_zero_snr": True},
    ],
    "KDPM2DiscreteScheduler": [*SHARED, *RESPACED],
    "KDPM2AncestralDiscreteScheduler": [*SHARED, *RESPACED],
    "LMSDiscreteScheduler": [*SHARED, *RESPACED, {"prediction_type": "sample"}],
}
NAMES = list(OPTIONS)
TWO_CALLS = [name for name in NAMES if name.startswith(("Heun", "KDPM2"))]
WITHOUT_NOISE = ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"]


@pytest.mark.parametrize(("name", "options"), cases(OPTIONS))
def test_each_step_equals_diffusers(name: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(name, options)
    for steps in STEPS:
        set_both(ours, theirs, num_inference_steps=steps)
        if name == "KDPM2AncestralDiscreteScheduler" and lost_middles(theirs):
            continue  # compared in float64, see below
        if name in WITHOUT_NOISE and not carries_float32(copy.deepcopy(theirs)):
            continue  # compared in float64, see the next test
        assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_in_float64_each_step_equals_diffusers_of_which_float32_loses_some(name: str) -> None:
    """Diffusers' slope is (sample - clean) / sigma also where the model predicts it: a difference of equal numbers."""
    lost = []
    for options in OPTIONS[name]:
        ours, theirs = pair(name, options)
        for steps in STEPS:
            set_both(ours, theirs, num_inference_steps=steps)
            if not carries_float32(copy.deepcopy(theirs)):
                lost.append((options.get("beta_schedule", "trained_betas"), steps))
            assert_steps_equal(ours, theirs, dtype=np.float64)
    cosine = [("squaredcos_cap_v2", steps) for steps in (2, 5, 20)]
    assert lost == ([*cosine, ("trained_betas", 2), ("exp", 2)] if "Heun" in name else cosine[:1])


def lost_middles(theirs: Any) -> bool:
    """Whether an ancestral step is so long that diffusers' levels are a difference of almost equal float32 numbers.

    The level down to which it goes is sigma_next**2 / sigma; the middle between that and sigma, in logarithms, is
    sigma_next. Diffusers' is off by as much as the last bits of a square root make it, or NaN.
    """
    middles, next_levels = theirs.sigmas_interpol[:-4].numpy(), theirs.sigmas[1:-3].numpy()
    return not np.allclose(middles[::2], next_levels[::2], rtol=5e-7, atol=0)


@pytest.mark.parametrize(("name", "options"), cases({name: OPTIONS[name] for name in NAMES if "KDPM2Anc" in name}))
def test_each_step_equals_that_of_diffusers_levels_in_float64(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[diffusers.KDPM2AncestralDiscreteScheduler.__module__]
    monkeypatch.setattr(module, "np", SimpleNamespace(**{**vars(np), "float32": np.float64}))
    ours, theirs = pair(name, options)
    for steps in STEPS:
        if options.get("beta_schedule") == "squaredcos_cap_v2" and steps == 2:
            continue  # from sigma 20000 to 0.006 in a step: float64 is not enough either
        set_both(ours, theirs, num_inference_steps=steps)
        assert theirs.sigmas.dtype == torch.float64
        assert not lost_middles(theirs)
        assert_steps_equal(ours, theirs, dtype=np.float64)


def test_the_longest_ancestral_step_keeps_its_levels() -> None:
    ours, _ = pair("KDPM2AncestralDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"})
    ours.set_timesteps(2)
    sample = np.random.default_rng(0).standard_normal(SHAPE) * ours.init_noise_sigma
    high, low = ours.sigmas[:2].astype(np.float64)
    assert high / low > 1e6
    np.testing.assert_allclose(ours.timesteps, [999, 0, 0], atol=1e-4)
    middle = ours.step(np.ones(SHAPE), 999, sample).prev_sample
    np.testing.assert_allclose(middle, sample + (low - high), rtol=1e-6, atol=1e-6 * high)
    end = ours.step(np.ones(SHAPE), ours.timesteps[1], middle, generator=Generator(0)).prev_sample
    noise = Generator(0).randn(SHAPE, np.float64)
    np.testing.assert_allclose(end, sample + (low**2 / high - high) + noise * low, rtol=1e-6, atol=1e-6 * high)


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_lms_of_other_orders(order: int) -> None:
    ours, theirs = pair("LMSDiscreteScheduler", LATENT)
    set_both(ours, theirs, num_inference_steps=12)
    assert_steps_equal(ours, theirs, order=order)
    assert len(ours.derivatives) == order


def test_lms_coefficients_are_diffusers() -> None:
    ours, theirs = pair("LMSDiscreteScheduler", {**LATENT, "use_karras_sigmas": True})
    set_both(ours, theirs, num_inference_steps=15)
    for order in (1, 2, 3, 4):
        found, expected = (
            [[one.get_lms_coefficient(order, place, which) for which in range(order)] for place in range(order - 1, 15)]
            for one in (ours, theirs)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.sum(found, axis=1), np.diff(ours.sigmas)[order - 1 :], rtol=1e-5)


@pytest.mark.parametrize("name", TWO_CALLS)
def test_other_training_timesteps(name: str) -> None:
    for train_steps in (1000, 600):
        ours, theirs = pair(name, LATENT)
        set_both(ours, theirs, num_inference_steps=20, num_train_timesteps=train_steps)
        assert ours.timesteps[0] == train_steps - 1
        assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("timesteps", [[900, 500, 499, 20], [700.5, 30.25], [5]])
def test_heuns_own_timesteps(timesteps: list[float]) -> None:
    ours, theirs = pair("HeunDiscreteScheduler", LATENT)
    set_both(ours, theirs, timesteps=timesteps)
    assert len(ours.timesteps) == 2 * len(timesteps) - 1
    assert ours.num_inference_steps == len(timesteps)
    assert_steps_equal(ours, theirs)


def walk(scheduler: Any, start: int, *, begin: bool, theirs: bool, **options: Any) -> list[np.ndarray]:
    """The samples of a loop that starts late, as image to image does."""
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) * 2
    if begin:
        scheduler.set_begin_index(start)
    convert: Any = torch.from_numpy if theirs else np.asarray
    samples = []
    for index, timestep in enumerate(scheduler.timesteps[start:]):
        scaled = scheduler.scale_model_input(convert(sample), timestep)
        output = convert(model(np.asarray(scaled), index, 4))
        sample = np.asarray(scheduler.step(output, timestep, convert(sample), **options).prev_sample)
        samples.append(sample)
    return samples


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("start", [0, 6, 16, 18])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "LMSDiscreteScheduler"])
def test_a_loop_that_starts_late_equals_diffusers(name: str, start: int, begin: bool) -> None:
    ours, theirs = pair(name, LATENT)
    set_both(ours, theirs, num_inference_steps=10 if name in TWO_CALLS else 19)
    assert len(ours.timesteps) == 19
    generators: Any = ({}, {})
    if "Ancestral" in name:
        generators = {"generator": Generator(3)}, {"generator": torch.Generator().manual_seed(3)}
    found = walk(ours, start, begin=begin, theirs=False, **generators[0])
    expected = walk(theirs, start, begin=begin, theirs=True, **generators[1])
    assert len(found) == len(expected) == 19 - start
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 10 * TOLERANCE * np.abs(other).max()  # of all steps so far


@pytest.mark.parametrize("begin", [True, False])
def test_lms_that_starts_late_has_the_orders_of_a_start(begin: bool) -> None:
    # diffusers weighs its first derivative there as the newest of four, whose weights add up to the step: some of the
    # weights have no derivative. Its own loop over the rest of the levels alone is what it should give
    ours, theirs = pair("LMSDiscreteScheduler", LATENT)
    set_both(ours, theirs, num_inference_steps=20)
    wrong = walk(theirs, 8, begin=begin, theirs=True)
    set_both(ours, theirs, num_inference_steps=20)
    theirs.sigmas, theirs.timesteps = theirs.sigmas[8:], theirs.timesteps[8:]
    expected = walk(theirs, 0, begin=False, theirs=True)
    found = walk(ours, 8, begin=begin, theirs=False)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 10 * TOLERANCE * np.abs(other).max()
    assert np.abs(wrong[0] - expected[0]).max() > 0.01 * np.abs(expected[0]).max()


@pytest.mark.parametrize("name", TWO_CALLS)
def test_a_loop_that_starts_within_a_step_is_refused(name: str) -> None:
    # diffusers goes on, and takes the level that the step leads to for the one where it starts
    ours, _ = pair(name, LATENT)
    ours.set_timesteps(10)
    ours.set_begin_index(3)
    sample = np.ones(SHAPE, np.float32)
    with pytest.raises(ValueError, match=r"is in the middle of a step: start at the one before or after it$"):
        ours.step(sample, ours.timesteps[3], sample)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", NAMES)
def test_adding_noise(name: str, dtype: type) -> None:
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(dtype)
    tensors = torch.from_numpy(clean), torch.from_numpy(noise)
    ours, theirs = pair(name, LATENT)
    set_both(ours, theirs, num_inference_steps=10)
    found = ours.add_noise(clean, noise, ours.timesteps[[2, 7]])
    assert found.dtype == dtype
    expected = theirs.add_noise(*tensors, theirs.timesteps[[2, 7]]).numpy()
    assert np.abs(found - expected).max() <= (2e-3 if dtype == np.float16 else TOLERANCE) * np.abs(expected).max()
    if dtype != np.float32:
        return
    for scheduler in (ours, theirs):
        scheduler.set_begin_index(4)
    for place in (4, 5, 6):  # image to image before the first step, inpainting after each
        timesteps = theirs.timesteps[place : place + 1]
        assert_close(ours.add_noise(clean, noise, timesteps.numpy()), theirs.add_noise(*tensors, timesteps).numpy())
        theirs.scale_model_input(tensors[0], timesteps[0])
        theirs.step(tensors[0], timesteps[0], tensors[1])
        ours.step(clean, float(timesteps[0]), noise)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("name", NAMES)
def test_the_samples_dtype_is_kept(name: str, dtype: type) -> None:
    ours, theirs = pair(name, LATENT)
    set_both(ours, theirs, num_inference_steps=5)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    for own, timestep in zip(ours.timesteps.tolist()[:3], theirs.timesteps, strict=False):
        tensor = torch.from_numpy(sample.copy())
        generators: Any = ({}, {})
        if "Ancestral" in name:
            generators = {"generator": Generator(3)}, {"generator": torch.Generator().manual_seed(3)}
        theirs.scale_model_input(tensor, timestep)
        assert ours.scale_model_input(sample, own).dtype == dtype
        expected = theirs.step(tensor * 0.5, timestep, tensor, return_dict=False, **generators[1])
        found = ours.step(sample * dtype(0.5), own, sample, return_dict=False, **generators[0])
        assert type(found) is tuple
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.numpy().dtype
            bound = (1e-2 if dtype == np.float16 else TOLERANCE) * np.abs(other.numpy()).max()
            assert np.abs(one - other.numpy()).max() <= bound  # diffusers rounds to float16 after each operation
        sample = expected[0].numpy()


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_an_earlier_picture_is_forgotten(name: str) -> None:
    ours, _ = pair(name, LATENT)
    options = {"generator": Generator(0)} if "Ancestral" in name else {}
    sample = np.ones(SHAPE, np.float32)
    for _ in range(2):
        ours.set_timesteps(5)
        if name in TWO_CALLS:
            assert ours.first_call is None
            assert ours.state_in_first_order
        elif name == "LMSDiscreteScheduler":
            assert ours.derivatives == []
        ours.step(sample, ours.timesteps[0], sample, **options)
        assert not getattr(ours, "state_in_first_order", False)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_impossible_is_refused(name: str) -> None:
    ours, _ = pair(name, {"num_train_timesteps": 50})
    sample = np.ones(SHAPE, np.float32)
    with pytest.raises(ValueError, match=rf"^{name}: call set_timesteps before step$"):
        ours.step(sample, 49, sample)
    for steps in (0, -3, 51):
        with pytest.raises(ValueError, match=rf"^num_inference_steps must lie between 1 and 50, got {steps}$"):
            ours.set_timesteps(steps)
    ours.set_timesteps(4)
    with pytest.raises(ValueError, match=r"^model_output must have the sample's shape"):
        ours.step(sample[:1], 49, sample)
    with pytest.raises(ValueError, match=r"^timestep 48.5 is not in the schedule$"):
        ours.step(sample, 48.5, sample)
    with pytest.raises(ValueError, match=r"needs the timestep to scale its input$"):
        ours.scale_model_input(sample)
    if name != "EulerAncestralDiscreteScheduler":
        with pytest.raises(ValueError, match=r"^only one of use_karras_sigmas, .*, use_beta_sigmas can be true$"):
            pair(name, {"use_karras_sigmas": True, "use_beta_sigmas": True})
    if name not in ("HeunDiscreteScheduler", "LMSDiscreteScheduler"):  # diffusers refuses to step
        with pytest.raises(ValueError, match=r"unknown prediction_type 'sample'; known: epsilon, v_prediction$"):
            getattr(safelight.runtime, name)(prediction_type="sample")


@pytest.mark.parametrize("own", [{}, {"num_inference_steps": 3, "timesteps": [5, 3]}])
def test_heun_takes_one_way_of_choosing_timesteps(own: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^give exactly one of num_inference_steps and timesteps$"):
        safelight.runtime.HeunDiscreteScheduler().set_timesteps(**own)


@pytest.mark.parametrize("timesteps", [[], [[9, 5]], [5, 9]])
def test_heuns_own_timesteps_fall(timesteps: Any) -> None:
    with pytest.raises(ValueError, match=r"^timesteps must be one row that falls$"):
        safelight.runtime.HeunDiscreteScheduler().set_timesteps(timesteps=timesteps)


def test_heun_takes_no_timesteps_where_it_spaces_the_sigmas() -> None:
    with pytest.raises(ValueError, match=r"spaces the noise levels: it takes no timesteps$"):
        safelight.runtime.HeunDiscreteScheduler(use_karras_sigmas=True).set_timesteps(timesteps=[5, 3])


def test_lms_needs_an_order_and_levels_that_fall() -> None:
    scheduler = safelight.runtime.LMSDiscreteScheduler(timestep_spacing="leading", steps_offset=5)
    with pytest.raises(ValueError, match=r"^LMSDiscreteScheduler needs noise levels that fall: 1000 steps have equal"):
        scheduler.set_timesteps(1000)  # diffusers divides by 0 there
    scheduler.set_timesteps(10)
    sample = np.ones(SHAPE, np.float32)
    with pytest.raises(ValueError, match=r"^order must be at least 1, got 0$"):
        scheduler.step(sample, scheduler.timesteps[0], sample, order=0)
