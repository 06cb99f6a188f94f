"""DDIM's inversion, schedulers of distilled models and DPM-Solver-SDE, step by step against diffusers.

Where diffusers fails, or is not followed:

- DDIMInverseScheduler that predicts the clean sample divides by zero in its first step (NaN); refused here.
- LCM and TCD with the caller's timesteps and a strength below 1 add noise in their last step; here it ends clean.
- LCM's and TCD's options that change nothing in diffusers change nothing here: TCD neither clips nor thresholds.
"""

import inspect
import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from parity import LATENT, SHAPE, SHARED, STEPS, assert_close, assert_steps_equal, cases, model, pair, set_both

import safelight.runtime
from safelight.runtime import DDIMScheduler, Generator

NOT_LINSPACE = [options for options in SHARED if options.get("timestep_spacing") != "linspace"]
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "DDIMInverseScheduler": [
        *NOT_LINSPACE,
        {**LATENT, "set_alpha_to_one": False, "clip_sample": False},
        {"prediction_type": "sample", "set_alpha_to_one": False},
        {"prediction_type": "sample", "set_alpha_to_one": False, "clip_sample": False},
        {"prediction_type": "v_prediction", "clip_sample": False},
        # not with "linear" betas: a clean sample is there divided by 0.006, and moves with the last digit of a root
        {**LATENT, "clip_sample_range": 0.5},
        {**ZERO_SNR, "timestep_spacing": "trailing", "clip_sample": False},
        {**ZERO_SNR, "timestep_spacing": "leading", "steps_offset": 1},
    ],
    "LCMScheduler": [
        *SHARED,
        {"prediction_type": "sample"},
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.5},
        {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.9},
        {"timestep_scaling": 0.01},
        {"original_inference_steps": 200},
        {"set_alpha_to_one": False},
        ZERO_SNR,
    ],
    "TCDScheduler": [
        *SHARED,
        {"prediction_type": "sample"},
        {"clip_sample": True, "thresholding": True},
        {"timestep_scaling": 0.01},
        {"original_inference_steps": 200},
        {"set_alpha_to_one": False},
        ZERO_SNR,
    ],
}
DISTILLED = ("LCMScheduler", "TCDScheduler")
ETAS = (0.0, 0.1, 0.3, 0.7, 1.0)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def noise_of(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "options"), cases(OPTIONS))
def test_each_step_equals_diffusers(name: str, options: dict[str, Any], steps: int) -> None:
    ours, theirs = pair(name, options)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
    set_both(ours, theirs, num_inference_steps=steps)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
    if max(theirs.timesteps.tolist()) < len(ours):  # else diffusers fails with an IndexError
        assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_tcds_eta(prediction_type: str, eta: float) -> None:
    for steps in (1, 4, 50):
        ours, theirs = pair("TCDScheduler", {"prediction_type": prediction_type})
        set_both(ours, theirs, num_inference_steps=steps)
        assert_steps_equal(ours, theirs, eta=eta)


def test_tcd_draws_no_noise_for_an_eta_of_0() -> None:
    scheduler = safelight.runtime.TCDScheduler()
    scheduler.set_timesteps(4)
    generator = Generator(0)
    scheduler.step(noise_of(*SHAPE), 999, noise_of(*SHAPE), eta=0.0, generator=generator)
    np.testing.assert_array_equal(generator.randn((20,)), Generator(0).randn((20,)))


@pytest.mark.parametrize("eta", [*ETAS, 0.45, 0.99])
def test_tcd_goes_below_to_diffusers_timestep(eta: float) -> None:
    """The product is rounded down in float32: (1 - 0.3) * 10 is 7 there, and something else elsewhere."""
    times = torch.arange(1000)
    below = torch.floor((1 - eta) * times).to(dtype=torch.long)
    levels = np.linspace(1e-3, 2e-3, 1000)  # no two timesteps of one level
    ours = safelight.runtime.TCDScheduler(trained_betas=levels.tolist())
    sample = np.ones((1, 1), np.float32)
    for time in times[1:-1].tolist():
        ours.set_timesteps(timesteps=[999, time])
        found = ours.step(0 * sample, 999, sample, eta=eta, generator=Generator(0)).pred_noised_sample
        alphas = ours.alphas_cumprod[[int(below[time]), 999]] ** 0.5
        assert found is not None
        assert found[0, 0] == pytest.approx(alphas[0] / alphas[1], rel=1e-6)


