"""The face that all schedulers share, which is diffusers': configuration, loading, saving, adding noise.

A subclass is a constructor, whose keywords are the configuration, and a `step`. Its noise schedule and its formulas are
in modules of their own.
"""

import functools
import inspect
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..config import FrozenConfig
from ..random import Generator
from ..text_files import read_json_object
from . import betas as schedules
from .prediction import PREDICTION_TYPES
from .spacing import SPACINGS

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Generators = Generator | Sequence[Generator]

CONFIG_NAME = "scheduler_config.json"
#: the release of diffusers whose numbers these are
DIFFUSERS_VERSION = "0.42.1"
#: where a configuration lists the options that nobody chose, as diffusers' do; another scheduler made from it takes its
#: own defaults there: Stable Diffusion's PNDM leaves its spacing at "leading", Euler made from it is spaced "linspace"
DEFAULTED = "_use_default_values"

#: schedulers of one kind of model, which take each other's place: diffusers' `KarrasDiffusionSchedulers`
INTERCHANGEABLE = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True)
class SchedulerOutput:
    """What a step gives.

    Attributes:
        prev_sample: the sample at the next, less noisy timestep.
        pred_original_sample: the clean sample as predicted at this timestep; None where diffusers has none.
    """

    prev_sample: Array
    pred_original_sample: Array | None = None


class Scheduler(ABC):
    """Takes a sample from one noise level to the next.

    Attributes:
        config: what it was made with, frozen: its own keywords, and foreign ones that `from_config` was given.
        timesteps: to visit, from noisy to clean; the training timesteps until `set_timesteps`.
        num_inference_steps: as set; None before.
        init_noise_sigma: the standard deviation that the starting noise must have.
    """

    order: ClassVar[int] = 1
    #: name -> class, of every scheduler that was imported
    registry: ClassVar[dict[str, "type[Scheduler]"]] = {}
    beta_schedules: ClassVar[tuple[str, ...]] = schedules.BETA_SCHEDULES
    prediction_types: ClassVar[tuple[str, ...]] = PREDICTION_TYPES
    #: the names of the others that can be made from this one's configuration
    interchangeable: ClassVar[tuple[str, ...]] = INTERCHANGEABLE

    config: FrozenConfig
    timesteps: Array
    num_inference_steps: int | None
    _chosen: frozenset[str]

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        """Makes the scheduler known by its name, and its constructor note which options it is given.

        Args:
            abstract: it is no scheduler, only what several have in common.
        """
        if abstract:
            return
        Scheduler.registry[cls.__name__] = cls
        cls.__init__ = _noting_chosen(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Keeps the configuration and makes the noise schedule.

        Args:
            options: the constructor's `locals()`.

        Raises:
            ValueError: an option has a value that is not known; the message lists those that are.
        """
        names = inspect.signature(type(self).__init__).parameters
        config = {name: options[name] for name in names if name != "self"}
        if config.get("trained_betas") is not None:
            config["trained_betas"] = np.asarray(config["trained_betas"], dtype=np.float64).tolist()
        self._set_config(config)
        self._check_choices()
        self.num_inference_steps = None
        if "beta_schedule" in config:
            self._make_betas(config)

    def _make_betas(self, config: Mapping[str, Any]) -> None:
        """Makes the noise schedule of the training from betas; a scheduler without them makes its own."""
        if config["trained_betas"] is not None:
            betas = schedules.trained_betas(config["trained_betas"])
        else:
            ends = config["beta_start"], config["beta_end"]
            if not all(np.isfinite(end) and 0 < end < 1 for end in ends):
                raise ValueError(f"beta_start and beta_end must lie between 0 and 1, got {ends[0]} and {ends[1]}")
            betas = schedules.betas(config["beta_schedule"], *ends, config["num_train_timesteps"])
        self.betas = schedules.zero_terminal_snr(betas) if config.get("rescale_betas_zero_snr") else betas
        self.alphas_cumprod = schedules.alphas_cumprod(self.betas)
        self.timesteps = np.arange(len(self.betas))[::-1].copy()

    def _set_config(self, entries: Mapping[str, Any]) -> None:
        identity = {"_class_name": type(self).__name__, "_diffusers_version": DIFFUSERS_VERSION}
        defaulted = [name for name in inspect.signature(type(self)).parameters if name not in self._chosen]
        self.config = FrozenConfig({**entries, **identity, DEFAULTED: defaulted})

    def _check_choices(self) -> None:
        """Refuses unknown values of options that have a few."""
        choices = {
            "beta_schedule": self.beta_schedules,
            "prediction_type": self.prediction_types,
            "timestep_spacing": SPACINGS,
            **self._choices(),
        }
        for option, known in choices.items():
            if option in self.config and self.config[option] not in known:
                raise ValueError(
                    f"{type(self).__name__}: unknown {option} {self.config[option]!r}; known: {', '.join(known)}"
                )
        steps = self.config["num_train_timesteps"]
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"num_train_timesteps must be a positive integer, got {steps!r}")

    def _choices(self) -> dict[str, tuple[str, ...]]:
        """The known values of options that only a subclass has."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | Path, **overrides: Any) -> Self:
        """A scheduler with a configuration, its own or another scheduler's.

        Args:
            config: a mapping, such as another scheduler's `config`, or the folder or hub id that holds one.
            **overrides: entries to change.

        Keys that this scheduler does not know are kept in its `config`, so that swapping there and back loses nothing;
        those that no scheduler knows with a warning.
        Where the other scheduler took its default, this one takes its own.
        """
        entries = {**_chosen(load_config(config) if isinstance(config, str | Path) else config), **overrides}
        known = set(inspect.signature(cls).parameters)
        scheduler = cls(**{name: value for name, value in entries.items() if name in known})
        foreign = {name: value for name, value in entries.items() if name not in known}
        unknown = sorted(name for name in foreign if not name.startswith("_"))
        if unknown and (unknown := [name for name in unknown if name not in _options_of_every_scheduler()]):
            logger.warning("%s has no option %s: kept, without effect", cls.__name__, ", ".join(unknown))
        scheduler._set_config({**scheduler.config, **foreign})
        return scheduler

    @classmethod
    def from_pretrained(cls, folder: str | Path, subfolder: str | None = None, **overrides: Any) -> Self:
        """A scheduler with the `scheduler_config.json` of a folder or hub id."""
        return cls.from_config(load_config(folder, subfolder), **overrides)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `scheduler_config.json`, which diffusers reads, into a folder.

        Raises:
            ValueError: an option's value cannot be written: a function, another scheduler.
        """
        try:
            text = self._json()
        except TypeError as error:
            raise ValueError(f"{type(self).__name__} cannot be saved with its options: {error}") from error
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")

    @property
    def compatibles(self) -> list["type[Scheduler]"]:
        """The schedulers that can be made from this one's configuration."""
        names = {type(self).__name__, *self.interchangeable}
        return [scheduler for name, scheduler in _every_scheduler().items() if name in names]

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the starting noise must have."""
        return 1.0

    def scale_model_input(self, sample: Array, timestep: float | None = None) -> Array:
        """The sample as the model takes it at a timestep; itself here."""
        del timestep
        return sample

    @abstractmethod
    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the timesteps to visit; `device` is accepted and means nothing here."""

    @abstractmethod
    def step(self, model_output: Array, timestep: float, sample: Array) -> Any:
        """The sample at the next timestep. Subclasses add their options."""

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Array | Sequence[int]) -> Array:
        """Clean samples made as noisy as a timestep has them: q(x_t | x_0), equation 4 of arXiv:2006.11239.

        Args:
            original_samples: (batch, ...), clean.
            noise: the same shape, of variance 1.
            timesteps: (batch,) or (1,), of the training.
        """
        alpha, sigma = self._levels(timesteps, original_samples)
        return np.asarray(alpha * original_samples + sigma * noise)

    def get_velocity(self, sample: Array, noise: Array, timesteps: Array | Sequence[int]) -> Array:
        """What a v-prediction model is trained to give: alpha * noise - sigma * sample."""
        alpha, sigma = self._levels(timesteps, sample)
        return np.asarray(alpha * noise - sigma * sample)

    def _levels(self, timesteps: Array | Sequence[int], sample: Array) -> tuple[Array, Array]:
        """Alpha and sigma of training timesteps, shaped to be multiplied with a sample and in its dtype."""
        index = np.asarray(timesteps, dtype=np.int64).reshape(-1, *[1] * (sample.ndim - 1))
        if not hasattr(self, "alphas_cumprod"):
            raise AttributeError(f"{type(self).__name__} has no betas, and so no velocity")
        alpha_bar = self.alphas_cumprod.astype(sample.dtype)[index]
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self._json(default=str)}"

    def _json(self, default: Callable[[Any], str] | None = None) -> str:
        """The configuration as diffusers writes it; `default` gives what stands for values that JSON has not."""
        entries = {name: value for name, value in self.config.items() if name != DEFAULTED}
        return json.dumps(entries, indent=2, sort_keys=True, default=default)


