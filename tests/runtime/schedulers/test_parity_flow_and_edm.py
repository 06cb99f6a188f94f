"""Flow matching, EDM and consistency models, which have no betas: every option, step by step against diffusers."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from parity import SHAPE, STEPS, assert_close, assert_steps_equal, cases, set_both
from parity import pair as plain_pair

import safelight.runtime
from safelight.runtime import Generator
from safelight.runtime.schedulers import load_scheduler

FLOW_SPACED: list[dict[str, Any]] = [
    {option: True} for option in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
]
DYNAMIC = {"use_dynamic_shifting": True}
EDM: list[dict[str, Any]] = [
    {},
    {"prediction_type": "v_prediction"},
    {"sigma_schedule": "exponential"},
    {"sigma_schedule": "exponential", "sigma_min": 0.1, "sigma_max": 20.0, "final_sigmas_type": "sigma_min"},
    {"sigma_min": 0.02, "sigma_max": 300.0, "sigma_data": 1.0, "rho": 5.0},
    {"final_sigmas_type": "sigma_min"},
    {"num_train_timesteps": 100},
]
SDE = {"algorithm_type": "sde-dpmsolver++"}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "FlowMatchEulerDiscreteScheduler": [
        {},
        {"shift": 3.0},
        {"shift": 0.5, "num_train_timesteps": 100},
        {"invert_sigmas": True},
        {"shift": 3.0, "invert_sigmas": True},
        {"shift_terminal": 0.1},
        {"stochastic_sampling": True},
        {"stochastic_sampling": True, "shift": 3.0},
        DYNAMIC,
        {**DYNAMIC, "time_shift_type": "linear"},
        {**DYNAMIC, "shift": 3.0, "shift_terminal": 0.1, "base_shift": 0.95, "max_shift": 2.05},
        *FLOW_SPACED,
        *({**spaced, "shift": 3.0, "shift_terminal": 0.2} for spaced in FLOW_SPACED),
        *({**spaced, **DYNAMIC, "invert_sigmas": True} for spaced in FLOW_SPACED),
    ],
    "FlowMatchHeunDiscreteScheduler": [{}, {"shift": 3.0}, {"shift": 0.5, "num_train_timesteps": 100}],
    "EDMEulerScheduler": EDM,
    "EDMDPMSolverMultistepScheduler": [
        *EDM,
        *({"solver_order": order, "solver_type": kind} for order in (1, 2, 3) for kind in ("midpoint", "heun")),
        *({**SDE, "solver_order": order, "solver_type": kind} for order in (1, 2) for kind in ("midpoint", "heun")),
        {"thresholding": True},
        {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.9, "solver_order": 3},
        {"lower_order_final": False},
        {"lower_order_final": False, "solver_order": 3},
        {"euler_at_final": True, "solver_order": 3},
        {"final_sigmas_type": "sigma_min", "euler_at_final": True, "lower_order_final": False},
        {**SDE, "sigma_schedule": "exponential", "prediction_type": "v_prediction"},
    ],
    "CMStochasticIterativeScheduler": [
        {"num_train_timesteps": 50},
        {"num_train_timesteps": 201, "clip_denoised": False},
        {"num_train_timesteps": 100, "s_noise": 1.01, "rho": 5.0},
        {"num_train_timesteps": 100, "sigma_min": 0.03, "sigma_max": 14.0, "sigma_data": 1.0, "clip_denoised": False},
    ],
}
FLOW = tuple(name for name in OPTIONS if name.startswith("Flow"))
CASES = cases(OPTIONS)


def pair(name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Ours and diffusers'; its schedulers of flow matching lack what does nothing there."""
    ours, theirs = plain_pair(name, options)
    if name in FLOW:
        theirs.init_noise_sigma = 1.0
        theirs.scale_model_input = lambda sample, timestep: sample
    return ours, theirs


def shift_of(options: dict[str, Any]) -> dict[str, Any]:
    return {"mu": 0.8} if options.get("use_dynamic_shifting") else {}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_each_step_equals_diffusers(name: str, options: dict[str, Any]) -> None:
    for steps in STEPS:
        ours, theirs = pair(name, options)
        if steps == 1 and options.get("shift_terminal"):
            continue  # diffusers divides by zero; see below
        set_both(ours, theirs, num_inference_steps=steps, **shift_of(options))
        assert_steps_equal(ours, theirs)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_training_levels_are_diffusers(name: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(name, options)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6, atol=1e-6)
    assert ours.timesteps.dtype == theirs.timesteps.numpy().dtype


