"""What holds of every scheduler, whatever its formula: diffusers' face, and what is refused."""

import copy
import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

import safelight.runtime
from safelight.runtime import Generator
from safelight.runtime.schedulers import every_scheduler, load_scheduler

# diffusers' own, with NumPy 2
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

EVERY = [
    "CMStochasticIterativeScheduler",
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
#: diffusers' DPMSolverSDEScheduler cannot be imported without torchsde; see test_parity_dpmsolver_sde.py
IN_BOTH = [name for name in EVERY if name != "DPMSolverSDEScheduler"]
KARRAS = [scheduler.name for scheduler in diffusers.schedulers.KarrasDiffusionSchedulers if scheduler.name in IN_BOTH]
SHAPE = (1, 4, 5, 3)


def ours_of(name: str) -> Any:
    return getattr(safelight.runtime, name)


def theirs_of(name: str) -> Any:
    return getattr(diffusers, name)


def own_options(config: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


def ready(name: str, steps: int = 6) -> Any:
    scheduler = ours_of(name)(**({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
    scheduler.set_timesteps(steps)
    return scheduler


def step(scheduler: Any, timestep: float, sample: np.ndarray, output: np.ndarray | None = None, **options: Any) -> Any:
    output = np.tanh(sample) if output is None else output
    if "generator" in type(scheduler).step.__annotations__:
        options = {"generator": Generator(0), **options}
    return scheduler.step(output, timestep, scheduler.scale_model_input(sample, timestep) * 0 + sample, **options)


def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


def test_every_scheduler_is_here_and_public() -> None:
    assert list(every_scheduler()) == EVERY
    assert set(EVERY) <= set(safelight.runtime.__all__)
    assert set(KARRAS) <= set(EVERY)


@pytest.mark.parametrize("name", IN_BOTH)
def test_the_constructors_keywords_and_defaults_are_diffusers(name: str) -> None:
    ours, theirs = (
        [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(scheduler).parameters.values()
            if parameter.kind is not parameter.VAR_KEYWORD  # an unknown keyword is a TypeError here
        ]
        for scheduler in (ours_of(name), theirs_of(name))
    )
    assert ours == theirs


@pytest.mark.parametrize("method", ["set_timesteps", "step", "add_noise"])
@pytest.mark.parametrize("name", IN_BOTH)
def test_the_methods_keywords_and_their_order_are_diffusers(name: str, method: str) -> None:
    if not hasattr(theirs_of(name), method):
        pytest.skip(f"diffusers' {name} has no {method}")
    ours, theirs = (list(inspect.signature(getattr(s, method)).parameters) for s in (ours_of(name), theirs_of(name)))
    variadic = {"args", "kwargs"}
    assert [word for word in ours if word not in variadic] == [word for word in theirs if word not in variadic]


@pytest.mark.parametrize("name", IN_BOTH)
def test_the_configuration_and_the_order_are_diffusers(name: str) -> None:
    ours, theirs = ours_of(name)(), theirs_of(name)()
    assert own_options(ours.config) == own_options(theirs.config)
    assert set(ours.config["_use_default_values"]) == set(theirs.config["_use_default_values"])
    assert ours.order == theirs.order
    assert len(ours) == len(theirs)
    assert copy.deepcopy(ours).config == ours.config
    assert repr(ours).startswith(f"{name} {{\n")


@pytest.mark.parametrize("name", IN_BOTH)
def test_files_go_both_ways(name: str, tmp_path: Path) -> None:
    ours, theirs = ours_of(name)(), theirs_of(name)()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert own_options(theirs_of(name).from_pretrained(tmp_path / "ours").config) == own_options(theirs.config)
    assert own_options(load_scheduler(tmp_path / "theirs").config) == own_options(ours.config)
    assert type(load_scheduler(tmp_path / "theirs")).__name__ == name


@pytest.mark.parametrize("version", ["0.6.0", "0.13.1", "0.37.0"])
@pytest.mark.parametrize("name", EVERY)
def test_configurations_of_other_versions_load(name: str, version: str, tmp_path: Path) -> None:
    first = next(iter(own_options(ours_of(name)().config)))
    content = {"_class_name": name, "_diffusers_version": version, first: ours_of(name)().config[first], "gone": 1}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(content))
    loaded = load_scheduler(tmp_path)
    assert type(loaded).__name__ == name
    assert loaded.config["gone"] == 1


@pytest.mark.parametrize("name", IN_BOTH)
def test_compatibles_are_diffusers(name: str) -> None:
    with warnings.catch_warnings():  # diffusers lists schedulers whose packages are missing
        warnings.simplefilter("ignore")
        theirs = {scheduler.__name__ for scheduler in theirs_of(name)().compatibles}
    ours = {scheduler.__name__ for scheduler in ours_of(name)().compatibles} - {"DPMSolverSDEScheduler"}
    assert ours == theirs & set(IN_BOTH)


@pytest.mark.parametrize("last", KARRAS)
@pytest.mark.parametrize("first", ["PNDMScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_swapping_keeps_what_diffusers_keeps(first: str, last: str) -> None:
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    configs = []
    for of in (ours_of, theirs_of):
        between = of(first).from_config({**options, "prediction_type": "v_prediction"})
        configs.append(own_options(of(last).from_config(between.config).config))
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name", EVERY)
def test_an_unknown_keyword_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match="beta_begin"):
        ours_of(name)(beta_begin=0.1)


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_not_written_into_and_a_tuple_may_be_asked_for(name: str) -> None:
    first, second = ready(name), ready(name)
    for timestep in first.timesteps.tolist()[:4]:
        sample, output = noise(), np.tanh(noise())
        found = step(first, timestep, sample, output)
        pair = step(second, timestep, sample, output, return_dict=False)
        np.testing.assert_array_equal(sample, noise())
        np.testing.assert_array_equal(output, np.tanh(noise()))
        assert isinstance(pair, tuple)
        if name != "DPMSolverSDEScheduler":  # its path is drawn anew
            np.testing.assert_array_equal(pair[0], found.prev_sample)
        assert found.prev_sample.shape == SHAPE
        assert np.isfinite(found.prev_sample).all()
        assert np.abs(found.prev_sample - sample).max() > 0


class SameNoise(Generator):
    """A generator whose noise is the same in every dtype."""

    def randn(self, shape: Any, dtype: Any = np.float32) -> np.ndarray:
        return np.full(shape, 0.5, dtype)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "DPMSolverSDEScheduler"])  # which has its own noise
def test_float16_loses_no_more_than_its_rounding(name: str) -> None:
    half, wide = ready(name), ready(name)
    noisy = "generator" in type(half).step.__annotations__
    sample = (noise() * half.init_noise_sigma).astype(np.float16)
    for timestep in half.timesteps.tolist():
        output = np.tanh(sample / half.init_noise_sigma).astype(np.float16)
        found, expected = (
            scheduler.step(
                output.astype(dtype),
                timestep,
                sample.astype(dtype),
                **({"generator": SameNoise(0)} if noisy else {}),
            ).prev_sample
            for scheduler, dtype in ((half, np.float16), (wide, np.float64))
        )
        assert found.dtype == np.float16
        assert np.abs(found - expected).max() <= 2.0**-11 * np.abs(expected).max() * 1.01
        sample = found


@pytest.mark.parametrize("name", EVERY)
def test_a_second_picture_equals_the_first(name: str) -> None:
    if name == "DPMSolverSDEScheduler":
        pytest.skip("its noise sampler is made of a random seed unless the configuration names one")
    scheduler, last = ready(name), []
    for _ in range(2):
        scheduler.set_timesteps(6)
        sample = noise()
        for timestep in scheduler.timesteps.tolist():
            sample = step(scheduler, timestep, sample).prev_sample
        last.append(sample)
    np.testing.assert_array_equal(last[0], last[1])


UNTIMED = ("IPNDMScheduler", "DDPMScheduler")  # walk all of the training's timesteps, as diffusers' do


@pytest.mark.parametrize("name", [name for name in EVERY if name not in UNTIMED])
def test_a_step_before_the_timesteps_are_set_is_refused(name: str) -> None:
    scheduler = ours_of(name)()
    with pytest.raises(ValueError, match=f"{name}: call set_timesteps before step"):
        scheduler.step(noise(), scheduler.timesteps[0], noise())


@pytest.mark.parametrize("name", EVERY)
def test_shapes_that_differ_are_refused(name: str) -> None:
    scheduler = ready(name)
    with pytest.raises(ValueError, match=r"model_output must have the sample's shape \(1, 4, 5, 3\), got \(1, 4, 5\)"):
        scheduler.step(noise()[..., 0], scheduler.timesteps[0], noise())


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("name", EVERY)
def test_no_steps_are_refused(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=rf"num_inference_steps must .*, got {steps}"):
        ours_of(name)().set_timesteps(steps)


@pytest.mark.parametrize(
    "name", [name for name in EVERY if "beta_start" in inspect.signature(theirs_of(name)).parameters]
)
def test_betas_that_are_no_numbers_are_refused(name: str) -> None:
    for betas in ({"beta_start": float("nan")}, {"trained_betas": [0.1, float("nan"), 0.2]}):
        with pytest.raises(
            ValueError, match=r"betas? .*between 0 and 1|beta_start and beta_end must lie between 0 and 1"
        ):
            ours_of(name)(**betas)


@pytest.mark.parametrize(
    "name", [name for name in EVERY if "prediction_type" in inspect.signature(theirs_of(name)).parameters]
)
def test_an_unknown_prediction_type_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: unknown prediction_type 'noise'; known: .*epsilon"):
        ours_of(name)(prediction_type="noise")
