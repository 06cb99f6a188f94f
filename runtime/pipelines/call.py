"""The arguments that mean the same in every text-guided call: how long the loop is, its noise, what comes back."""

import inspect
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

import numpy as np

from ..backends import Array
from ..random import Generator
from ..schedulers import Scheduler
from .outputs import Stopwatch

OutputType = Literal["pil", "np", "latent"]
OUTPUT_TYPES = ("pil", "np", "latent")

#: (pipeline, step, timestep, tensors) -> the tensors to go on with; only those that changed need be there
StepCallback = Callable[[Any, int, float, dict[str, Array]], Mapping[str, Array] | None]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a pipeline, from its beginning on: the stopwatch runs."""

    num_inference_steps: int
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    timestep_options: Mapping[str, Any] = field(default_factory=dict)  # more for the scheduler's `set_timesteps`
    denoising_start: float | None = None  # how much of the way is gone already, 0 to 1
    denoising_end: float | None = None  # where on the way to stop
    eta: float = 0.0
    generator: Generator | Sequence[Generator] | None = None
    seed: int | Sequence[int] | None = None
    output_type: OutputType
    return_dict: bool
    callback_on_step_end: StepCallback | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def of(cls, arguments: Mapping[str, Any], **more: Any) -> Self:
        """The call with those of a pipeline's arguments, by name, that are fields here, and with more."""
        return cls(**own_fields(cls, arguments), **more)

    def __post_init__(self) -> None:
        """Refuses what no pipeline can give.

        Raises:
            ValueError: an unknown output type, or a part of the way that is none.
        """
        if self.output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {self.output_type!r}")
        start, end = self.denoising_start, self.denoising_end
        if start is not None and not 0 < start < 1:
            raise ValueError(f"denoising_start must lie between 0 and 1, got {start}; leave it out for the whole way")
        if end is not None and not 0 < end <= 1:
            raise ValueError(f"denoising_end must lie between 0 and 1, got {end}; leave it out for the whole way")
        if start is not None and end is not None and start >= end:
            raise ValueError(f"denoising_start must be below denoising_end, got {start} and {end}")

    def set_timesteps(self, scheduler: Scheduler) -> None:
        """Sets a scheduler's timesteps: so many, or the caller's own.

        Raises:
            ValueError: both are given, or the scheduler does not take what is given.
        """
        given: dict[str, Any] = {"timesteps": self.timesteps, "sigmas": self.sigmas}
        own = {name: value for name, value in given.items() if value is not None}
        if len(own) == 2:
            raise ValueError("give timesteps or sigmas, not both")
        more = {name: value for name, value in self.timestep_options.items() if value is not None}
        known = inspect.signature(scheduler.set_timesteps).parameters
        for name in [*own, *more]:
            if name not in known:
                raise ValueError(f"{type(scheduler).__name__} does not take {'its own ' * (name in own)}{name}")
        scheduler.set_timesteps(**(own or {"num_inference_steps": self.num_inference_steps}), **more)

    def until_the_end(self, scheduler: Scheduler, timesteps: Sequence[float]) -> list[float]:
        """Those of the timesteps that come before `denoising_end`.

        Raises:
            ValueError: none does.
        """
        if self.denoising_end is None or self.denoising_end == 1:
            return list(timesteps)
        cutoff = timestep_at(scheduler, self.denoising_end)
        left = [timestep for timestep in timesteps if timestep >= cutoff]
        if not left:
            raise ValueError(
                f"denoising_end {self.denoising_end} leaves none of {len(timesteps)} timesteps: raise it, "
                "or num_inference_steps"
            )
        return left

    def noise_sources(self, batch: int) -> Generator | list[Generator]:
        """Where the noise of so many images comes from: see `noise_sources`."""
        return noise_sources(self.generator, self.seed, batch)


def own_fields(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call's arguments that a dataclass has fields for: what is passed on is never forgotten."""
    return {field.name: arguments[field.name] for field in fields(kind) if field.name in arguments}


def timestep_at(scheduler: Scheduler, part: float) -> int:
    """The training's timestep at a part of the way from noise, 0, to picture, 1."""
    trained = int(scheduler.config["num_train_timesteps"])
    return round(trained - part * trained)


def noise_sources(
    generator: Generator | Sequence[Generator] | None, seed: int | Sequence[int] | None, batch: int
) -> Generator | list[Generator]:
    """Where the noise comes from: one generator for the batch, or one per image.

    Raises:
        TypeError: something that is no generator.
        ValueError: both are given, or a number of them that is not the batch's.
    """
    if generator is not None and seed is not None:
        raise ValueError("give generator or seed, not both")
    if seed is None and generator is None:
        return Generator(secrets.randbits(63))
    if generator is None:
        assert seed is not None
        generator = [Generator(one) for one in seed] if isinstance(seed, Sequence | np.ndarray) else Generator(seed)
    if isinstance(generator, Generator):
        return generator
    if not isinstance(generator, list | tuple) or not all(isinstance(one, Generator) for one in generator):
        raise TypeError("generator must be a safelight.runtime.Generator or a list of them; seed=n is short for one")
    if len(generator) != batch:
        raise ValueError(f"there are {batch} images and {len(generator)} generators or seeds")
    return list(generator)