@pytest.mark.parametrize("steps", [333, 999, 1000])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_many_steps_visit_diffusers_levels(name: str, steps: int) -> None:
    ours, theirs = pair(name, {"num_train_timesteps": 1000})
    set_both(ours, theirs, num_inference_steps=steps)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_loop_that_starts_late_equals_diffusers(name: str, options: dict[str, Any], begin: bool) -> None:
    ours, theirs = pair(name, options)
    set_both(ours, theirs, num_inference_steps=12, **shift_of(options))
    late = 5 * ours.order
    if begin:
        ours.set_begin_index(late)
        theirs.set_begin_index(late)
    sample, output = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    generators = stream(ours, 3)
    for own, timestep in zip(ours.timesteps[late:].tolist(), theirs.timesteps[late:], strict=True):
        scaled = theirs.scale_model_input(torch.from_numpy(sample), timestep)
        assert_close(ours.scale_model_input(sample, own), scaled.numpy())
        expected = theirs.step(torch.from_numpy(output), timestep, torch.from_numpy(sample), **generators["theirs"])
        found = ours.step(output, own, sample, **generators["ours"])
        assert_close(found.prev_sample, expected.prev_sample.numpy())
        assert ours.step_index == theirs.step_index
        assert ours.begin_index == theirs.begin_index
        sample = expected.prev_sample.numpy().copy()


def stream(ours: Any, seed: int) -> dict[str, dict[str, Any]]:
    """The same noise for ours and diffusers', where a step takes any."""
    if "generator" not in inspect.signature(type(ours).step).parameters:
        return {"ours": {}, "theirs": {}}
    return {
        "ours": {"generator": Generator(seed)},
        "theirs": {"generator": torch.Generator().manual_seed(seed)},
    }


@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_constructors_and_methods_are_diffusers(name: str) -> None:
    ours, theirs = getattr(safelight.runtime, name), getattr(diffusers, name)
    assert [(one.name, one.default) for one in inspect.signature(ours).parameters.values()] == [
        (one.name, one.default) for one in inspect.signature(theirs).parameters.values()
    ]
    for method, described in inspect.getmembers(theirs, inspect.isfunction):
        # DPM-Solver's formulas are functions here, of a module of their own
        if not method.startswith("_") and method in vars(theirs) and not method.endswith("_update"):
            own = inspect.signature(getattr(ours, method)).parameters
            assert list(own) == list(inspect.signature(described).parameters), method
    assert ours.order == theirs.order


@pytest.mark.parametrize(("name", "options"), CASES)
def test_configurations_are_diffusers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = pair(name, options)
    marks = {"_use_default_values", "_class_name", "_diffusers_version"}
    assert {k: v for k, v in ours.config.items() if k not in marks} == {
        k: v for k, v in theirs.config.items() if k not in marks
    }
    assert set(ours.config["_use_default_values"]) == set(theirs.config.get("_use_default_values", []))
    theirs.save_pretrained(tmp_path)
    assert repr(load_scheduler(tmp_path)) == repr(ours)
    assert {one.__name__ for one in ours.compatibles} <= {one.__name__ for one in theirs.compatibles}
    assert type(ours) in ours.compatibles


