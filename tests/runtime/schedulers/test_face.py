"""What a user of diffusers' schedulers types: configurations, files, small methods; and what is refused."""

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import safelight.runtime
from safelight.runtime import Generator
from safelight.runtime.schedulers import Scheduler, SchedulerOutput, load_scheduler, scheduler_class
from safelight.runtime.schedulers.base import DIFFUSERS_VERSION

# diffusers' own: NumPy arrays of torch tensors, in Euler's set_timesteps
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "PNDMScheduler")
SHAPE = (2, 4, 6, 5)
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: as Stable Diffusion 1.x has it: nothing is said of the spacing, nor of what is predicted
STABLE_DIFFUSION = {
    **LATENT,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
#: far from every default
UNUSUAL: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {
        "clip_sample": False,
        "eta_of_ours": 3,
        "set_alpha_to_one": False,
        "timestep_spacing": "trailing",
    },
    "DDPMScheduler": {"variance_type": "fixed_large", "thresholding": True, "trained_betas": [0.125, 0.25, 0.5]},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True, "sigma_min": 0.25, "final_sigmas_type": "sigma_min"},
    "PNDMScheduler": {"skip_prk_steps": True, "prediction_type": "v_prediction", "num_train_timesteps": 600},
}


def ours_of(name: str) -> type[Scheduler]:
    return getattr(safelight.runtime, name)


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """Our scheduler and diffusers', without Runge-Kutta steps."""
    if name == "PNDMScheduler":
        options = {"skip_prk_steps": True, **options}
    return ours_of(name)(**options), getattr(diffusers, name)(**options)


def own_options(config: Any) -> dict[str, Any]:
    """A configuration without the marks of who wrote it."""
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


