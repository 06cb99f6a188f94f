"""The PyTorch networks that every export is checked against."""

from .autoencoder import (
    AutoencoderKL,
    AutoencoderKLConfig,
    AutoencoderKLOutput,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from .autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig, AutoencoderTinyOutput
from .depth_estimator import DepthEstimatorOutput, DPTConfig, DPTForDepthEstimation
from .safety_checker import SafetyCheckerConfig, SafetyCheckerOutput, StableDiffusionSafetyChecker
from .text_encoder import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTextOutput,
    CLIPTextProjectionConfig,
    CLIPTextProjectionOutput,
)
from .unet import UNet2DConditionConfig, UNet2DConditionModel, UNet2DConditionOutput
from .unet_2d import UNet2DConfig, UNet2DModel, UNet2DOutput
from .vision_encoder import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection, CLIPVisionOutput

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderKLOutput",
    "AutoencoderTiny",
    "AutoencoderTinyConfig",
    "AutoencoderTinyOutput",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTextOutput",
    "CLIPTextProjectionConfig",
    "CLIPTextProjectionOutput",
    "CLIPVisionConfig",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPVisionOutput",
    "DPTConfig",
    "DPTForDepthEstimation",
    "DecoderOutput",
    "DepthEstimatorOutput",
    "DiagonalGaussianDistribution",
    "SafetyCheckerConfig",
    "SafetyCheckerOutput",
    "StableDiffusionSafetyChecker",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
    "UNet2DConditionOutput",
    "UNet2DConfig",
    "UNet2DModel",
    "UNet2DOutput",
]
