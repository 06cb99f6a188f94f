"""Stable Diffusion without PyTorch: pipelines, schedulers and networks under diffusers' names."""

from .networks import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from .pipelines import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionPipelineOutput
from .random import Generator
from .schedulers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from .source import bundled_model
from .tokenizer import CLIPTokenizer

__all__ = [
    "AutoencoderKL",
    "CLIPTextModel",
    "CLIPTokenizer",
    "DDIMScheduler",
    "DDPMScheduler",
    "DiffusionPipeline",
    "EulerDiscreteScheduler",
    "Generator",
    "PNDMScheduler",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "UNet2DConditionModel",
    "bundled_model",
]