def noise_of(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def assert_close(found: Any, expected: torch.Tensor | np.ndarray, tolerance: float = 1e-6) -> None:
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# Constructors and configurations


@pytest.mark.parametrize("name", NAMES)
def test_the_constructors_keywords_and_defaults_are_diffusers(name: str) -> None:
    ours, theirs = (
        [(parameter.name, parameter.default) for parameter in inspect.signature(scheduler).parameters.values()]
        for scheduler in (ours_of(name), getattr(diffusers, name))
    )
    assert ours == theirs


@pytest.mark.parametrize("method", ["set_timesteps", "step", "add_noise"])
@pytest.mark.parametrize("name", NAMES)
def test_the_methods_keywords_and_their_order_are_diffusers(name: str, method: str) -> None:
    ours, theirs = (
        list(inspect.signature(getattr(scheduler, method)).parameters)
        for scheduler in (ours_of(name), getattr(diffusers, name))
    )
    assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_keyword_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match="beta_begin"):
        ours_of(name)(beta_begin=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_holds_what_diffusers_holds(name: str) -> None:
    for options in ({}, {**LATENT, "num_train_timesteps": 300}):
        ours, theirs = pair(name, **options)
        assert own_options(ours.config) == own_options(theirs.config)
        assert ours.config["_class_name"] == name
        assert ours.config["_diffusers_version"] == DIFFUSERS_VERSION


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_read_by_name_and_by_attribute_and_frozen(name: str) -> None:
    config = ours_of(name)(beta_start=0.0125).config
    assert config["beta_start"] == config.beta_start == config.get("beta_start") == 0.0125
    assert config.trained_betas is None
    with pytest.raises(AttributeError, match=r"^the configuration has no beta_begin$"):
        _ = config.beta_begin
    with pytest.raises(AttributeError, match=r"^a configuration is frozen: beta_start cannot be changed$"):
        config.beta_start = 0.5
    with pytest.raises(AttributeError, match=r"^a configuration is frozen: beta_start cannot be removed$"):
        del config.beta_start
    with pytest.raises(TypeError):
        config["beta_start"] = 0.5
    assert config.beta_start == 0.0125


@pytest.mark.parametrize("name", NAMES)
def test_betas_of_an_array_are_kept_as_a_list(name: str) -> None:
    betas = np.linspace(0.125, 0.25, 7)
    scheduler = ours_of(name)(trained_betas=betas)
    assert scheduler.config["trained_betas"] == betas.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_length_is_the_number_of_training_timesteps(name: str) -> None:
    for options in ({}, {"num_train_timesteps": 250}):
        ours, theirs = pair(name, **options)
        assert len(ours) == len(theirs) == options.get("num_train_timesteps", 1000)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_is_diffusers(name: str) -> None:
    assert ours_of(name).order == getattr(diffusers, name).order


@pytest.mark.parametrize("name", NAMES)
def test_printing_shows_the_name_and_the_configuration(name: str) -> None:
    scheduler = ours_of(name)(**LATENT)
    title, _, text = repr(scheduler).partition(" ")
    assert title == name
    assert json.loads(text) == {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}


@pytest.mark.parametrize("name", NAMES)
def test_compatibles_are_the_schedulers_that_diffusers_names_too(name: str) -> None:
    ours, theirs = pair(name)
    names = {scheduler.__name__ for scheduler in ours.compatibles}
    assert names >= set(NAMES)
    assert names <= {scheduler.__name__ for scheduler in theirs.compatibles}
    for scheduler in ours.compatibles:
        assert type(scheduler.from_config(ours.config)) is scheduler


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("name", NAMES)
def test_copies_work_alone(name: str, copied: Callable[[Any], Any]) -> None:
    original, _ = pair(name, **LATENT)
    duplicate = copied(original)
    duplicate.set_timesteps(7)
    assert dict(duplicate.config) == dict(original.config)
    assert original.num_inference_steps is None


# From one scheduler to another, and from and to files


@pytest.mark.parametrize("last", NAMES)
@pytest.mark.parametrize("between", NAMES)
@pytest.mark.parametrize("first", NAMES)
def test_swapping_schedulers_keeps_and_defaults_what_diffusers_does(first: str, between: str, last: str) -> None:
    for options in (STABLE_DIFFUSION, {**STABLE_DIFFUSION, "timestep_spacing": "trailing"}, LATENT, {}):
        ours: Any = options
        theirs: Any = options
        for name in (first, between, last):
            ours = ours_of(name).from_config(ours).config
            theirs = getattr(diffusers, name).from_config(theirs).config
            assert own_options(ours) == own_options(theirs)
            assert ours["_class_name"] == name


def test_a_spacing_that_nobody_chose_is_the_next_schedulers_to_choose() -> None:
    pndm = ours_of("PNDMScheduler").from_config(STABLE_DIFFUSION)
    assert pndm.config["timestep_spacing"] == "leading"
    assert ours_of("EulerDiscreteScheduler").from_config(pndm.config).config["timestep_spacing"] == "linspace"


def test_the_options_that_nobody_chose_are_listed_as_diffusers_does() -> None:
    for name in NAMES:
        ours, theirs = pair(name, **LATENT)
        assert set(ours.config["_use_default_values"]) == set(theirs.config["_use_default_values"])
    ours, theirs = (
        module.EulerDiscreteScheduler.from_config({**module.PNDMScheduler(**LATENT).config, "use_karras_sigmas": True})
        for module in (safelight.runtime, diffusers)
    )
    assert own_options(ours.config) == own_options(theirs.config)
    assert ours.config.timestep_spacing == "linspace"


@pytest.mark.parametrize(
    "make", [lambda cls, **chosen: cls(**chosen), lambda cls, **chosen: cls.from_config({}, **chosen)]
)
def test_a_choice_that_equals_the_default_is_a_choice(make: Callable[..., Any]) -> None:
    ours, theirs = (
        module.EulerDiscreteScheduler.from_config(make(module.PNDMScheduler, timestep_spacing="leading").config)
        for module in (safelight.runtime, diffusers)
    )
    assert ours.config.timestep_spacing == theirs.config.timestep_spacing == "leading"


def test_keys_of_no_scheduler_are_warned_about_and_those_of_another_are_not(caplog: pytest.LogCaptureFixture) -> None:
    euler = ours_of("EulerDiscreteScheduler")
    euler.from_config({**STABLE_DIFFUSION, "clip_sample": False})
    assert not caplog.messages
    euler.from_config({**STABLE_DIFFUSION, "a_key_of_nobody": 1})
    assert caplog.messages == ["EulerDiscreteScheduler has no option a_key_of_nobody: kept, without effect"]


@pytest.mark.parametrize("name", NAMES)
def test_foreign_keys_survive_the_way_there_and_back(name: str) -> None:
    for other in NAMES:
        first = ours_of(name).from_config({**STABLE_DIFFUSION, "a_key_of_nobody": [1, 2]})
        back = ours_of(name).from_config(ours_of(other).from_config(first.config).config)
        assert dict(back.config) == dict(first.config)
        assert back.config["a_key_of_nobody"] == [1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_overrides_win(name: str) -> None:
    config = ours_of(name)(**LATENT).config
    changed = ours_of(name).from_config(config, beta_end=0.5, num_train_timesteps=20)
    assert (changed.config["beta_end"], len(changed)) == (0.5, 20)
    assert changed.config["beta_start"] == LATENT["beta_start"]
    assert config["beta_end"] == LATENT["beta_end"]


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_configurations_are_taken_as_they_are(name: str) -> None:
    theirs = diffusers.PNDMScheduler.from_config(STABLE_DIFFUSION).config
    expected = getattr(diffusers, name).from_config(theirs)
    assert own_options(ours_of(name).from_config(theirs).config) == own_options(expected.config)


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_reads_what_is_saved_here(name: str, tmp_path: Path) -> None:
    ours = ours_of(name).from_config({**STABLE_DIFFUSION, **UNUSUAL[name]})
    ours.save_pretrained(tmp_path / "model" / "scheduler")
    assert [path.name for path in (tmp_path / "model" / "scheduler").iterdir()] == ["scheduler_config.json"]
    theirs = getattr(diffusers, name).from_pretrained(tmp_path / "model", subfolder="scheduler")
    assert own_options(theirs.config) == own_options(ours.config)
    assert theirs.config["_class_name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_what_diffusers_saves_is_read_here(name: str, tmp_path: Path) -> None:
    theirs = getattr(diffusers, name).from_config({**STABLE_DIFFUSION, **UNUSUAL[name]})
    theirs.save_pretrained(tmp_path / "scheduler")
    from_folder = ours_of(name).from_pretrained(tmp_path / "scheduler")
    from_model, from_subfolder = (
        ours_of(name).from_pretrained(tmp_path),
        ours_of(name).from_pretrained(tmp_path, "scheduler"),
    )
    for ours in (
        from_folder,
        from_model,
        from_subfolder,
        ours_of(name).from_config(tmp_path),
        load_scheduler(tmp_path),
    ):
        assert type(ours) is ours_of(name)
        assert own_options(ours.config) == own_options(theirs.config)


@pytest.mark.parametrize("name", NAMES)
def test_saving_and_loading_changes_nothing(name: str, tmp_path: Path) -> None:
    first = ours_of(name).from_config({**STABLE_DIFFUSION, **UNUSUAL[name]})
    first.save_pretrained(tmp_path)
    again = ours_of(name).from_pretrained(str(tmp_path))
    assert own_options(again.config) == own_options(first.config)
    np.testing.assert_array_equal(again.alphas_cumprod, first.alphas_cumprod)
    assert ours_of(name).from_pretrained(tmp_path, beta_end=0.015).config["beta_end"] == 0.015


def test_a_scheduler_is_found_by_its_name() -> None:
    for name in NAMES:
        assert scheduler_class(name) is ours_of(name)


def test_an_unknown_scheduler_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    known = rf"unknown scheduler 'RePaintScheduler'; known: .*{', .*'.join(sorted(NAMES))}"
    with pytest.raises(ValueError, match=known):
        scheduler_class("RePaintScheduler")
    diffusers.RePaintScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=known):
        load_scheduler(tmp_path)


def test_a_configuration_that_names_no_scheduler_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"unknown scheduler 'None'; known: .*DDIMScheduler"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("load", [load_scheduler, *(ours_of(name).from_pretrained for name in NAMES)])
def test_a_missing_configuration_is_refused_by_name(load: Callable[[Path], Any], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not there"):
        with pytest.raises(FileNotFoundError) as refused:
            load(folder)
        assert str(refused.value) == f"{folder} has no scheduler_config.json or scheduler/scheduler_config.json"


def test_a_missing_subfolder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r" has no sampler/scheduler_config\.json$"):
        ours_of("DDIMScheduler").from_pretrained(tmp_path, subfolder="sampler")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"beta_start": 0.1', r"scheduler_config\.json is not valid JSON: "),
        (b"", r"scheduler_config\.json is not valid JSON: "),
        (b'{"beta_schedule": "\xff"}', r"scheduler_config\.json is not valid JSON: "),
        (b'["beta_start"]', r"scheduler_config\.json holds no JSON object$"),
    ],
)
def test_an_invalid_configuration_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_bytes(content)
    for load in (load_scheduler, ours_of("PNDMScheduler").from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


# Options


KNOWN = {
    "beta_schedule": "linear, scaled_linear, squaredcos_cap_v2",
    "prediction_type": "epsilon, sample, v_prediction",
    "timestep_spacing": "leading, linspace, trailing",
}
CHOICES = [
    *((name, option, known) for name in ("DDIMScheduler", "EulerDiscreteScheduler") for option, known in KNOWN.items()),
    *(("PNDMScheduler", option, KNOWN[option]) for option in ("beta_schedule", "timestep_spacing")),
    ("PNDMScheduler", "prediction_type", "epsilon, v_prediction"),
    ("DDPMScheduler", "beta_schedule", f"{KNOWN['beta_schedule']}, sigmoid, laplace"),
    *(("DDPMScheduler", option, KNOWN[option]) for option in ("prediction_type", "timestep_spacing")),
    (
        "DDPMScheduler",
        "variance_type",
        "fixed_small, fixed_small_log, fixed_large, fixed_large_log, learned, learned_range",
    ),
    ("EulerDiscreteScheduler", "interpolation_type", "linear, log_linear"),
    ("EulerDiscreteScheduler", "timestep_type", "discrete, continuous"),
    ("EulerDiscreteScheduler", "final_sigmas_type", "zero, sigma_min"),
]


@pytest.mark.parametrize(("name", "option", "known"), CHOICES)
def test_an_unknown_value_is_refused_with_those_that_are_known(name: str, option: str, known: str) -> None:
    for value in known.split(", "):
        assert ours_of(name)(**{option: value}).config[option] == value
    for wrong in ("epsilon2", "", None):
        with pytest.raises(ValueError) as refused:  # noqa: PT011
            ours_of(name)(**{option: wrong})
        assert str(refused.value) == f"{name}: unknown {option} {wrong!r}; known: {known}"


@pytest.mark.parametrize("steps", [0, -1, 10.0, "10", True, None])
@pytest.mark.parametrize("name", NAMES)
def test_training_timesteps_are_a_positive_integer(name: str, steps: Any) -> None:
    with pytest.raises(ValueError, match=rf"^num_train_timesteps must be a positive integer, got {steps!r}$"):
        ours_of(name)(num_train_timesteps=steps)


@pytest.mark.parametrize(
    "ends", [(0.0, 0.02), (0.0001, 1.0), (-0.1, 0.02), (0.0001, float("nan")), (float("inf"), 0.02)]
)
@pytest.mark.parametrize("name", NAMES)
def test_betas_lie_between_0_and_1(name: str, ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"^beta_start and beta_end must lie between 0 and 1, got \S+ and \S+$"):
        ours_of(name)(beta_start=ends[0], beta_end=ends[1])


@pytest.mark.parametrize("betas", [[], [[0.1, 0.2]], [0.1, 1.5], [-0.1, 0.2], [0.1, float("nan")]])
@pytest.mark.parametrize("name", NAMES)
def test_trained_betas_are_a_row_of_numbers_between_0_and_1(name: str, betas: Any) -> None:
    with pytest.raises(ValueError, match=r"^trained_betas must be one row of numbers between 0 and 1$"):
        ours_of(name)(trained_betas=betas)


def test_euler_spaces_its_sigmas_in_one_way() -> None:
    with pytest.raises(ValueError, match=r"^only one of use_karras_sigmas, .*, use_beta_sigmas can be true$"):
        safelight.runtime.EulerDiscreteScheduler(use_karras_sigmas=True, use_beta_sigmas=True)


# Timesteps


@pytest.mark.parametrize("train_steps", [1000, 600, 17])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", NAMES)
def test_the_timesteps_are_diffusers(name: str, spacing: str, train_steps: int) -> None:
    for offset in (0, 1):
        ours, theirs = pair(name, timestep_spacing=spacing, steps_offset=offset, num_train_timesteps=train_steps)
        if theirs.timesteps is not None:  # PNDM's, before they are set
            np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())
        for steps in (1, 2, 3, 4, 7, 10, 16, 17, 30, 600, 999, 1000):
            if steps > train_steps:
                continue
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
            visited = theirs.timesteps.numpy()
            np.testing.assert_array_equal(ours.timesteps, visited[visited >= 0])  # see the test below
            assert ours.num_inference_steps == theirs.num_inference_steps == steps
            assert ours.timesteps.dtype == theirs.timesteps.numpy().dtype


