"""Noise schedulers in NumPy, with the names and numbers of diffusers."""

from pathlib import Path

from .base import Scheduler, SchedulerOutput, load_config
from .ddim import DDIMScheduler
from .ddpm import DDPMScheduler
from .euler_discrete import EulerDiscreteScheduler
from .pndm import PNDMScheduler

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "PNDMScheduler",
    "Scheduler",
    "SchedulerOutput",
    "load_scheduler",
    "scheduler_class",
]


def scheduler_class(name: str) -> type[Scheduler]:
    """The scheduler of a name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in Scheduler.registry:
        raise ValueError(f"unknown scheduler {name!r}; known: {', '.join(sorted(Scheduler.registry))}")
    return Scheduler.registry[name]


def load_scheduler(folder: str | Path) -> Scheduler:
    """The scheduler that a folder's `scheduler_config.json` names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names no scheduler that is known here.
    """
    config = load_config(folder)
    return scheduler_class(str(config.get("_class_name"))).from_config(config)
