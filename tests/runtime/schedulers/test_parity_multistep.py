"""DEIS, UniPC, iPNDM and SA-Solver, step by step against diffusers.

Once in float32 to parity's limit, and once with float64 samples and sigmas to a closer one.
"""

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from parity import LATENT, SHAPE, SHARED, STEPS, assert_close, assert_steps_equal, cases, model, pair, set_both

import safelight.runtime
from safelight.runtime import Generator

# diffusers' DEIS takes NumPy's logarithms of torch's tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

UNIPC = "UniPCMultistepScheduler"
DEIS = "DEISMultistepScheduler"
IPNDM = "IPNDMScheduler"
SA = "SASolverScheduler"

THRESHOLDING = {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.9}
SPACED = [
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
NOT_ZERO = {"final_sigmas_type": "sigma_min"}
CLOSE = 1e-7  # relative, in float64

OPTIONS: dict[str, list[dict[str, Any]]] = {
    UNIPC: [
        *SHARED,
        {"prediction_type": "sample"},
        {"prediction_type": "flow_prediction"},
        THRESHOLDING,
        *({**LATENT, "solver_order": order} for order in (1, 3, 4)),
        *({**LATENT, "solver_order": order, "solver_type": "bh1", **NOT_ZERO} for order in (1, 2, 3)),
        *(
            {**LATENT, "solver_order": order, "predict_x0": False, "prediction_type": kind, **NOT_ZERO}
            for order, kind in ((1, "epsilon"), (2, "sample"), (3, "v_prediction"), (2, "epsilon"))
        ),
        {**LATENT, "predict_x0": False, **THRESHOLDING, **NOT_ZERO},
        *({**LATENT, "lower_order_final": False, "solver_order": order, **NOT_ZERO} for order in (2, 3)),
        {**LATENT, "disable_corrector": [0, 1, 3]},
        *({**LATENT, "solver_type": other} for other in ("midpoint", "heun", "logrho")),
        *({**LATENT, **spaced} for spaced in SPACED),
        *({**LATENT, **spaced, **NOT_ZERO, "solver_order": 3} for spaced in SPACED),
        {**LATENT, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        FLOW,
        {**FLOW, "flow_shift": 3.0, "solver_order": 3},
        {**FLOW, "use_karras_sigmas": True},
        {**FLOW, "shift_terminal": 0.1, **NOT_ZERO},
        {**LATENT, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    DEIS: [
        *SHARED,
        {"prediction_type": "sample"},
        THRESHOLDING,
        *({**LATENT, "solver_order": order} for order in (1, 3, 4)),
        *({**LATENT, "solver_order": order, "lower_order_final": False} for order in (2, 3)),
        *({**LATENT, "algorithm_type": other} for other in ("dpmsolver", "dpmsolver++")),
        *({**LATENT, "solver_type": other} for other in ("midpoint", "heun", "bh1", "bh2")),
        *({**LATENT, **spaced} for spaced in SPACED),
        *({**LATENT, **spaced, "solver_order": 3} for spaced in SPACED),
        *({**FLOW, "flow_shift": shift, "solver_order": order} for shift in (1.0, 3.0) for order in (2, 3)),
    ],
    IPNDM: [{}, {"num_train_timesteps": 500}, {"trained_betas": np.linspace(1, 0, 12).tolist()}],
    SA: [
        *SHARED,
        {"prediction_type": "sample"},
        THRESHOLDING,
        *(
            {**LATENT, "predictor_order": predictor, "corrector_order": corrector, "algorithm_type": kind}
            for predictor, corrector in ((1, 1), (1, 2), (2, 3), (3, 1), (4, 2), (3, 4))
            for kind in ("data_prediction", "noise_prediction")
        ),
        *(
            {**LATENT, "algorithm_type": "noise_prediction", "prediction_type": kind}
            for kind in ("v_prediction", "sample")
        ),
        {**LATENT, "predictor_order": 3, "corrector_order": 4, "lower_order_final": False},
        *({**LATENT, **spaced} for spaced in SPACED),
        *({**LATENT, **spaced, "algorithm_type": "noise_prediction"} for spaced in SPACED),
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {**LATENT, "lambda_min_clipped": -1.5, "timestep_spacing": "trailing"},
        {**FLOW, "flow_shift": 3.0},
    ],
}


def assert_steps_equal_in_float64(ours: Any, theirs: Any) -> None:
    """As `assert_steps_equal`; both with the noise levels that diffusers has, in float64."""
    generators: dict[str, Any] = {}
    if type(ours).__name__ == SA:
        generators = {"ours": Generator(3), "theirs": torch.Generator().manual_seed(3)}
    if type(ours).__name__ != IPNDM:
        theirs.sigmas = theirs.sigmas.double()
        ours.sigmas = theirs.sigmas.numpy()
    sample = np.random.default_rng(0).standard_normal(SHAPE)
    for index, (own, timestep) in enumerate(zip(ours.timesteps.tolist(), theirs.timesteps, strict=True)):
        output = model(sample, index, 4).astype(np.float64)
        drawn = {name: {"generator": generator} for name, generator in generators.items()}
        arrays = torch.from_numpy(output.copy()), timestep, torch.from_numpy(sample.copy())
        expected = theirs.step(*arrays, **drawn.get("theirs", {})).prev_sample.numpy()
        found = ours.step(output, own, sample, **drawn.get("ours", {})).prev_sample
        assert found.dtype == np.float64
        assert np.abs(found - expected).max() <= CLOSE * np.abs(expected).max()
        sample = expected


def prepared(name: str, options: dict[str, Any], steps: int) -> tuple[Any, Any]:
    """Both with their timesteps set, equally."""
    ours, theirs = pair(name, options)
    set_both(ours, theirs, num_inference_steps=steps)
    if name != IPNDM:
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-5)
    if len(theirs.timesteps) > 1 and theirs.timesteps[0] == theirs.timesteps[1]:
        theirs.set_begin_index(0)  # it starts at the second otherwise, and fails at the end
    return ours, theirs


def rounds_much(name: str, options: dict[str, Any]) -> bool:
    """Whether diffusers' own rounding is as large as the limit.

    It divides differences by a small alpha near noise, or by a small sigma near clean, where it converts between noise
    and clean samples (and there moves by 1e-6 to 1e-4 if its inputs move by 1e-7), and has weights that are small
    differences of large numbers from the third order on (SA-Solver, and others where levels lie closely).
    """
    if options.get("use_beta_sigmas") and options.get("solver_order", 2) > 2:
        return True
    converts = options.get("prediction_type", "epsilon") != "epsilon" or options.get("thresholding", False)
    if name == DEIS:
        return bool(converts)
    if name == UNIPC:
        return not options.get("predict_x0", True) and converts
    if name == SA:
        return max(options.get("predictor_order", 2), options.get("corrector_order", 2)) > 2 or (
            options.get("algorithm_type") == "noise_prediction" and converts
        )
    return False


@pytest.mark.parametrize(("name", "options"), cases(OPTIONS))
def test_each_step_equals_diffusers(name: str, options: dict[str, Any]) -> None:
    for steps in STEPS:
        if options.get("shift_terminal") and steps == 1:
            continue  # diffusers divides 0 by 0; see below
        if not rounds_much(name, options):
            assert_steps_equal(*prepared(name, options, steps))
        if name != IPNDM:
            assert_steps_equal_in_float64(*prepared(name, options, steps))


@pytest.mark.parametrize("steps", [1000, 999, 333])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_many_steps_visit_diffusers_timesteps(name: str, steps: int) -> None:
    ours, theirs = pair(name, {})
    set_both(ours, theirs, num_inference_steps=steps)
    # near noise iPNDM's angle is the arc of a sine that float32 rounds
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), atol=5e-6 if name == IPNDM else 0)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_starting_late(name: str, announced: bool) -> None:
    ours, theirs = pair(name, {})
    set_both(ours, theirs, num_inference_steps=12)
    for scheduler in (ours, theirs):
        if announced:
            scheduler.set_begin_index(5)
        scheduler.timesteps_left = scheduler.timesteps[5:]
    draws = {"generator": Generator(1)} if name == SA else {}
    torch_draws = {"generator": torch.Generator().manual_seed(1)} if name == SA else {}
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for index, (own, timestep) in enumerate(zip(ours.timesteps_left.tolist(), theirs.timesteps_left, strict=True)):
        output = model(sample, index, 4)
        arrays = torch.from_numpy(output), timestep, torch.from_numpy(sample.copy())
        expected = theirs.step(*arrays, **torch_draws, return_dict=False)[0].numpy()
        (found,) = ours.step(output, own, sample, **draws, return_dict=False)
        assert_close(found, expected)
        sample = expected
    assert ours.step_index == theirs.step_index == 12


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, {"sigmas": np.array([1.0, 0.8, 0.35, 0.1])}),
        ({"flow_shift": 3.0, **NOT_ZERO}, {"sigmas": np.array([0.9, 0.8, 0.35, 0.1])}),
        ({"use_dynamic_shifting": True}, {"num_inference_steps": 7, "mu": 0.9}),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, {"sigmas": np.array([1.0, 0.6, 0.3]), "mu": 0.9}),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"num_inference_steps": 7, "mu": 2.5}),
    ],
)
def test_unipcs_own_sigmas_and_shift(options: dict[str, Any], own: dict[str, Any]) -> None:
    ours, theirs = pair(UNIPC, {**FLOW, **options})
    set_both(ours, theirs, **own)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)
    assert_steps_equal(ours, theirs)