@pytest.mark.parametrize("steps", [0, -1, 4001])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_number_of_steps_out_of_range_is_refused(name: str, steps: int) -> None:
    ours, _ = pair(name, {})
    with pytest.raises(ValueError, match=rf"^num_inference_steps must lie between 1 and {len(ours)}, got {steps}$"):
        ours.set_timesteps(steps)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_steps_that_cannot_be_are_refused(name: str) -> None:
    ours, _ = pair(name, {})
    sample = np.zeros(SHAPE, np.float32)
    with pytest.raises(ValueError, match=rf"^{name}: call set_timesteps before step$"):
        ours.step(sample, ours.timesteps[0], sample)
    ours.set_timesteps(3)
    with pytest.raises(ValueError, match="must have the sample's shape"):
        ours.step(sample[:1], ours.timesteps[0], sample)
    with pytest.raises(ValueError, match=r"^timestep 12345 is not in the schedule$"):
        ours.step(sample, 12345, sample)
    for timestep in ours.timesteps.tolist():
        ours.step(sample, timestep, sample)
    with pytest.raises(ValueError, match="the schedule is at its end"):
        ours.step(sample, ours.timesteps[-1], sample)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_samples_dtype_is_kept(name: str, dtype: type) -> None:
    ours, theirs = pair(name, {})
    set_both(ours, theirs, num_inference_steps=5)
    sample, output = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(dtype)
    generators = stream(ours, 5)
    for index in (0, 1, 2):
        timestep, own_timestep = theirs.timesteps[index], float(ours.timesteps[index])
        scaled = theirs.scale_model_input(torch.from_numpy(sample), timestep)
        own = ours.scale_model_input(sample, own_timestep)
        assert own.dtype == dtype
        assert_nearly(own, scaled, dtype)
        expected = theirs.step(torch.from_numpy(output), timestep, torch.from_numpy(sample), **generators["theirs"])
        found = ours.step(output, own_timestep, sample, **generators["ours"])
        assert found.prev_sample.dtype == dtype
        assert_nearly(found.prev_sample, expected.prev_sample, dtype)


def assert_nearly(found: np.ndarray, expected: torch.Tensor, dtype: type) -> None:
    """For float64 diffusers makes float32 of the sample; for float16 the scalings round at different places."""
    limit = 2e-3 if dtype == np.float16 else 1e-5
    assert np.abs(found - expected.numpy()).max() <= limit * np.abs(expected.numpy()).max()


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_tuple_has_the_values_of_diffusers_tuple(name: str) -> None:
    ours, theirs = pair(name, {})
    set_both(ours, theirs, num_inference_steps=5)
    sample, output = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    generators = stream(ours, 5)
    timestep = theirs.timesteps[0]
    theirs.scale_model_input(torch.from_numpy(sample), timestep)
    tensors = torch.from_numpy(output), torch.from_numpy(sample)
    expected = theirs.step(tensors[0], timestep, tensors[1], return_dict=False, **generators["theirs"])
    found = ours.step(output, float(ours.timesteps[0]), sample, return_dict=False, **generators["ours"])
    assert type(found) is tuple
    for own, other in zip(found, expected, strict=True):
        assert_close(own, other.numpy())


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "FlowMatchHeunDiscreteScheduler"])
def test_adding_noise_is_diffusers(name: str) -> None:
    method = "scale_noise" if name in FLOW else "add_noise"
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    tensors = torch.from_numpy(clean), torch.from_numpy(noise)
    for begin in (None, 4):
        ours, theirs = pair(name, {})
        set_both(ours, theirs, num_inference_steps=10)
        if begin is not None:
            ours.set_begin_index(begin)
            theirs.set_begin_index(begin)
        for _ in range(3):
            timesteps, own_timesteps = theirs.timesteps[[2, 7]], ours.timesteps[[2, 7]]
            if method == "scale_noise":
                expected = theirs.scale_noise(tensors[0], timesteps, tensors[1]).numpy()
                assert_close(ours.scale_noise(clean, own_timesteps, noise), expected)
            else:
                expected = theirs.add_noise(*tensors, timesteps).numpy()
            assert_close(ours.add_noise(clean, noise, own_timesteps), expected)
            start = theirs.timesteps[begin or 0]
            theirs.scale_model_input(tensors[0], start)
            theirs.step(tensors[0], start, tensors[1])
            ours.step(clean, float(ours.timesteps[begin or 0]), noise)


# Flow matching