@pytest.mark.parametrize("name", DISTILLED)
def test_the_tuple_and_its_second_field_are_diffusers(name: str) -> None:
    """LCM's clean sample, TCD's sample below the next timestep."""
    field = {"LCMScheduler": "denoised", "TCDScheduler": "pred_noised_sample"}[name]
    ours, theirs = pair(name, LATENT)
    set_both(ours, theirs, num_inference_steps=5)
    generator = torch.Generator().manual_seed(4)
    own_generator = Generator(4)
    sample = noise_of(*SHAPE)
    for index, timestep in enumerate(theirs.timesteps):
        output = model(sample, index, 4)
        expected = theirs.step(
            tensor(output), timestep, tensor(sample), generator=generator, return_dict=bool(index % 2)
        )
        found = ours.step(output, int(timestep), sample, generator=own_generator, return_dict=bool(index % 2))
        if index % 2:
            assert_close(getattr(found, field), getattr(expected, field).numpy())
            sample = found.prev_sample
        else:
            assert isinstance(found, tuple)
            assert len(found) == len(expected) == 2
            for own, other in zip(found, expected, strict=True):
                assert_close(own, other.numpy())
            sample = found[0]


def test_tcds_clean_sample_is_what_the_model_predicts() -> None:
    ours, _ = pair("TCDScheduler", {"prediction_type": "sample"})
    ours.set_timesteps(4)
    sample, output = noise_of(2, *SHAPE)
    np.testing.assert_array_equal(ours.step(output, 999, sample).pred_original_sample, output)


# The face


@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_keywords_are_diffusers(name: str) -> None:
    ours, theirs = getattr(safelight.runtime, name), getattr(diffusers, name)
    found, expected = (
        [(one.name, one.default) for one in inspect.signature(scheduler).parameters.values() if one.name != "kwargs"]
        for scheduler in (ours, theirs)  # inversion takes a deprecated set_alpha_to_zero there
    )
    assert found == expected
    for method in ("set_timesteps", "step", "scale_model_input"):
        found, expected = (list(inspect.signature(getattr(one, method)).parameters) for one in (ours, theirs))
        assert found == expected
    assert ours.order == theirs.order
    assert [one.__name__ for one in ours().compatibles] == [name]


@pytest.mark.parametrize("name", list(OPTIONS))
def test_configurations_go_both_ways(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, {**LATENT, "steps_offset": 1, "rescale_betas_zero_snr": True})
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    read = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    assert {key: value for key, value in read.config.items() if key != "_use_default_values"} == {
        key: value for key, value in theirs.config.items() if key != "_use_default_values"
    }
    assert repr(getattr(safelight.runtime, name).from_pretrained(tmp_path / "theirs")) == repr(ours)


# Timesteps of distilled models


@pytest.mark.parametrize("name", DISTILLED)
@pytest.mark.parametrize(
    "given",
    [
        {"num_inference_steps": 4, "original_inference_steps": 100},
        {"num_inference_steps": 7, "original_inference_steps": 30},
        {"num_inference_steps": 4, "strength": 0.5},
        {"num_inference_steps": 3, "strength": 0.58},  # 50 * 0.58 is below 29
        {"num_inference_steps": 4, "original_inference_steps": 333, "strength": 0.31},
        {"num_inference_steps": 333, "original_inference_steps": 333},
        {"timesteps": [999, 759, 499, 259]},
        {"timesteps": [900, 500, 499, 20, 0]},
        {"timesteps": [7]},
    ],
)
def test_the_timesteps_are_diffusers(name: str, given: dict[str, Any]) -> None:
    ours, theirs = pair(name, {})
    set_both(ours, theirs, **given)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
    assert ours.timesteps.dtype == np.int64
    assert ours.num_inference_steps == theirs.num_inference_steps
    if len(ours.timesteps) < 100:
        assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("name", DISTILLED)