def test_deiss_shift_is_that_of_one_picture() -> None:
    # diffusers keeps it for the next, hidden in the configuration
    ours, theirs = pair(DEIS, {**FLOW, "use_dynamic_shifting": True})
    set_both(ours, theirs, num_inference_steps=5, mu=0.9)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=1e-6)
    assert_steps_equal_in_float64(ours, theirs)
    ours.set_timesteps(5)
    plain, _ = pair(DEIS, FLOW)
    plain.set_timesteps(5)
    np.testing.assert_array_equal(ours.sigmas, plain.sigmas)


@pytest.mark.parametrize("solver", ["DDIMScheduler", DEIS])
def test_unipc_corrects_after_another_predictor(solver: str) -> None:
    options: dict[str, Any] = {**LATENT, "timestep_spacing": "linspace"}
    of_ours, of_theirs = pair(solver, options)
    ours = safelight.runtime.UniPCMultistepScheduler(**options, solver_p=of_ours)
    theirs = diffusers.UniPCMultistepScheduler(**options, solver_p=of_theirs)
    for steps in (2, 10):
        set_both(ours, theirs, num_inference_steps=steps)
        assert_steps_equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"solver_type": "bh1"},
        {"predict_x0": False},
        {"predict_x0": False, **FLOW},
        {"lower_order_final": False},
        {"lower_order_final": False, "solver_order": 3},
        {"use_exponential_sigmas": True, **FLOW},
        {"use_beta_sigmas": True, **FLOW},
    ],
)
def test_unipcs_last_step_without_noise_is_the_clean_sample(options: dict[str, Any]) -> None:
    # diffusers gives NaN, or fails: log-SNR is infinite there, and levels above 1 are no flow sigmas
    ours, theirs = pair(UNIPC, options)
    set_both(ours, theirs, num_inference_steps=20)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    theirs_sample = torch.from_numpy(sample)
    try:
        for index, timestep in enumerate(theirs.timesteps):
            output = torch.from_numpy(model(theirs_sample.numpy(), index, 4))
            theirs_sample = theirs.step(output, timestep, theirs_sample).prev_sample
        assert theirs_sample.isnan().any()
    except (torch.linalg.LinAlgError, ValueError):
        pass
    for index, timestep in enumerate(ours.timesteps.tolist()):
        if index == 19:
            ours.disable_corrector = [18]
        before, output = sample, model(sample, index, 4)
        sample = ours.step(output, timestep, sample).prev_sample
        assert np.isfinite(sample).all()
    sigma = ours.sigmas[-2]
    velocity = "use_flow_sigmas" in options
    clean = before - sigma * output if velocity else before * (1 + sigma**2) ** 0.5 - sigma * output
    np.testing.assert_allclose(sample, clean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacer", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", [DEIS, SA, "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"])
