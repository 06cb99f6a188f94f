"""The PyTorch networks that every export is checked against."""

from .autoencoder import (
    AutoencoderKL,
    AutoencoderKLConfig,
    AutoencoderKLOutput,
    DecoderOutput,
    DiagonalGaussianDistribution,
)
from .text_encoder import CLIPTextConfig, CLIPTextModel, CLIPTextOutput
from .unet import UNet2DConditionConfig, UNet2DConditionModel, UNet2DConditionOutput

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderKLOutput",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextOutput",
    "DecoderOutput",
    "DiagonalGaussianDistribution",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
    "UNet2DConditionOutput",
]