FLOW_EULER = "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(
    "own",
    [
        {"sigmas": [1.0, 0.7, 0.3, 0.01]},
        {"sigmas": np.linspace(1, 1 / 7, 7), "num_inference_steps": 7},
        {"timesteps": [999.0, 700.0, 300.0, 10.0]},
        {"timesteps": [999.0, 700.0, 300.0, 10.0], "num_inference_steps": 4},
        {"timesteps": [999.0, 700.0, 300.0], "sigmas": [0.9, 0.6, 0.5]},
        {"sigmas": [0.9]},
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shift": 3.0},
        {**DYNAMIC, "time_shift_type": "linear"},
        {**DYNAMIC, "shift_terminal": 0.1},
        {"invert_sigmas": True},
        *FLOW_SPACED,
    ],
)
def test_own_sigmas_and_timesteps(options: dict[str, Any], own: dict[str, Any]) -> None:
    ours, theirs = pair(FLOW_EULER, options)
    set_both(ours, theirs, **own, **shift_of(options))
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6, atol=1e-7)
    assert ours.num_inference_steps == theirs.num_inference_steps
    assert_steps_equal(ours, theirs)


def test_the_levels_are_kept_of_a_foreign_configuration() -> None:
    foreign = {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 0.9}
    ours = safelight.runtime.FlowMatchEulerDiscreteScheduler.from_config(foreign)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(foreign)
    set_both(ours, theirs, num_inference_steps=7)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)


def test_the_shift_can_be_changed() -> None:
    ours, theirs = pair(FLOW_EULER, {"shift": 3.0})
    for scheduler in (ours, theirs):
        scheduler.set_shift(1.7)
    assert ours.shift == theirs.shift == 1.7
    set_both(ours, theirs, num_inference_steps=7)
    assert_steps_equal(ours, theirs)
    assert (ours.sigma_min, ours.sigma_max) == pytest.approx((theirs.sigma_min, theirs.sigma_max))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_shifted_times_are_diffusers(kind: str, power: float) -> None:
    ours, theirs = pair(FLOW_EULER, {"time_shift_type": kind, "shift_terminal": 0.3})
    times = np.linspace(1, 0.01, 9)
    np.testing.assert_allclose(ours.time_shift(0.7, power, times), theirs.time_shift(0.7, power, times), rtol=1e-12)
    stretched = ours.stretch_shift_to_terminal(times)
    np.testing.assert_allclose(stretched, theirs.stretch_shift_to_terminal(times), rtol=1e-12)
    assert ours.time_shift(0.7, power, np.zeros(1)) == 0  # diffusers divides by zero on the way


def test_one_step_cannot_be_stretched() -> None:
    ours, theirs = pair(FLOW_EULER, {"shift_terminal": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.set_timesteps(1)  # divides by zero: its level is no number
    assert theirs.sigmas.isnan()[0]
    ours.set_timesteps(1)
    np.testing.assert_array_equal(ours.sigmas, [1, 0])


@pytest.mark.parametrize("stochastic", [False, True])
def test_each_token_has_its_own_timestep(stochastic: bool) -> None:
    ours, theirs = pair(FLOW_EULER, {"shift": 3.0, "stochastic_sampling": stochastic})
    set_both(ours, theirs, num_inference_steps=6)
    sample, output = np.random.default_rng(0).standard_normal((2, 2, 5, 3)).astype(np.float32)
    first, second, last = ours.timesteps[[0, 2, 5]].tolist()
    own = np.array([[first, second, last, 0, 333.3], [0, 17.0, second, second, 990.0]], np.float32)
    generators = stream(ours, 2)
    for index in (0, 1):
        expected = theirs.step(
            torch.from_numpy(output),
            theirs.timesteps[index],
            torch.from_numpy(sample),
            per_token_timesteps=torch.from_numpy(own),
            **generators["theirs"],
        )
        found = ours.step(output, ours.timesteps[index], sample, per_token_timesteps=own, **generators["ours"])
        assert_close(found.prev_sample, expected.prev_sample.numpy())
    for wrong in (own[:1], own[:, :3], own[..., None]):
        with pytest.raises(ValueError, match="per_token_timesteps"):
            ours.step(output, ours.timesteps[2], sample, per_token_timesteps=wrong)


def test_a_token_at_the_loops_level_moves_with_it() -> None:
    # diffusers moves tokens by the negated output, and its pipelines (LTX, SANA-WM) negate it: so both agree
    whole, tokens = (pair(FLOW_EULER, {"shift": 3.0})[0] for _ in range(2))
    sample, output = np.random.default_rng(0).standard_normal((2, 2, 5, 3)).astype(np.float32)
    for scheduler in (whole, tokens):
        scheduler.set_timesteps(6)
    for timestep in whole.timesteps.tolist():
        expected = whole.step(output, timestep, sample).prev_sample
        levels = np.full((2, 5), timestep, np.float32)
        found = tokens.step(-output, timestep, sample, per_token_timesteps=levels).prev_sample
        assert_close(found, expected)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"sigmas": []},
        {"timesteps": [[1.0]]},
        {"sigmas": [float("nan")]},
        {"sigmas": [1.0, 0.5], "timesteps": [900.0]},
        {"sigmas": [1.0, 0.5], "num_inference_steps": 3},
    ],
)
def test_levels_that_do_not_fit_together_are_refused(given: dict[str, Any]) -> None:
    ours, _ = pair(FLOW_EULER, {})
    with pytest.raises(ValueError, match=r"sigmas|timesteps"):
        ours.set_timesteps(**given)