def test_respaced_flow_sigmas_lie_between_clean_and_noise(name: str, spacer: str) -> None:
    # diffusers does that in UniPC with Karras' alone; the others take levels above 1: NaN, or numbers without meaning
    ours, theirs = pair(name, {**FLOW, spacer: True} | ({"tau_func": lambda timestep: 0.0} if name == SA else {}))
    set_both(ours, theirs, num_inference_steps=10)
    assert theirs.sigmas.max() > 1
    levels = theirs.sigmas[:-1].double().numpy()
    np.testing.assert_allclose(ours.sigmas[:-1], levels / (levels + 1), rtol=1e-5)
    last = ours.sigmas[-2] if name in (DEIS, SA) else 0  # as for other levels
    assert ours.sigmas[-1] == last
    np.testing.assert_allclose(ours.timesteps, ours.sigmas[:-1] * 1000, atol=1)
    if spacer == "use_karras_sigmas":
        own_unipc, unipc = pair(UNIPC, {**FLOW, spacer: True})
        set_both(own_unipc, unipc, num_inference_steps=10)
        np.testing.assert_allclose(ours.sigmas[:-1], unipc.sigmas[:-1].numpy(), rtol=1e-5)
        np.testing.assert_array_equal(ours.timesteps, unipc.timesteps.numpy())
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    clean = np.tanh(sample)
    start = sample
    for timestep, sigma in zip(ours.timesteps.tolist(), ours.sigmas, strict=False):
        sample = ours.step((sample - clean) / sigma, timestep, sample).prev_sample  # the velocity of a path to clean
    noise = (start - (1 - ours.sigmas[0]) * clean) / ours.sigmas[0]
    np.testing.assert_allclose(sample, (1 - last) * clean + last * noise, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [(UNIPC, "solver_p", safelight.runtime.DDIMScheduler()), (SA, "tau_func", lambda timestep: 0.0)],
)
def test_options_that_json_has_not_are_shown_and_not_saved(name: str, option: str, value: Any, tmp_path: Path) -> None:
    scheduler = getattr(safelight.runtime, name)(**{option: value})
    assert f'"{option}": ' in repr(scheduler)
    with pytest.raises(ValueError, match=rf"^{name} cannot be saved with its options: .* not JSON serializable"):
        scheduler.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_single_step_is_not_stretched() -> None:
    ours, theirs = pair(UNIPC, {**FLOW, "shift_terminal": 0.1})
    ours.set_timesteps(1)
    with np.errstate(all="ignore"):
        theirs.set_timesteps(1)
    assert np.isnan(theirs.sigmas[0])
    np.testing.assert_allclose(ours.sigmas, [1 - 1e-6, 0])


