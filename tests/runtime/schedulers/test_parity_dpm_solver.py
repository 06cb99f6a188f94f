"""DPM-Solver's schedulers, step by step against diffusers."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
from parity import LATENT, SHAPE, SHARED, STEPS, assert_close, assert_steps_equal, cases, model, pair, set_both

import safelight.runtime
from safelight.runtime import Generator

# diffusers' own: that it will drop the algorithms of the noise, and NumPy arrays of torch tensors
pytestmark = [
    pytest.mark.filterwarnings("ignore:.algorithm_types:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
]

MULTI, SINGLE, INVERSE = (f"DPMSolver{kind}Scheduler" for kind in ("Multistep", "Singlestep", "MultistepInverse"))
NAMES = [MULTI, SINGLE, INVERSE]
ALGORITHMS = {
    MULTI: ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"],
    SINGLE: ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"],
    INVERSE: ["dpmsolver", "dpmsolver++"],
}
SPACERS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
THRESHOLDED = {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}


def noise_needs_sigma_min(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """With the last noise level that an algorithm of the noise needs, where a scheduler has a choice."""
    ends = options.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver") and name != INVERSE
    return {**options, "final_sigmas_type": "sigma_min"} if ends else options


def solvers(name: str) -> list[dict[str, Any]]:
    """Every algorithm at every order in every way that diffusers can."""
    listed = []
    for algorithm, order, kind in itertools.product(ALGORITHMS[name], (1, 2, 3), ("midpoint", "heun")):
        if (algorithm, order) == ("sde-dpmsolver", 3):
            continue  # diffusers fails with an UnboundLocalError; see below
        options = {"algorithm_type": algorithm, "solver_order": order, "solver_type": kind, **LATENT}
        listed.append(noise_needs_sigma_min(name, options))
    return listed


def both_kinds(name: str, **options: Any) -> list[dict[str, Any]]:
    """Options with an algorithm of the clean sample, and with one of the noise."""
    kinds = ("dpmsolver++", "dpmsolver")
    return [noise_needs_sigma_min(name, {**options, "algorithm_type": kind, **LATENT}) for kind in kinds]


def common(name: str) -> list[dict[str, Any]]:
    return [
        *solvers(name),
        *both_kinds(name, prediction_type="sample"),
        *both_kinds(name, prediction_type="v_prediction"),
        *({spacer: True, **LATENT} for spacer in SPACERS),
        *({"beta_schedule": "squaredcos_cap_v2", spacer: True} for spacer in SPACERS),
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"lambda_min_clipped": -1.0, "solver_order": 3, **LATENT},
        {**THRESHOLDED, **LATENT},
        {**THRESHOLDED, "prediction_type": "sample", **LATENT},
        {"prediction_type": "flow_prediction"},
        FLOW,
        {**FLOW, "flow_shift": 3.0, "solver_order": 3},
        {"lower_order_final": True, "solver_order": 3, **LATENT},
        {"lower_order_final": False, "solver_order": 3, **LATENT},
    ]


def multistep(name: str) -> list[dict[str, Any]]:
    return [
        {"euler_at_final": True, "lower_order_final": False, **LATENT},
        {"timestep_spacing": "leading", "steps_offset": 1, "use_karras_sigmas": True},
        {"timestep_spacing": "trailing", "lambda_min_clipped": -2.0},
        {"timestep_spacing": "leading", "lambda_min_clipped": -2.0},
        {"timestep_spacing": "trailing", "lambda_min_clipped": -2.0, "use_karras_sigmas": True},
    ]


OPTIONS: dict[str, list[dict[str, Any]]] = {
    MULTI: [
        *SHARED,
        *common(MULTI),
        *multistep(MULTI),
        *both_kinds(MULTI, **THRESHOLDED),
        {**ZERO_SNR, **LATENT},
        {**ZERO_SNR, "algorithm_type": "sde-dpmsolver++", **LATENT},
        {"use_lu_lambdas": True, **LATENT},
        {"beta_schedule": "squaredcos_cap_v2", "use_lu_lambdas": True},
        {"final_sigmas_type": "sigma_min", **LATENT},
        {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True, **LATENT},
        {"final_sigmas_type": "sigma_min", "euler_at_final": True, "solver_order": 3, **LATENT},
        {**FLOW, "final_sigmas_type": "sigma_min"},
    ],
    SINGLE: [
        *(options for options in SHARED if "timestep_spacing" not in options),
        *common(SINGLE),
        {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True, **LATENT},
        *({"final_sigmas_type": "sigma_min", "solver_order": order, **LATENT} for order in (2, 3)),
        {"final_sigmas_type": "sigma_min", "solver_order": 3, "lower_order_final": True, **LATENT},
    ],
    INVERSE: [*SHARED, *common(INVERSE), *multistep(INVERSE), *both_kinds(INVERSE, **THRESHOLDED)],
}


@pytest.mark.parametrize(("name", "options"), cases(OPTIONS))
def test_each_step_equals_diffusers(name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if name == INVERSE:
        monkeypatch.setattr(parity, "TOLERANCE", inverse_tolerance(options))
    for steps in STEPS:
        ours, theirs = pair(name, options)
        set_both(ours, theirs, num_inference_steps=steps)
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-5)
        # where the first timestep is there twice, diffusers starts at the second, and has no level left for the last
        theirs._step_index = 0
        if stays_in_place(ours) and theirs.config.solver_order == 3 and steps >= 15:
            continue  # diffusers is NaN; see below
        assert_steps_equal(ours, theirs)


def inverse_tolerance(options: dict[str, Any]) -> float:
    """Wider where the first step goes a long way towards noise.

    It multiplies by sigma / sigma_0, 35 or thousands, and takes nearly as much off again: under a jitter of 1e-7 in the
    noise levels diffusers moves by 8e-5 (leading, one step) and 8e-4 (beta levels of cosine betas).
    """
    if options.get("timestep_spacing") == "leading":
        return 4e-5
    cosine = options.get("beta_schedule") == "squaredcos_cap_v2"
    return 4e-5 if cosine and options.get("use_beta_sigmas") else parity.TOLERANCE


def stays_in_place(scheduler: Any) -> bool:
    """Whether the last step ends at the level where it starts."""
    return bool(scheduler.sigmas[-1] == scheduler.sigmas[-2])


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (INVERSE, {"timestep_spacing": "trailing"}),
        (INVERSE, {"use_exponential_sigmas": True}),
        (MULTI, {"trained_betas": [1e-4, 1e-3, 1e-3, 1e-3] * 10, "num_train_timesteps": 40, **THRESHOLDED}),
    ],
)
def test_a_step_of_no_length_changes_nothing(name: str, options: dict[str, Any], order: int, kind: str) -> None:
    # diffusers divides by the length: NaN at the third order, and with "heun" at the second
    ours = getattr(safelight.runtime, name)(solver_order=order, solver_type=kind, **options)
    ours.set_timesteps(20 if name == INVERSE else 40)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for place, timestep in enumerate(ours.timesteps.tolist()):
        before, sample = sample, ours.step(model(sample, place, 4), timestep, sample).prev_sample
        assert np.isfinite(sample).all()
        if ours.sigmas[place] == ours.sigmas[place + 1]:
            np.testing.assert_allclose(sample, before, rtol=1e-6, atol=1e-6)


def test_the_stochastic_solver_of_the_noise_has_a_third_order() -> None:
    # diffusers has no formula for it: UnboundLocalError. It is that of "dpmsolver", twice, and noise: without slope and
    # curvature it is the first order's, and it is linear in the predictions
    options = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", **LATENT}
    results = []
    for order in (1, 2, 3):
        scheduler = safelight.runtime.DPMSolverMultistepScheduler(solver_order=order, solver_type="heun", **options)
        scheduler.set_timesteps(20)
        sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
        generator = Generator(0)
        for timestep in scheduler.timesteps.tolist()[:6]:
            sample = scheduler.step(np.ones_like(sample), timestep, sample, generator=generator).prev_sample
        results.append(sample)
    for result in results[1:]:
        assert_close(result, results[0])


@pytest.mark.parametrize("name", [MULTI, SINGLE])
@pytest.mark.parametrize("mu", [0.3, 1.15])
def test_flow_sigmas_are_shifted_by_the_pictures_size(name: str, mu: float) -> None:
    ours, theirs = pair(name, {**FLOW, "use_dynamic_shifting": True})
    for one in (ours, theirs):
        one.set_timesteps(20, mu=mu)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)
    assert_steps_equal(ours, theirs)
    ours.set_timesteps(20)  # diffusers keeps the shift of an earlier picture from here on
    plain, _ = pair(name, FLOW)
    plain.set_timesteps(20)
    np.testing.assert_array_equal(ours.sigmas, plain.sigmas)


@pytest.mark.parametrize("name", [MULTI, SINGLE])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_own_timesteps(name: str, algorithm: str, order: int) -> None:
    given = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]  # of "Align your steps", arXiv:2404.14507
    options = noise_needs_sigma_min(name, {"algorithm_type": algorithm, "solver_order": order, **LATENT})
    ours, theirs = pair(name, options)
    set_both(ours, theirs, timesteps=given)
    assert_steps_equal(ours, theirs)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("first", [1, 5, 8, 19])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_late_start(name: str, order: int, first: int, named: bool) -> None:
    ours, theirs = pair(name, {"solver_order": order, **LATENT})
    set_both(ours, theirs, num_inference_steps=20)
    if named and name != INVERSE:  # diffusers' inverse one has no begin index
        ours.set_begin_index(first)
        theirs.set_begin_index(first)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for place, timestep in enumerate(ours.timesteps.tolist()[first:]):
        output = model(sample, place, 4)
        expected = theirs.step(torch.from_numpy(output), torch.tensor(timestep), torch.from_numpy(sample)).prev_sample
        assert_close(ours.step(output, timestep, sample).prev_sample, expected.numpy())
        sample = expected.numpy().copy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_a_learned_variance_is_left_out(name: str, kind: str) -> None:
    # with three channels, which diffusers takes for granted
    sample, output = np.random.default_rng(0).standard_normal((2, 2, 6, 5, 4)).astype(np.float32)
    ours, theirs = pair(name, {"variance_type": kind})
    set_both(ours, theirs, num_inference_steps=10)
    timestep = ours.timesteps[2]
    found = ours.step(output, timestep, sample[:, :3]).prev_sample
    expected = theirs.step(torch.from_numpy(output), torch.tensor(timestep), torch.from_numpy(sample[:, :3]))
    assert_close(found, expected.prev_sample.numpy())
    with pytest.raises(ValueError, match="model_output must have the sample's shape"):
        ours.step(output[:, :2], ours.timesteps[3], sample[:, :3])


@pytest.mark.parametrize("algorithm", ["sde-dpmsolver", "sde-dpmsolver++"])
def test_the_noise_itself(algorithm: str) -> None:
    options = noise_needs_sigma_min(MULTI, {"algorithm_type": algorithm, **LATENT})
    ours, theirs = pair(MULTI, options)
    set_both(ours, theirs, num_inference_steps=10)
    noise, sample = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    for timestep in ours.timesteps.tolist()[:3]:
        tensors = torch.from_numpy(np.tanh(sample)), torch.tensor(timestep), torch.from_numpy(sample)
        expected = theirs.step(*tensors, variance_noise=torch.from_numpy(noise)).prev_sample.numpy()
        found = ours.step(np.tanh(sample), timestep, sample, variance_noise=noise).prev_sample
        assert_close(found, expected)
        sample = expected.copy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [LATENT, {**FLOW, "flow_shift": 3.0}])
def test_adding_noise(name: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(name, options)
    set_both(ours, theirs, num_inference_steps=10)
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    timesteps = theirs.timesteps[[2, 7]]
    expected = theirs.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), timesteps)
    assert_close(ours.add_noise(clean, noise, timesteps.numpy()), expected.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_adding_noise_before_the_timesteps_are_set(name: str) -> None:
    # diffusers has its levels the other way round until then, and so adds the noise of 999 - timestep
    scheduler, _ = pair(name, LATENT)
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[[10, 900]].reshape(2, 1, 1, 1)
    expected = alpha_bar**0.5 * clean + (1 - alpha_bar) ** 0.5 * noise
    assert_close(scheduler.add_noise(clean, noise, [10, 900]), expected)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("name", NAMES)
def test_the_samples_dtype_is_kept(name: str, dtype: type, algorithm: str) -> None:
    if algorithm not in ALGORITHMS[name]:
        pytest.skip("refused, see below")
    ours, theirs = pair(name, {"algorithm_type": algorithm, **LATENT})
    set_both(ours, theirs, num_inference_steps=20)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    generators = Generator(5), torch.Generator().manual_seed(5)
    for timestep in ours.timesteps.tolist()[:4]:
        output = np.tanh(sample)
        tensors = torch.from_numpy(output), torch.tensor(timestep), torch.from_numpy(sample)
        expected = theirs.step(*tensors, generator=generators[1]).prev_sample.numpy()
        found = ours.step(output, timestep, sample, generator=generators[0]).prev_sample
        assert found.dtype == expected.dtype == dtype
        # in float16 diffusers rounds the prediction too, and backwards the sum, which are computed in float32 here
        limit = 1e-2 if dtype == np.float16 else 1e-6
        np.testing.assert_allclose(found, expected, atol=limit * float(np.abs(expected).max()), rtol=0)
        sample = expected.copy()


@pytest.mark.parametrize("name", NAMES)
def test_a_tuple_and_the_history(name: str) -> None:
    ours, theirs = pair(name, {"solver_order": 3, **LATENT})
    set_both(ours, theirs, num_inference_steps=10)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for count, timestep in enumerate(ours.timesteps.tolist()[:5], start=1):
        (found,) = ours.step(sample, timestep, sample, return_dict=False)
        (expected,) = theirs.step(*map(torch.tensor, (sample, timestep, sample)), return_dict=False)
        assert_close(found, expected.numpy())
        assert len(ours.model_outputs) == min(count, 3)
        for own, other in zip(ours.model_outputs, theirs.model_outputs[-min(count, 3) :], strict=True):
            assert_close(own, other.numpy())
        sample = expected.numpy()
    ours.set_timesteps(10)
    assert ours.model_outputs == []


@pytest.mark.parametrize("name", NAMES)
def test_the_options_of_others_are_translated(name: str) -> None:
    # diffusers translates "deis" too late where the last noise level is 0, its default, and refuses
    ends = {} if name == INVERSE else {"final_sigmas_type": "sigma_min"}
    for kind in ("logrho", "bh1", "bh2"):
        ours, theirs = pair(name, {"algorithm_type": "deis", "solver_type": kind, **ends})
        for option in ("algorithm_type", "solver_type"):
            assert ours.config[option] == theirs.config[option]
    assert getattr(safelight.runtime, name)(algorithm_type="deis").config["algorithm_type"] == "dpmsolver++"


@pytest.mark.parametrize("name", NAMES)
def test_configurations_go_both_ways(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name, {"solver_order": 3, "lambda_min_clipped": -5.1, **LATENT})
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    read = type(theirs).from_pretrained(tmp_path / "ours")
    assert {**read.config, "_use_default_values": None} == {**theirs.config, "_use_default_values": None}
    assert repr(type(ours).from_pretrained(tmp_path / "theirs")) == repr(ours)


@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_orders_of_single_steps(order: int, final: str, lower_order_final: bool) -> None:
    options = {"solver_order": order, "final_sigmas_type": final, "lower_order_final": lower_order_final}
    for steps in range(1, 20):
        ours, theirs = pair(SINGLE, options)
        set_both(ours, theirs, num_inference_steps=steps)
        assert ours.order_list == theirs.order_list


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"solver_order": 4}, "solver_order must be one of 1, 2, 3, got 4") for name in NAMES),
        *((name, {"algorithm_type": "euler"}, "unknown algorithm_type 'euler'") for name in NAMES),
        *((name, {"solver_type": "rk4"}, "unknown solver_type 'rk4'") for name in NAMES),
        *((name, {"final_sigmas_type": "one"}, "unknown final_sigmas_type 'one'") for name in (MULTI, SINGLE)),
        *((name, {"algorithm_type": "dpmsolver"}, "needs final_sigmas_type sigma_min") for name in (MULTI, SINGLE)),
        (SINGLE, {"algorithm_type": "sde-dpmsolver"}, "unknown algorithm_type 'sde-dpmsolver'"),
        # diffusers takes these, and gives NaN: towards noise the variance of what they add is negative
        (INVERSE, {"algorithm_type": "sde-dpmsolver++"}, "unknown algorithm_type 'sde-dpmsolver\\+\\+'"),
        # diffusers says so at the first step
        (INVERSE, {"algorithm_type": "dpmsolver", "prediction_type": "flow_prediction"}, "flow_prediction needs"),
        (MULTI, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
    ],
)
def test_options_that_do_not_work_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(safelight.runtime, name)(**options)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {}, "give exactly one of num_inference_steps and timesteps"),
        ({}, {"num_inference_steps": 5, "timesteps": [3]}, "give exactly one of num_inference_steps and timesteps"),
        ({}, {"num_inference_steps": 0}, "num_inference_steps must lie between 1 and 1000, got 0"),
        ({}, {"timesteps": [5, 5]}, "timesteps must fall, from below 1000 to 0 at the least"),
        ({}, {"timesteps": [1000, 5]}, "timesteps must fall"),
        ({}, {"timesteps": []}, "timesteps must fall"),
        ({}, {"num_inference_steps": 5, "mu": 1.0}, "mu needs a scheduler with use_dynamic_shifting"),
        *(({option: True}, {"timesteps": [9]}, "it takes no timesteps") for option in (*SPACERS, "use_flow_sigmas")),
    ],
)
@pytest.mark.parametrize("name", [MULTI, SINGLE])
def test_steps_that_do_not_work_are_refused(
    name: str, options: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(safelight.runtime, name)(**options).set_timesteps(**arguments)
