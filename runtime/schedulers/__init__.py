"""Noise schedulers in NumPy, with the names and numbers of diffusers.

Each is imported when it is first asked for: all of them together would be a third of the runtime's start.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Scheduler, SchedulerOutput, load_config

if TYPE_CHECKING:
    from .consistency_models import CMStochasticIterativeScheduler
    from .ddim import DDIMScheduler
    from .ddim_inverse import DDIMInverseScheduler
    from .ddpm import DDPMScheduler
    from .deis_multistep import DEISMultistepScheduler
    from .dpmsolver_multistep import DPMSolverMultistepScheduler
    from .dpmsolver_multistep_inverse import DPMSolverMultistepInverseScheduler
    from .dpmsolver_sde import DPMSolverSDEScheduler
    from .dpmsolver_singlestep import DPMSolverSinglestepScheduler
    from .edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
    from .edm_euler import EDMEulerScheduler
    from .euler_ancestral_discrete import EulerAncestralDiscreteScheduler
    from .euler_discrete import EulerDiscreteScheduler
    from .flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from .flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
    from .heun_discrete import HeunDiscreteScheduler
    from .ipndm import IPNDMScheduler
    from .k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler
    from .k_dpm_2_discrete import KDPM2DiscreteScheduler
    from .lcm import LCMScheduler
    from .lms_discrete import LMSDiscreteScheduler
    from .pndm import PNDMScheduler
    from .sasolver import SASolverScheduler
    from .tcd import TCDScheduler
    from .unipc_multistep import UniPCMultistepScheduler

#: scheduler -> the module that it is in
_MODULES = {
    "CMStochasticIterativeScheduler": "consistency_models",
    "DDIMInverseScheduler": "ddim_inverse",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis_multistep",
    "DPMSolverMultistepInverseScheduler": "dpmsolver_multistep_inverse",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "DPMSolverSDEScheduler": "dpmsolver_sde",
    "DPMSolverSinglestepScheduler": "dpmsolver_singlestep",
    "EDMDPMSolverMultistepScheduler": "edm_dpmsolver_multistep",
    "EDMEulerScheduler": "edm_euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "EulerDiscreteScheduler": "euler_discrete",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler_discrete",
    "FlowMatchHeunDiscreteScheduler": "flow_match_heun_discrete",
    "HeunDiscreteScheduler": "heun_discrete",
    "IPNDMScheduler": "ipndm",
    "KDPM2AncestralDiscreteScheduler": "k_dpm_2_ancestral_discrete",
    "KDPM2DiscreteScheduler": "k_dpm_2_discrete",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms_discrete",
    "PNDMScheduler": "pndm",
    "SASolverScheduler": "sasolver",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc_multistep",
}

__all__ = [
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
    "Scheduler",
    "SchedulerOutput",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "every_scheduler",
    "load_scheduler",
    "scheduler_class",
]


def __getattr__(name: str) -> Any:
    """A scheduler by its name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


def scheduler_class(name: str) -> type[Scheduler]:
    """The scheduler of a name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name in _MODULES:
        scheduler: type[Scheduler] = __getattr__(name)
        return scheduler
    if name not in Scheduler.registry:  # where a user's own are
        raise ValueError(f"unknown scheduler {name!r}; known: {', '.join(sorted({*_MODULES, *Scheduler.registry}))}")
    return Scheduler.registry[name]


def every_scheduler() -> dict[str, type[Scheduler]]:
    """All schedulers by name, a user's own included."""
    return {name: scheduler_class(name) for name in sorted({*_MODULES, *Scheduler.registry})}


def load_scheduler(folder: str | Path) -> Scheduler:
    """The scheduler that a folder's `scheduler_config.json` names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names no scheduler that is known here.
    """
    config = load_config(folder)
    return scheduler_class(str(config.get("_class_name"))).from_config(config)