@pytest.mark.parametrize("name", [UNIPC, DEIS, SA])
def test_repeated_levels_are_passed_over(name: str) -> None:
    ours, _ = pair(name, {})  # of a thousand steps over a thousand timesteps two are the same: NaN in diffusers' UniPC
    ours.set_timesteps(1000)
    assert len(np.unique(ours.timesteps)) < 1000
    sample = np.random.default_rng(0).standard_normal((1, 2, 3, 3)).astype(np.float32)
    for index, timestep in enumerate(ours.timesteps.tolist()):
        sample = ours.step(model(sample, index, 2), timestep, sample).prev_sample
    assert np.isfinite(sample).all()


@pytest.mark.parametrize("tau", [lambda timestep: 0.0, lambda timestep: 0.7, lambda timestep: timestep / 500])
@pytest.mark.parametrize("kind", ["data_prediction", "noise_prediction"])
def test_sa_solvers_tau(kind: str, tau: Any) -> None:
    for steps in (2, 12):
        ours, theirs = pair(SA, {**LATENT, "algorithm_type": kind, "tau_func": tau})
        set_both(ours, theirs, num_inference_steps=steps)
        assert_steps_equal(ours, theirs)


def test_sa_solver_thresholds_predicted_noise() -> None:
    # diffusers looks for the levels of a timestep that it does not have there, and fails
    ours, theirs = pair(SA, {"algorithm_type": "noise_prediction", **THRESHOLDING})
    set_both(ours, theirs, num_inference_steps=5)
    sample = 3 * np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    with pytest.raises(RuntimeError):
        theirs.step(torch.from_numpy(sample), theirs.timesteps[0], torch.from_numpy(sample))
    ours.step(sample / 9, ours.timesteps[0], sample, generator=Generator(0))
    (noise,) = ours.model_outputs
    alpha, sigma = ours._alpha_sigma(ours.sigmas[0])
    clean = (sample - sigma * noise) / alpha
    assert 0.99 <= np.abs(clean).max() <= 1.01


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_sa_solver_leaves_a_learned_variance_out(kind: str) -> None:
    # diffusers takes three channels of the output, and noise of all of them, and fails
    ours, plain = (safelight.runtime.SASolverScheduler(variance_type=variance) for variance in (kind, None))
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for scheduler in (ours, plain):
        scheduler.set_timesteps(5)
    found = ours.step(model(sample, 0, 8), ours.timesteps[0], sample, generator=Generator(0))
    expected = plain.step(model(sample, 0, 4), ours.timesteps[0], sample, generator=Generator(0))
    np.testing.assert_array_equal(found.prev_sample, expected.prev_sample)