@pytest.mark.parametrize("name", [name for name in NAMES if name != "PNDMScheduler"])
def test_trailing_timesteps_are_as_many_as_asked_for(name: str) -> None:
    ours, theirs = pair(name, timestep_spacing="trailing")
    for steps in range(1, 131):
        ours.set_timesteps(steps)
        assert len(ours.timesteps) == steps
    ours.set_timesteps(61)
    theirs.set_timesteps(61)
    assert theirs.timesteps.tolist() == [*ours.timesteps.tolist(), -1]  # diffusers' rounding error


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_pndms_runge_kutta_timesteps_are_diffusers(spacing: str) -> None:
    options = {"timestep_spacing": spacing, "steps_offset": 1}
    ours, theirs = safelight.runtime.PNDMScheduler(**options), diffusers.PNDMScheduler(**options)
    for steps in (4, 5, 20, 333):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_the_device_means_nothing(name: str) -> None:
    ours, _ = pair(name)
    ours.set_timesteps(5, "cuda")
    visited = ours.timesteps
    ours.set_timesteps(5)
    np.testing.assert_array_equal(ours.timesteps, visited)


@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_steps_out_of_range_is_refused(name: str) -> None:
    ours, _ = pair(name, num_train_timesteps=50)
    for steps in (0, -3, 51, 1000):
        with pytest.raises(ValueError, match=rf"^num_inference_steps must lie between 1 and 50, got {steps}$"):
            ours.set_timesteps(steps)
    ours.set_timesteps(np.int64(50))
    assert len(ours.timesteps) >= 50