def test_every_number_of_steps_visits_diffusers_timesteps(name: str) -> None:
    ours, theirs = pair(name, {})
    for steps in range(1, 51):
        set_both(ours, theirs, num_inference_steps=steps)
        np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())


@pytest.mark.parametrize("steps", [1000, 999, 333, 61, 37])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_inversion_visits_diffusers_timesteps(spacing: str, steps: int) -> None:
    ours, theirs = pair("DDIMInverseScheduler", {"timestep_spacing": spacing})
    set_both(ours, theirs, num_inference_steps=steps)
    expected = theirs.timesteps.numpy()
    np.testing.assert_array_equal(ours.timesteps, expected[expected >= 0])  # a rounding error gives diffusers a -1


@pytest.mark.parametrize("name", DISTILLED)
def test_image_to_image_with_own_timesteps_ends_clean(name: str) -> None:
    own = {"timesteps": [999, 759, 499, 259], "strength": 0.5}
    ours, theirs = pair(name, {})
    set_both(ours, theirs, **own)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
    assert ours.timesteps.tolist() == [499, 259]
    theirs.num_inference_steps = len(theirs.timesteps)  # which diffusers leaves at 4, and so takes 259 for not the last
    assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("begin", [1, 3])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("name", DISTILLED)
def test_a_loop_may_start_late(name: str, told: bool, begin: int) -> None:
    ours, theirs = pair(name, {})
    set_both(ours, theirs, num_inference_steps=5)
    if told:
        ours.set_begin_index(begin)
        theirs.set_begin_index(begin)
    own_generator, generator = Generator(4), torch.Generator().manual_seed(4)
    sample = noise_of(*SHAPE)
    for index, timestep in enumerate(theirs.timesteps[begin:]):
        output = model(sample, index, 4)
        expected = theirs.step(tensor(output), timestep, tensor(sample), generator=generator).prev_sample.numpy()
        sample = ours.step(output, int(timestep), sample, generator=own_generator).prev_sample
        assert_close(sample, expected)
    assert (ours.step_index, ours.begin_index) == (theirs.step_index, theirs.begin_index)


@pytest.mark.parametrize("name", DISTILLED)
def test_the_timestep_that_follows_is_diffusers(name: str) -> None:
    ours, theirs = pair(name, {})
    assert ours.previous_timestep(500) == theirs.previous_timestep(500) == 499
    set_both(ours, theirs, num_inference_steps=4)
    for timestep in theirs.timesteps:
        assert ours.previous_timestep(int(timestep)) == int(theirs.previous_timestep(timestep))


@pytest.mark.parametrize("timestep", [0, 19, 999])
def test_lcms_boundary_condition_is_diffusers(timestep: int) -> None:
    ours, theirs = pair("LCMScheduler", {"timestep_scaling": 0.01})
    found = ours.get_scalings_for_boundary_condition_discrete(timestep)
    assert found == pytest.approx(theirs.get_scalings_for_boundary_condition_discrete(timestep), rel=1e-6)


@pytest.mark.parametrize("name", DISTILLED)
def test_adding_noise(name: str) -> None:
    ours, theirs = pair(name, LATENT)
    set_both(ours, theirs, num_inference_steps=10)
    clean, noise = noise_of(2, *SHAPE)
    timesteps = torch.tensor([5, 731])  # of the training, visited or not
    expected = theirs.add_noise(tensor(clean), tensor(noise), timesteps).numpy()
    assert_close(ours.add_noise(clean, noise, timesteps.numpy()), expected)
    expected = theirs.get_velocity(tensor(clean), tensor(noise), timesteps).numpy()
    assert_close(ours.get_velocity(clean, noise, timesteps.numpy()), expected)


# What is refused