def test_sa_solvers_noise_is_the_generators() -> None:
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)

    def step(**options: Any) -> Any:
        scheduler = safelight.runtime.SASolverScheduler(tau_func=lambda timestep: 1.0)
        scheduler.set_timesteps(5)
        return scheduler.step(sample, scheduler.timesteps[0], sample, **options).prev_sample

    np.testing.assert_array_equal(step(generator=Generator(2)), step(generator=Generator(2)))
    assert not np.array_equal(step(), step())
    each = step(generator=[Generator(2), Generator(3)])
    np.testing.assert_array_equal(each[1], step(generator=[Generator(5), Generator(3)])[1])


@pytest.mark.parametrize("name", [UNIPC, DEIS, SA])
def test_adding_noise(name: str) -> None:
    for options in (LATENT, {"use_flow_sigmas": True}):
        ours, theirs = pair(name, options)
        set_both(ours, theirs, num_inference_steps=10)
        clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
        arrays = torch.from_numpy(clean), torch.from_numpy(noise)
        for timesteps in (theirs.timesteps[[2, 7]], theirs.timesteps[3:4]):
            expected = theirs.add_noise(*arrays, timesteps).numpy()
            assert_close(ours.add_noise(clean, noise, timesteps.numpy()), expected)
        for scheduler in (ours, theirs):
            scheduler.set_begin_index(4)
        assert_close(ours.add_noise(clean, noise, timesteps.numpy()), theirs.add_noise(*arrays, timesteps).numpy())


@pytest.mark.parametrize("name", [UNIPC, DEIS])
def test_training_timesteps_have_their_noise_before_any_are_set(name: str) -> None:
    # diffusers' levels rise there and its timesteps fall: it gives timestep 999 the noise of 0
    ours, _ = pair(name, LATENT)
    trained = safelight.runtime.DDPMScheduler(**LATENT)
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    assert_close(ours.add_noise(clean, noise, [999, 20]), trained.add_noise(clean, noise, [999, 20]))