@pytest.mark.parametrize(("steps", "kind"), [(10.0, "float"), ("10", "str"), (True, "bool"), ([10], "list")])
@pytest.mark.parametrize("name", NAMES)
def test_a_number_of_steps_that_is_no_integer_is_refused(name: str, steps: Any, kind: str) -> None:
    ours, _ = pair(name)
    with pytest.raises(TypeError, match=rf"^num_inference_steps must be an integer, got {kind}$"):
        ours.set_timesteps(steps)


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_steps_is_refused(name: str) -> None:
    ours, _ = pair(name)
    with pytest.raises((TypeError, ValueError), match="num_inference_steps"):
        ours.set_timesteps()
    assert ours.num_inference_steps is None


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runge_kutta_refuses_fewer_than_four_steps(steps: int) -> None:
    message = rf"^PNDMScheduler needs at least 4 steps with Runge-Kutta steps, got {steps}$"
    with pytest.raises(ValueError, match=message):
        safelight.runtime.PNDMScheduler().set_timesteps(steps)


@pytest.mark.parametrize("timesteps", [[], [[9, 5]], [5, 9], [9, 9, 5], [1000, 5], [9, -1]])
def test_ddpms_own_timesteps_fall_within_the_training(timesteps: Any) -> None:
    with pytest.raises(ValueError, match=r"^timesteps must fall, from below 1000 to 0 at the least$"):
        safelight.runtime.DDPMScheduler().set_timesteps(timesteps=timesteps)