def test_unknown_and_contradicting_options_of_flow_matching_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown time_shift_type 'cubic'; known: exponential, linear$"):
        pair(FLOW_EULER, {})[0].from_config({"time_shift_type": "cubic"})
    with pytest.raises(ValueError, match=r"^only one of use_karras_sigmas"):
        safelight.runtime.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True, use_beta_sigmas=True)
    with pytest.raises(ValueError, match=r"^mu must be given where use_dynamic_shifting is true$"):
        pair(FLOW_EULER, DYNAMIC)[0].set_timesteps(5)


CHURN: list[dict[str, Any]] = [
    {"s_churn": 5.0},
    {"s_churn": 40.0, "s_noise": 1.1},
    {"s_churn": 5.0, "s_tmin": 0.2, "s_tmax": 0.9},
]


@pytest.mark.parametrize("churn", CHURN)
@pytest.mark.parametrize("name", [*FLOW, "EDMEulerScheduler"])
def test_churn(name: str, churn: dict[str, Any]) -> None:
    ours, theirs = pair(name, {})
    set_both(ours, theirs, num_inference_steps=12)
    assert_steps_equal(ours, theirs, **churn)


def test_heuns_two_halves() -> None:
    ours, theirs = pair("FlowMatchHeunDiscreteScheduler", {})
    set_both(ours, theirs, num_inference_steps=4)
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    tensors = torch.from_numpy(clean), torch.from_numpy(noise)
    for timestep in theirs.timesteps:
        assert ours.state_in_first_order == theirs.state_in_first_order
        expected = theirs.scale_noise(tensors[0], timestep, tensors[1])
        assert_close(ours.scale_noise(clean, float(timestep), noise), expected.numpy())
        theirs.step(tensors[0], timestep, tensors[1])
        ours.step(clean, float(timestep), noise)
    ours.set_timesteps(4)
    assert ours.state_in_first_order


# EDM and consistency models


@pytest.mark.parametrize("options", EDM)
def test_edms_positions(options: dict[str, Any]) -> None:
    positions = [0.0, 0.1, 0.35, 0.8, 1.0]
    ours, theirs = pair("EDMEulerScheduler", options)
    theirs.set_timesteps(sigmas=torch.tensor(positions))
    ours.set_timesteps(sigmas=positions)
    assert ours.num_inference_steps == 5  # diffusers has None
    assert_steps_equal(ours, theirs)


@pytest.mark.parametrize(
    "given",
    [
        {"sigmas": [80.0, 1.0, 0.002]},  # diffusers takes them for positions: its levels are negative
        {"sigmas": [-0.1, 1.0]},
        {"sigmas": []},
        {"sigmas": [[0.0, 1.0]]},
        {"sigmas": [0.0, float("nan")]},
        {"sigmas": [0.0, 1.0], "num_inference_steps": 3},
    ],
)
def test_positions_that_are_none_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sigmas"):
        safelight.runtime.EDMEulerScheduler().set_timesteps(**given)


def test_edms_clean_sample_can_be_given() -> None:
    ours, theirs = pair("EDMEulerScheduler", {})
    set_both(ours, theirs, num_inference_steps=5)
    sample, output, clean = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    theirs.scale_model_input(torch.from_numpy(sample), theirs.timesteps[0])
    for timestep in theirs.timesteps:
        expected = theirs.step(
            torch.from_numpy(output),
            timestep,
            torch.from_numpy(sample),
            pred_original_sample=torch.from_numpy(clean),
        )
        found = ours.step(output, float(timestep), sample, pred_original_sample=clean)
        assert_close(found.prev_sample, expected.prev_sample.numpy())
        np.testing.assert_array_equal(found.pred_original_sample, clean)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name.startswith("EDM")])
