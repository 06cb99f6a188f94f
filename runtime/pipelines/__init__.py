"""One torch-free pipeline per task."""

from .auto import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from .base import DiffusionPipeline
from .depth_to_image import StableDiffusionDepth2ImgPipeline
from .image_to_image import StableDiffusionImg2ImgPipeline
from .inpaint import StableDiffusionInpaintPipeline
from .stable_diffusion import StableDiffusionPipeline
from .text_guided import StableDiffusionPipelineOutput, TextGuidedPipeline
from .unconditional import DDIMPipeline, DDPMPipeline, ImagePipelineOutput, UnconditionalPipeline

__all__ = [
    "AutoPipelineForImage2Image",
    "AutoPipelineForInpainting",
    "AutoPipelineForText2Image",
    "DDIMPipeline",
    "DDPMPipeline",
    "DiffusionPipeline",
    "ImagePipelineOutput",
    "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionPipelineOutput",
    "TextGuidedPipeline",
    "UnconditionalPipeline",
]
