"""Who takes part: each opens its pipeline and makes the case's picture, as its user would."""

import importlib.util
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np

from safelight.runtime.backends import BACKENDS, ON_GPU, Array, backend_module

from .case import Case


@dataclass(frozen=True)
class Picture:
    """What one generation gave: (height, width, 3) float32 in [0, 1], and the seconds of each stage."""

    image: Array
    seconds: dict[str, float]  # "total", the stages that the contender tells apart, and "step", the median of one


Generate = Callable[[], Picture]


class StepTimes:
    """A callback for the end of each step, which diffusers and the runtime call alike: it notes the time."""

    def __init__(self) -> None:
        self.started = perf_counter()
        self.ends: list[float] = []

    def __call__(self, _pipeline: object, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        """Changes nothing."""
        self.ends.append(perf_counter())
        return tensors

    def median(self) -> float:
        """Seconds from the end of one step to the next; of a single step, from the start."""
        times = [self.started, *self.ends] if len(self.ends) == 1 else self.ends
        return statistics.median(after - before for before, after in pairwise(times))


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    open: Callable[[Case], Generate]  # in a process of its own
    missing: Callable[[Case], str | None]  # why it cannot take part here; None when it can


#: a safety checker, where there is one, would make pictures black that are to be compared
UNCHECKED: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}


def _open_safelight(backend: str) -> Callable[[Case], Generate]:
    def open_pipeline(case: Case) -> Generate:
        from safelight.runtime import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(case.model, backend=backend, **UNCHECKED)
        return _runtime_generate(pipeline, case)

    return open_pipeline


def _open_reference(case: Case) -> Generate:
    from .torch_reference import reference_pipeline

    assert case.checkpoint is not None
    return _runtime_generate(reference_pipeline(Path(case.checkpoint)), case)


def _runtime_generate(pipeline: Any, case: Case) -> Generate:
    pipeline.set_progress_bar_config(disable=True)

    def generate() -> Picture:
        steps = StepTimes()
        output = pipeline(seed=case.seed, output_type="np", callback_on_step_end=steps, **case.call())
        ended = perf_counter()
        return Picture(output.images[0], {"total": ended - steps.started, **output.timings, "step": steps.median()})

    return generate


def _open_diffusers(case: Case) -> Generate:
    import torch
    from diffusers import StableDiffusionPipeline

    assert case.checkpoint is not None
    pipeline: Any = StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        case.checkpoint, dtype=torch.float32, **UNCHECKED
    )
    pipeline.set_progress_bar_config(disable=True)

    def generate() -> Picture:
        steps = StepTimes()
        generator = torch.Generator().manual_seed(case.seed)
        output = pipeline(generator=generator, output_type="np", callback_on_step_end=steps, **case.call())
        ended = perf_counter()
        seconds = {
            "total": ended - steps.started,
            "text and denoise": steps.ends[-1] - steps.started,
            "decode": ended - steps.ends[-1],
            "step": steps.median(),
        }
        return Picture(np.asarray(output.images[0], dtype=np.float32), seconds)

    return generate


def _missing_backend(backend: str) -> Callable[[Case], str | None]:
    def missing(_case: Case) -> str | None:
        try:
            backend_module(backend)
        except ModuleNotFoundError as error:
            return str(error)
        return None

    return missing


def _missing_packages(*packages: str) -> Callable[[Case], str | None]:
    def missing(case: Case) -> str | None:
        absent = [package for package in packages if importlib.util.find_spec(package) is None]
        if absent:
            return f"{', '.join(absent)} not installed: pip install 'safelight[export,bench]'"
        return None if case.checkpoint is not None else "needs --checkpoint"

    return missing


REFERENCE = "reference (PyTorch)"

#: the reference first: it is what the others' pictures are compared with
CONTENDERS: Mapping[str, Contender] = MappingProxyType(
    {
        REFERENCE: Contender(_open_reference, _missing_packages("torch", "onnxscript")),
        "diffusers": Contender(_open_diffusers, _missing_packages("torch", "diffusers", "transformers")),
        **{
            f"safelight {name}": Contender(_open_safelight(name), _missing_backend(name))
            for name in BACKENDS
            if name not in ON_GPU
        },
    }
)