@pytest.mark.parametrize("name", DISTILLED)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give exactly one of num_inference_steps and timesteps"),
        ({"num_inference_steps": 2, "timesteps": [9, 5]}, "give exactly one of num_inference_steps and timesteps"),
        ({"num_inference_steps": 0}, "num_inference_steps must lie between 1 and 1000, got 0"),
        ({"num_inference_steps": 51}, "num_inference_steps must be at most 50, got 51"),
        ({"num_inference_steps": 26, "strength": 0.5}, "num_inference_steps must be at most 25, got 26"),
        ({"num_inference_steps": 11, "original_inference_steps": 10}, "must be at most 10, got 11"),
        ({"num_inference_steps": 2, "strength": 0.0}, "strength must lie above 0 and up to 1, got 0.0"),
        ({"num_inference_steps": 2, "strength": 1.5}, "strength must lie above 0 and up to 1, got 1.5"),
        ({"timesteps": [5, 9]}, "timesteps must fall, from below 1000 to 0 at the least"),
        ({"timesteps": [1000, 9]}, "timesteps must fall, from below 1000 to 0 at the least"),
        ({"timesteps": [9, -1]}, "timesteps must fall, from below 1000 to 0 at the least"),
        ({"timesteps": []}, "timesteps must fall, from below 1000 to 0 at the least"),
        ({"timesteps": [999, 500], "strength": 0.3}, "strength 0.3 leaves none of the 2 timesteps"),
    ],
)
def test_timesteps_that_are_not_possible_are_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(safelight.runtime, name)().set_timesteps(**given)


@pytest.mark.parametrize("original", [0, 1001])
def test_more_distilled_timesteps_than_trained_are_refused(original: int) -> None:
    with pytest.raises(ValueError, match=f"original_inference_steps must lie between 1 and 1000, got {original}"):
        safelight.runtime.LCMScheduler(original_inference_steps=original).set_timesteps(1)


def test_foreign_timesteps_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = safelight.runtime.LCMScheduler()
    with caplog.at_level(logging.WARNING):
        scheduler.set_timesteps(timesteps=[999, 500, 19])
    assert [record.getMessage() for record in caplog.records] == [
        "the model may not have been distilled at these timesteps: [500]"
    ]


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_beyond_its_range_is_refused(eta: float) -> None:
    scheduler = safelight.runtime.TCDScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=f"eta must lie between 0 and 1, got {eta}"):
        scheduler.step(noise_of(*SHAPE), 999, noise_of(*SHAPE), eta=eta)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_what_every_scheduler_refuses(name: str) -> None:
    scheduler = getattr(safelight.runtime, name)()
    sample = noise_of(*SHAPE)
    with pytest.raises(ValueError, match="call set_timesteps before step"):
        scheduler.step(sample, 999, sample)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="model_output must have the sample's shape"):
        scheduler.step(sample[:1], scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match=r"450\.5"):
        scheduler.step(sample, 450.5, sample)
    for schedule in ("sigmoid", "laplace"):  # as diffusers, which has them in DDPM alone
        with pytest.raises(ValueError, match=f"unknown beta_schedule '{schedule}'"):
            getattr(safelight.runtime, name)(beta_schedule=schedule)


@pytest.mark.parametrize("name", DISTILLED)
def test_a_step_beyond_the_last_is_refused(name: str) -> None:
    scheduler = getattr(safelight.runtime, name)()
    scheduler.set_timesteps(1)
    sample = noise_of(*SHAPE)
    scheduler.step(sample, 999, sample)
    with pytest.raises(ValueError, match="the schedule is at its end"):
        scheduler.step(sample, 999, sample)


def test_inversion_has_no_linspace() -> None:
    with pytest.raises(ValueError, match="unknown timestep_spacing 'linspace'; known: leading, trailing"):
        safelight.runtime.DDIMInverseScheduler(timestep_spacing="linspace")


def test_inversion_of_a_clean_sample_from_itself_is_refused() -> None:
    scheduler = safelight.runtime.DDIMInverseScheduler(prediction_type="sample")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="use set_alpha_to_one=False"):
        scheduler.step(noise_of(*SHAPE), 0, noise_of(*SHAPE))


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_samples_dtype_is_kept(name: str, dtype: type) -> None:
    ours, theirs = pair(name, LATENT)
    set_both(ours, theirs, num_inference_steps=5)
    sample = noise_of(*SHAPE, dtype=dtype)
    options = {"generator": Generator(0)} if name in DISTILLED else {}
    their_options = {"generator": torch.Generator().manual_seed(0)} if name in DISTILLED else {}
    for timestep in theirs.timesteps:
        output = np.tanh(sample)
        found = ours.step(output, int(timestep), sample, **options).prev_sample
        expected = theirs.step(tensor(output), timestep, tensor(sample), **their_options).prev_sample.numpy()
        assert found.dtype == expected.dtype == dtype
        tolerance = 1e-6 if dtype == np.float64 else 2e-2
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
        sample = found