def test_one_way_of_choosing_timesteps_at_a_time() -> None:
    with pytest.raises(ValueError, match=r"^give num_inference_steps or timesteps, not both$"):
        safelight.runtime.DDPMScheduler().set_timesteps(3, timesteps=[5, 3, 1])
    for given in ({}, {"num_inference_steps": 3, "timesteps": [5, 3]}, {"timesteps": [5, 3], "sigmas": [3.0, 0.0]}):
        with pytest.raises(ValueError, match=r"^give exactly one of num_inference_steps, timesteps and sigmas$"):
            safelight.runtime.EulerDiscreteScheduler().set_timesteps(**given)


@pytest.mark.parametrize(
    "options",
    [
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    ],
)
def test_euler_takes_no_timesteps_where_it_spaces_the_sigmas(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"spaces the noise levels: it takes no timesteps$"):
        safelight.runtime.EulerDiscreteScheduler(**options).set_timesteps(timesteps=[5, 3])


# Noise levels


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", NAMES)
def test_the_starting_noises_deviation_is_diffusers(name: str, spacing: str) -> None:
    ours, theirs = pair(name, **LATENT, timestep_spacing=spacing)
    for steps in (None, 1, 7, 50):
        if steps is not None:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
        assert isinstance(ours.init_noise_sigma, float)
        assert (ours.init_noise_sigma > 2) == (name == "EulerDiscreteScheduler" and ours.timesteps[0] > 300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", NAMES)
def test_the_models_input_is_scaled_as_diffusers_does(name: str, dtype: Any) -> None:
    sample = noise_of(*SHAPE, dtype=dtype)
    for place in (0, 3, 9):
        ours, theirs = pair(name, **LATENT)
        ours.set_timesteps(10)
        theirs.set_timesteps(10)
        kept = sample.copy()
        found = ours.scale_model_input(sample, ours.timesteps[place])
        expected = theirs.scale_model_input(torch.from_numpy(sample.copy()), theirs.timesteps[place])
        assert found.dtype == dtype
        assert_close(found, expected, tolerance=1e-3 if dtype == np.float16 else 1e-6)
        np.testing.assert_array_equal(sample, kept)


def test_euler_needs_the_timestep_to_scale_by() -> None:
    scheduler = safelight.runtime.EulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"^EulerDiscreteScheduler needs the timestep to scale its input$"):
        scheduler.scale_model_input(noise_of(*SHAPE))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", NAMES)