def test_ipndms_noise_is_that_of_its_levels() -> None:
    ours, _ = pair(IPNDM, {})  # diffusers has no add_noise here
    ours.set_timesteps(8)
    clean, noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    timestep = ours.timesteps[3]
    angle = np.pi / 2 * timestep
    assert_close(ours.add_noise(clean, noise, [timestep]), np.cos(angle) * clean + np.sin(angle) * noise)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_samples_dtype_is_kept(name: str, dtype: type) -> None:
    ours, theirs = pair(name, {})
    set_both(ours, theirs, num_inference_steps=6)
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    limit = 1e-2 if dtype == np.float16 else 1e-5
    for index, timestep in enumerate(theirs.timesteps):
        output = model(sample, index, 4).astype(dtype)
        draws = {"generator": Generator(index)} if name == SA else {}
        torch_draws = {"generator": torch.Generator().manual_seed(index)} if name == SA else {}
        arrays = torch.from_numpy(output), timestep, torch.from_numpy(sample)
        expected = theirs.step(*arrays, **torch_draws).prev_sample.numpy()
        found = ours.step(output, ours.timesteps.tolist()[index], sample, **draws).prev_sample
        assert found.dtype == dtype
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() <= limit * np.abs(expected).max()
        sample = found


@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_history_is_kept_and_cleared(name: str) -> None:
    ours, _ = pair(name, {})
    history = "ets" if name == IPNDM else "model_outputs"
    for most in (2, 4) if name == IPNDM else (2,):
        ours.set_timesteps(6)
        assert getattr(ours, history) == []
        sample = np.ones(SHAPE, np.float32)
        for timestep in ours.timesteps.tolist()[:most]:
            output = sample * np.float32(0.3)
            sample = ours.step(output, timestep, sample).prev_sample
        assert len(getattr(ours, history)) == most
    ours.set_timesteps(3)
    assert getattr(ours, history) == []


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("method", ["__init__", "set_timesteps", "step"])
def test_the_keywords_are_diffusers(name: str, method: str) -> None:
    ours, theirs = (
        [(one.name, one.default) for one in inspect.signature(getattr(scheduler, method)).parameters.values()]
        for scheduler in (getattr(safelight.runtime, name), getattr(diffusers, name))
    )
    assert ours == theirs


@pytest.mark.parametrize("name", list(OPTIONS))
def test_the_face_is_diffusers(name: str) -> None:
    ours, theirs = pair(name, {})
    assert ours.order == theirs.order
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), atol=5e-6)
    assert {one.__name__ for one in ours.compatibles} <= {name, *(one.__name__ for one in theirs.compatibles)}
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        copied.set_timesteps(4)
        assert dict(copied.config) == dict(ours.config)
    sample = np.ones(SHAPE, np.float32)
    assert ours.scale_model_input(sample, 5) is sample


