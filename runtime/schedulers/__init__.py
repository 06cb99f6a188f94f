"""Noise schedulers in NumPy, with the names and numbers of diffusers."""

from pathlib import Path

from .base import Scheduler, SchedulerOutput, load_config
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