def test_adding_noise_is_diffusers(name: str, dtype: Any) -> None:
    clean, noise = noise_of(2, *SHAPE, dtype=dtype)
    kept = clean.copy(), noise.copy()
    ours, theirs = pair(name, **LATENT)
    for steps in (None, 10):  # of the training, and of a schedule
        if steps is not None:
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
        elif name == "PNDMScheduler":
            continue  # diffusers' has none yet
        for places in ([0, -1], [4, 5], [2]):
            timesteps = theirs.timesteps[places]
            expected = theirs.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), timesteps)
            for given in (timesteps.numpy(), timesteps.tolist()):
                found = ours.add_noise(clean, noise, given)
                assert found.dtype == dtype
                assert_close(found, expected, tolerance=2e-3 if dtype == np.float16 else 1e-6)
    np.testing.assert_array_equal((clean, noise), kept)


def test_noise_added_by_euler_follows_the_place_in_the_loop() -> None:
    clean, noise = noise_of(2, *SHAPE)
    tensors = torch.from_numpy(clean), torch.from_numpy(noise)
    ours, theirs = pair("EulerDiscreteScheduler", **LATENT)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(4)
    for _ in range(3):  # image to image before the first step, inpainting after each
        timesteps = theirs.timesteps[4:5]
        assert_close(ours.add_noise(clean, noise, timesteps.numpy()), theirs.add_noise(*tensors, timesteps))
        theirs.scale_model_input(tensors[0], timesteps[0])
        theirs.step(tensors[0], timesteps[0], tensors[1])
        ours.step(clean, float(timesteps[0]), noise)


def test_euler_starts_at_the_second_of_two_equal_timesteps() -> None:
    ours, theirs = pair("EulerDiscreteScheduler")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=[900, 500, 500, 20])
        assert [int(scheduler.index_for_timestep(timestep)) for timestep in (900, 500, 20)] == [0, 2, 3]