def test_edms_preconditioning(name: str) -> None:
    sample, output = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    tensors = torch.from_numpy(sample), torch.from_numpy(output)
    for kind in ("epsilon", "v_prediction"):
        ours, theirs = pair(name, {"prediction_type": kind})
        for sigma in (0.002, 1.0, 80.0):
            level = torch.tensor(sigma)
            expected = theirs.precondition_inputs(tensors[0], level)
            assert_close(ours.precondition_inputs(sample, np.float32(sigma)), expected.numpy())
            expected = theirs.precondition_outputs(*tensors, level)
            assert_close(ours.precondition_outputs(sample, output, np.float32(sigma)), expected.numpy())
            np.testing.assert_allclose(ours.precondition_noise(sigma), theirs.precondition_noise(sigma)[0], rtol=1e-6)
        with pytest.raises(ValueError, match=r"needs the timestep to scale its input$"):
            ours.scale_model_input(sample)


@pytest.mark.parametrize(
    ("option", "wrong", "known"),
    [
        ("sigma_schedule", "linear", "karras, exponential"),
        ("final_sigmas_type", "one", "zero, sigma_min"),
        ("prediction_type", "sample", "epsilon, v_prediction"),  # diffusers refuses it at the first step
    ],
)
@pytest.mark.parametrize("name", [name for name in OPTIONS if name.startswith("EDM")])
def test_unknown_options_of_edm_are_refused(name: str, option: str, wrong: str, known: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: unknown {option} '{wrong}'; known: {known}$"):
        getattr(safelight.runtime, name)(**{option: wrong})


CM = "CMStochasticIterativeScheduler"


@pytest.mark.parametrize("own", [[39, 20, 3, 0], [22, 0], [17]])
def test_own_timesteps_of_consistency_models(own: list[int]) -> None:
    ours, theirs = pair(CM, {})
    set_both(ours, theirs, timesteps=own)
    assert ours.num_inference_steps == len(own)  # diffusers has None
    assert_steps_equal(ours, theirs)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_inference_steps": 2, "timesteps": [3, 1]},
        *({"timesteps": own} for own in ([], [[3, 1]], [1, 3], [3, 3], [40, 0], [3, -1])),
    ],
)
def test_timesteps_that_cannot_be_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timesteps"):
        safelight.runtime.CMStochasticIterativeScheduler().set_timesteps(**given)


def test_the_scalings_of_consistency_models() -> None:
    ours, theirs = pair(CM, {})
    for sigma in (0.002, 0.5, 80.0):
        for method in ("get_scalings", "get_scalings_for_boundary_condition"):
            found = getattr(ours, method)(np.float32(sigma))
            expected = getattr(theirs, method)(torch.tensor(sigma))
            np.testing.assert_allclose(found, [float(one) for one in expected], rtol=1e-6)
        np.testing.assert_allclose(ours.sigma_to_t(sigma), theirs.sigma_to_t(sigma), rtol=1e-12)
    with pytest.raises(ValueError, match=r"needs the timestep to scale its input$"):
        ours.scale_model_input(np.zeros(SHAPE, np.float32))


@pytest.mark.parametrize("lowest", [0.001, 0.002, 0.005004008, 0.1, 0.019018036, 0.3])
def test_the_last_step_of_a_consistency_model_adds_no_noise(lowest: float) -> None:
    ours = safelight.runtime.CMStochasticIterativeScheduler(sigma_min=lowest)
    ours.set_timesteps(2)
    ours.set_begin_index(1)
    sample, output = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    found = ours.step(output, ours.timesteps[1], sample, Generator(0)).prev_sample
    c_skip, c_out = ours.get_scalings_for_boundary_condition(ours.sigmas[1])
    # diffusers takes the root of a rounding error there, which can be negative: it has no numbers then
    assert np.abs(found - np.clip(c_skip * sample + c_out * output, -1, 1)).max() < 2e-3 * lowest