def _noting_chosen(init: Callable[..., None]) -> Callable[..., None]:
    """A scheduler's constructor that first notes the names of the options that it is given."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def noting(self: Scheduler, *args: Any, **kwargs: Any) -> None:
        if init is inspect.unwrap(type(self).__init__):  # not a parent's, called by its child's
            self._chosen = frozenset(signature.bind_partial(self, *args, **kwargs).arguments) - {"self"}
        init(self, *args, **kwargs)

    return noting


def _every_scheduler() -> dict[str, type[Scheduler]]:
    from . import every_scheduler  # which imports them, and they this module

    return every_scheduler()


def _options_of_every_scheduler() -> set[str]:
    return {name for scheduler in _every_scheduler().values() for name in inspect.signature(scheduler).parameters}


def _chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that somebody chose; diffusers' configurations list the others."""
    left_out = {*config.get(DEFAULTED, ()), DEFAULTED}
    return {name: value for name, value in config.items() if name not in left_out}


def load_config(folder: str | Path, subfolder: str | None = None) -> dict[str, Any]:
    """The `scheduler_config.json` of a folder, of its `scheduler/`, or of a hub id.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    from ..source import local_file

    candidates = [subfolder] if subfolder else ["", "scheduler"]
    path = local_file(folder, [str(Path(candidate) / CONFIG_NAME) for candidate in candidates])
    return read_json_object(path)


def check_step(scheduler: Scheduler, model_output: Array, sample: Array, *, untimed: bool = False) -> None:
    """What every step asks first.

    Args:
        scheduler: whose step it is.
        model_output: what the model predicts.
        sample: what it was given.
        untimed: whether the scheduler walks all timesteps of the training when `set_timesteps` was not called.

    Raises:
        ValueError: `set_timesteps` was not called, or the shapes do not agree.
    """
    if scheduler.num_inference_steps is None and not untimed:
        raise ValueError(f"{type(scheduler).__name__}: call set_timesteps before step")
    if model_output.shape != sample.shape:
        raise ValueError(f"model_output must have the sample's shape {sample.shape}, got {model_output.shape}")


def require_generator(generator: Generators | None) -> Generators:
    """The generator that a stochastic step draws from; a new one, of a random seed, where none was given."""
    return Generator(int(np.random.default_rng().integers(2**63))) if generator is None else generator