def test_euler_adds_no_noise_of_timesteps_that_it_does_not_visit() -> None:
    scheduler = safelight.runtime.EulerDiscreteScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=r"^timestep 450 is not in the schedule$"):
        scheduler.add_noise(noise_of(*SHAPE), noise_of(*SHAPE), [450])


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_the_velocity_is_diffusers(name: str) -> None:
    sample, noise = noise_of(2, *SHAPE)
    ours, theirs = pair(name, **LATENT)
    for timesteps in ([0, 999], [500, 1], [250]):
        expected = theirs.get_velocity(torch.from_numpy(sample), torch.from_numpy(noise), torch.tensor(timesteps))
        assert_close(ours.get_velocity(sample, noise, timesteps), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_velocity_is_the_closed_form(name: str) -> None:
    # diffusers' PNDM has no get_velocity, and its Euler takes a timestep's place in the schedule for the timestep
    sample, noise = noise_of(2, *SHAPE)
    alpha_bar = np.cumprod(1 - np.linspace(0.1**0.5, 0.2**0.5, 10) ** 2)
    ours, _ = pair(name, beta_start=0.1, beta_end=0.2, beta_schedule="scaled_linear", num_train_timesteps=10)
    for first, second in ((0, 9), (4, 3)):
        levels = alpha_bar[[first, second]].reshape(-1, 1, 1, 1)
        expected = np.sqrt(levels) * noise - np.sqrt(1 - levels) * sample
        assert_close(ours.get_velocity(sample, noise, [first, second]), expected)


# Steps


@pytest.mark.parametrize("name", NAMES)
def test_a_tuple_has_the_values_of_diffusers_tuple(name: str) -> None:
    ours, theirs = pair(name, **LATENT)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    sample, output = noise_of(2, *SHAPE)
    stochastic = name in ("DDPMScheduler", "EulerDiscreteScheduler")
    theirs.scale_model_input(torch.from_numpy(sample), theirs.timesteps[0])
    expected = theirs.step(
        torch.from_numpy(output),
        theirs.timesteps[0],
        torch.from_numpy(sample),
        return_dict=False,
        **({"generator": torch.Generator().manual_seed(0)} if stochastic else {}),
    )
    generator = {"generator": Generator(0)} if stochastic else {}
    found = ours.step(output, ours.timesteps[0], sample, return_dict=False, **generator)
    assert type(found) is tuple
    assert len(found) == len(expected) == (1 if name == "PNDMScheduler" else 2)
    for own, other in zip(found, expected, strict=True):
        assert isinstance(own, np.ndarray)
        assert_close(own, other, tolerance=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_has_the_values_of_the_tuple(name: str) -> None:
    sample, output = noise_of(2, *SHAPE)
    results = []
    for return_dict in (True, False):
        scheduler, _ = pair(name, **LATENT)
        scheduler.set_timesteps(10)
        generator = {"generator": Generator(0)} if name == "DDPMScheduler" else {}
        results.append(scheduler.step(output, scheduler.timesteps[0], sample, return_dict=return_dict, **generator))
    named, plain = results
    assert type(named) is SchedulerOutput
    np.testing.assert_array_equal(named.prev_sample, plain[0])
    if name == "PNDMScheduler":
        assert named.pred_original_sample is None
    else:
        np.testing.assert_array_equal(named.pred_original_sample, plain[1])


@pytest.mark.parametrize("kind", [float, np.float32, np.int64, np.asarray])
@pytest.mark.parametrize("name", NAMES)
def test_a_timestep_is_any_number(name: str, kind: Callable[[Any], Any]) -> None:
    sample, output = noise_of(2, *SHAPE)
    results = []
    for convert in (int, kind):
        scheduler, _ = pair(name, timestep_spacing="leading")
        scheduler.set_timesteps(10)
        generator = {"generator": Generator(0)} if name == "DDPMScheduler" else {}
        results.append(scheduler.step(output, convert(scheduler.timesteps[3]), sample, **generator).prev_sample)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_steps_after_setting_them_again(name: str) -> None:
    scheduler, _ = pair(name, **LATENT)
    results = []
    for _ in range(2):
        scheduler.set_timesteps(6)
        sample = noise_of(*SHAPE)
        generator = {"generator": Generator(0)} if name == "DDPMScheduler" else {}
        for timestep in scheduler.timesteps:
            sample = scheduler.step(np.tanh(sample), timestep, sample, **generator).prev_sample
        results.append(sample)
    np.testing.assert_array_equal(*results)


def test_ddpm_steps_through_the_training_where_no_timesteps_are_set() -> None:
    ours, theirs = pair("DDPMScheduler")
    sample = noise_of(*SHAPE)
    for timestep in (999, 500, 2, 0):
        expected = theirs.step(
            torch.from_numpy(np.tanh(sample)),
            timestep,
            torch.from_numpy(sample.copy()),
            generator=torch.Generator().manual_seed(0),
        )
        found = ours.step(np.tanh(sample), timestep, sample, generator=Generator(0))
        assert_close(found.prev_sample, expected.prev_sample)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "DDPMScheduler"])
