"""One torch-free pipeline per task."""

from .base import DiffusionPipeline
from .stable_diffusion import StableDiffusionPipeline
from .text_guided import StableDiffusionPipelineOutput

__all__ = ["DiffusionPipeline", "StableDiffusionPipeline", "StableDiffusionPipelineOutput"]