@pytest.mark.parametrize("last", [UNIPC, DEIS, SA])
@pytest.mark.parametrize("first", [UNIPC, DEIS, SA])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver_type": "midpoint", "algorithm_type": "dpmsolver++"},
        {"solver_type": "heun", "algorithm_type": "dpmsolver"},
        {"solver_type": "bh1", "algorithm_type": "deis"},
        {"solver_type": "logrho"},
    ],
)
def test_configurations_go_from_one_to_another_as_in_diffusers(first: str, last: str, options: dict[str, Any]) -> None:
    if SA in (first, last):
        options = {key: value for key, value in options.items() if key != "algorithm_type"}
    elif first == UNIPC and "algorithm_type" not in options:
        options = {**options, "solver_order": 3}
    ours: Any = {**LATENT, **options}
    theirs: Any = ours
    if SA in (first, last) and DEIS in (first, last) and first != last:
        ours = theirs = {**ours, "use_karras_sigmas": True}
    for name in (first, last):
        ours = getattr(safelight.runtime, name).from_config(ours).config
        theirs = getattr(diffusers, name).from_config(theirs).config
        assert {key: value for key, value in ours.items() if key[0] != "_"} == {
            key: value for key, value in theirs.items() if key[0] != "_"
        }
        assert set(ours["_use_default_values"]) == set(theirs["_use_default_values"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (UNIPC, {"solver_type": "bh3"}, "unknown solver_type 'bh3'; known: bh1, bh2"),
        (UNIPC, {"final_sigmas_type": "one"}, "unknown final_sigmas_type 'one'; known: zero, sigma_min"),
        (UNIPC, {"time_shift_type": "cubic"}, "unknown time_shift_type 'cubic'; known: exponential, linear"),
        (UNIPC, {"prediction_type": "x"}, "known: epsilon, sample, v_prediction, flow_prediction"),
        (UNIPC, {"shift_terminal": 0.1}, "shift_terminal needs use_flow_sigmas"),
        (UNIPC, {"solver_order": 0}, "solver_order must be 1 or more, got 0"),
        (DEIS, {"solver_order": 0}, "solver_order must be 1 or more, got 0"),
        (DEIS, {"algorithm_type": "sde-dpmsolver"}, "unknown algorithm_type 'sde-dpmsolver'; known: deis"),
        (DEIS, {"solver_type": "rho"}, "unknown solver_type 'rho'; known: logrho"),
        (SA, {"algorithm_type": "deis"}, "unknown algorithm_type 'deis'; known: data_prediction, noise_prediction"),
        (SA, {"predictor_order": 5}, "predictor_order must lie between 1 and 4, got 5"),
        (SA, {"corrector_order": 0}, "corrector_order must lie between 1 and 4, got 0"),
        *(
            (name, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of use_karras_sigmas")
            for name in (UNIPC, DEIS, SA)
        ),
        (IPNDM, {"trained_betas": [1.5, 0.0]}, "trained_betas must be one row of numbers between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(safelight.runtime, name)(**options)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_steps_that_cannot_be_are_refused(name: str) -> None:
    ours, _ = pair(name, {})
    sample = np.ones(SHAPE, np.float32)
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError, match=f"num_inference_steps must lie between 1 and 1000, got {steps}"):
            ours.set_timesteps(steps)
    if name != IPNDM:  # which is set by its constructor, as diffusers' is
        with pytest.raises(ValueError, match="call set_timesteps before step"):
            ours.step(sample, 999, sample)
    ours.set_timesteps(3)
    with pytest.raises(ValueError, match="model_output must have the sample's shape"):
        ours.step(sample[:1], ours.timesteps[0], sample)
    with pytest.raises(ValueError, match=r"timestep (0\.)?123 is not in the schedule"):
        ours.step(sample, 0.123 if name == IPNDM else 123, sample)
    for timestep in ours.timesteps.tolist():
        ours.step(sample, timestep, sample)
    with pytest.raises(ValueError, match="the schedule is at its end"):
        ours.step(sample, timestep, sample)


def test_sigmas_and_shifts_that_cannot_be_are_refused() -> None:
    unipc = safelight.runtime.UniPCMultistepScheduler
    with pytest.raises(ValueError, match="sigmas can be given with use_flow_sigmas only"):
        unipc().set_timesteps(sigmas=[0.5, 0.1])
    with pytest.raises(ValueError, match="mu must be given where use_dynamic_shifting is true"):
        unipc(use_dynamic_shifting=True).set_timesteps(5)
    with pytest.raises(ValueError, match="spaces the noise levels: it takes no sigmas"):
        unipc(use_flow_sigmas=True, use_karras_sigmas=True).set_timesteps(sigmas=[0.5, 0.1])
    with pytest.raises(ValueError, match="mu needs use_dynamic_shifting"):
        safelight.runtime.DEISMultistepScheduler().set_timesteps(5, mu=0.5)