def test_one_training_timestep_is_the_highest_level() -> None:
    ours = safelight.runtime.CMStochasticIterativeScheduler(num_train_timesteps=1)
    ours.set_timesteps(1)  # diffusers divides by zero
    np.testing.assert_allclose(ours.sigmas, [80.0, 0.002], rtol=1e-6)


DPM = "EDMDPMSolverMultistepScheduler"


@pytest.mark.parametrize("options", [{"solver_type": "heun"}, {"solver_order": 3}])
def test_a_last_step_of_no_length_changes_nothing(options: dict[str, Any]) -> None:
    ours, theirs = pair(DPM, {**options, "final_sigmas_type": "sigma_min"})
    set_both(ours, theirs, num_inference_steps=15)
    sample, output = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    for own, timestep in zip(ours.timesteps.tolist(), theirs.timesteps, strict=True):
        theirs.scale_model_input(torch.from_numpy(sample), timestep)
        expected = theirs.step(torch.from_numpy(output), timestep, torch.from_numpy(sample)).prev_sample.numpy()
        found = ours.step(output, own, sample).prev_sample
        if own == ours.timesteps[-1]:  # diffusers divides zero by zero
            assert np.isnan(expected).all()
            np.testing.assert_allclose(found, sample, rtol=1e-6)  # Karras' last level is rounded
        else:
            assert_close(found, expected)
            sample = expected


def test_the_stochastic_third_order_has_a_formula() -> None:
    # diffusers has none and fails with an UnboundLocalError: here it is that of `DPMSolverMultistepScheduler`
    ours, theirs = pair(DPM, {**SDE, "solver_order": 3})
    set_both(ours, theirs, num_inference_steps=20)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) * 80
    for timestep in ours.timesteps.tolist():
        scaled = ours.scale_model_input(sample, timestep)
        sample = ours.step(np.tanh(scaled), timestep, sample, generator=Generator(1)).prev_sample
    assert np.isfinite(sample).all()
    assert np.abs(sample).max() < 10
    tensor = torch.zeros(SHAPE)
    for timestep in theirs.timesteps[:2]:
        theirs.step(tensor, timestep, tensor)
    with pytest.raises(UnboundLocalError):
        theirs.step(tensor, theirs.timesteps[2], tensor)


@pytest.mark.parametrize("solver_type", ["logrho", "bh1", "bh2"])
def test_other_solvers_names_are_taken(solver_type: str) -> None:
    ours, theirs = pair(DPM, {"solver_type": solver_type})
    assert ours.config["solver_type"] == theirs.config["solver_type"] == "midpoint"
    options = {"algorithm_type": "deis", "final_sigmas_type": "sigma_min"}
    ours, theirs = pair(DPM, options)
    assert ours.config["algorithm_type"] == theirs.config["algorithm_type"] == "dpmsolver++"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm_type": "dpmsolver"}, r"unknown algorithm_type 'dpmsolver'; known: dpmsolver\+\+, sde-dpmsolver"),
        ({"solver_type": "euler"}, r"unknown solver_type 'euler'; known: midpoint, heun$"),
        ({"solver_order": 4}, r"^solver_order must be one of 1, 2, 3, got 4$"),
    ],
)
def test_unknown_options_of_dpm_solver_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        safelight.runtime.EDMDPMSolverMultistepScheduler(**options)


def test_what_the_model_predicted_is_remembered_until_the_timesteps_are_set() -> None:
    ours, _ = pair(DPM, {"solver_order": 3})
    ours.set_timesteps(5)
    sample = np.ones(SHAPE, np.float32)
    for index, timestep in enumerate(ours.timesteps.tolist()):
        ours.step(sample, timestep, sample)
        assert len(ours.model_outputs) == min(index + 1, 3)
        expected = ours.precondition_outputs(sample, sample, ours.sigmas[index])
        np.testing.assert_array_equal(ours.model_outputs[-1], expected)
    ours.set_timesteps(5)
    assert ours.model_outputs == []


@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "CMStochasticIterativeScheduler"]
)
def test_without_betas_there_is_no_velocity(name: str) -> None:
    noise = np.zeros(SHAPE, np.float32)
    with pytest.raises(AttributeError, match=rf"^{name} has no betas, and so no velocity$"):
        getattr(safelight.runtime, name)().get_velocity(noise, noise, [1])