def test_a_step_before_the_timesteps_are_set_is_refused(name: str) -> None:
    scheduler, _ = pair(name)
    sample = noise_of(*SHAPE)
    with pytest.raises(ValueError, match=rf"^{name}: call set_timesteps before step$"):
        scheduler.step(sample, 999, sample)


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (1, 4, 6, 5), (4, 6, 5), (2, 8, 6, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    scheduler, _ = pair(name)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        scheduler.step(noise_of(*shape), scheduler.timesteps[0], noise_of(*SHAPE))
    assert str(refused.value) == f"model_output must have the sample's shape {SHAPE}, got {shape}"


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_a_learned_variance_needs_twice_the_channels(kind: str) -> None:
    scheduler = safelight.runtime.DDPMScheduler(variance_type=kind)
    scheduler.set_timesteps(10)
    sample = noise_of(*SHAPE)
    with pytest.raises(ValueError, match=rf"^variance_type '{kind}' needs a model_output of 8 channels, got 4$"):
        scheduler.step(sample, 900, sample)


@pytest.mark.parametrize("timestep", [3.5, -1, 1000])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"])
def test_a_timestep_of_no_training_is_refused(name: str, timestep: float) -> None:
    scheduler, _ = pair(name)
    scheduler.set_timesteps(10)
    sample = noise_of(*SHAPE)
    with pytest.raises(ValueError, match=rf"^timestep must be a whole number from 0 to 999, got {timestep}$"):
        scheduler.step(sample, timestep, sample)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler"])
def test_a_timestep_that_is_not_visited_is_refused(name: str) -> None:
    scheduler, _ = pair(name)
    scheduler.set_timesteps(10)
    sample = noise_of(*SHAPE)
    with pytest.raises(ValueError, match=r"^timestep 450 is not in the schedule$"):
        scheduler.step(sample, 450, sample)


def test_euler_refuses_a_step_beyond_the_last() -> None:
    scheduler = safelight.runtime.EulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    sample = noise_of(*SHAPE)
    for timestep in scheduler.timesteps:
        scheduler.step(sample, timestep, sample)
    with pytest.raises(ValueError, match=r"^the schedule is at its end: call set_timesteps before another picture$"):
        scheduler.step(sample, scheduler.timesteps[-1], sample)


@pytest.mark.parametrize(("name", "top"), [("DDIMScheduler", 56), ("DDPMScheduler", 56), ("PNDMScheduler", 56)])
def test_a_schedule_that_starts_above_the_training_is_refused(name: str, top: int) -> None:
    scheduler = ours_of(name)(steps_offset=20, num_train_timesteps=50)
    scheduler.set_timesteps(4)
    sample = noise_of(*SHAPE)
    assert scheduler.timesteps[0] == top
    with pytest.raises(ValueError, match=rf"^timestep must be a whole number from 0 to 49, got {top}$"):
        scheduler.step(sample, scheduler.timesteps[0], sample)


def test_ddim_takes_a_generator_or_the_noise_itself() -> None:
    scheduler = safelight.runtime.DDIMScheduler()
    scheduler.set_timesteps(10)
    sample = noise_of(*SHAPE)
    with pytest.raises(ValueError, match=r"^give generator or variance_noise, not both$"):
        scheduler.step(sample, 900, sample, eta=1.0, generator=Generator(0), variance_noise=sample)


@pytest.mark.parametrize(
    ("name", "options"),
    [("DDIMScheduler", {"eta": 1.0}), ("DDPMScheduler", {}), ("EulerDiscreteScheduler", {"s_churn": 9.0})],
)
def test_noise_is_new_without_a_generator_and_the_same_with_one(name: str, options: dict[str, Any]) -> None:
    sample = noise_of(*SHAPE)

    def step(**generator: Any) -> np.ndarray:
        scheduler, _ = pair(name)
        scheduler.set_timesteps(10)
        return scheduler.step(sample, scheduler.timesteps[0], sample, **options, **generator).prev_sample

    assert not np.array_equal(step(), step())
    np.testing.assert_array_equal(step(generator=Generator(4)), step(generator=Generator(4)))
    per_image = step(generator=[Generator(4), Generator(5)])
    alone = step(generator=[Generator(9), Generator(5)])
    np.testing.assert_array_equal(per_image[1], alone[1])
    assert not np.array_equal(per_image[0], alone[0])