# Closed forms


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddim_takes_back_what_inversion_did(prediction_type: str, spacing: str) -> None:
    """With the same noise both ways; a velocity says the same noise at one level only, so it is made at each."""
    options: dict[str, Any] = {"clip_sample": False, "timestep_spacing": spacing, "prediction_type": prediction_type}
    inverse, ddim = safelight.runtime.DDIMInverseScheduler(**options), DDIMScheduler(**options)
    start, noise = noise_of(2, *SHAPE)
    sample = start
    for scheduler in (inverse, ddim):
        scheduler.set_timesteps(20)
    np.testing.assert_array_equal(inverse.timesteps, ddim.timesteps[::-1])
    for timestep in inverse.timesteps.tolist():
        before = timestep - 50
        alpha_bar = inverse.alphas_cumprod[before] if before >= 0 else np.float32(1)
        sample = inverse.step(output_of(prediction_type, noise, sample, alpha_bar), timestep, sample).prev_sample
    assert np.abs(sample - start).max() > 1
    for timestep in ddim.timesteps.tolist():
        output = output_of(prediction_type, noise, sample, ddim.alphas_cumprod[timestep])
        sample = ddim.step(output, timestep, sample).prev_sample
    assert np.abs(sample - start).max() <= 1e-4 * np.abs(start).max()  # the way up is by a factor of 160


def output_of(prediction_type: str, noise: np.ndarray, sample: np.ndarray, alpha_bar: np.float32) -> np.ndarray:
    """What says that a sample of a level has a noise."""
    if prediction_type == "epsilon":
        return noise
    alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    return np.asarray(alpha * noise - sigma * (sample - sigma * noise) / alpha)


def test_tcd_without_noise_is_ddim() -> None:
    tcd = safelight.runtime.TCDScheduler()
    ddim = DDIMScheduler(**LATENT, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False)
    sample = noise_of(*SHAPE)
    for scheduler in (tcd, ddim):
        scheduler.set_timesteps(50)
    np.testing.assert_array_equal(tcd.timesteps, ddim.timesteps)
    for index, timestep in enumerate(ddim.timesteps.tolist()[:-1]):
        output = model(sample, index, 4)
        expected = ddim.step(output, timestep, sample).prev_sample
        assert_close(tcd.step(output, timestep, sample, eta=0.0).prev_sample, expected)
        sample = expected


@pytest.mark.parametrize(("name", "options"), [("LCMScheduler", {}), *(("TCDScheduler", {"eta": eta}) for eta in ETAS)])
def test_one_points_mean_and_variance_are_kept_at_every_level(name: str, options: dict[str, Any]) -> None:
    """Of data that are one point the best prediction knows the clean sample, so each level's law is exact."""
    mean, count = 0.7, 40_000
    scheduler = getattr(safelight.runtime, name)()
    scheduler.set_timesteps(8)
    generator = Generator(0)
    visited = scheduler.timesteps.tolist()
    levels = [(scheduler.alphas_cumprod[time] ** 0.5, (1 - scheduler.alphas_cumprod[time]) ** 0.5) for time in visited]
    alpha, sigma = levels[0]
    sample = alpha * mean + sigma * generator.randn((1, count))
    for timestep, (alpha, sigma), (alpha_next, sigma_next) in zip(visited, levels, levels[1:], strict=False):
        output = (sample - alpha * mean) / sigma
        sample = scheduler.step(output, timestep, sample, generator=generator, **options).prev_sample
        assert abs(sample.mean() - alpha_next * mean) <= 4.5 * sigma_next / count**0.5
        assert abs(sample.var() / sigma_next**2 - 1) <= 4.5 * (2 / count) ** 0.5
