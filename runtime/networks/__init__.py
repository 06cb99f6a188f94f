"""The networks of a model folder, under diffusers' class names: configuration, tensor names and constants in one place.

What an engine calls `encoder_hidden_states`, `out_sample` or `latent_parameters` is translated here and nowhere else,
and the constants that belong to a network (an autoencoder's `scaling_factor`) are applied here, once.
"""

from collections.abc import Callable
from typing import Any

from ..model_folder import ModelFolder
from .autoencoder import (
    Autoencoder,
    AutoencoderKL,
    AutoencoderTiny,
    CertainLatents,
    DiagonalGaussian,
    open_autoencoder,
)
from .depth_estimator import DepthEstimatorOutput, DPTForDepthEstimation, open_depth_estimator
from .engine import DEFAULTS, Engine, read_config
from .safety_checker import StableDiffusionSafetyChecker, open_safety_checker
from .text_encoder import (
    FINAL_LAYER_NORM,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    LayerNorm,
    ProjectedTextOutput,
    TextEncoderOutput,
    open_projecting_text_encoder,
    open_text_encoder,
)
from .unet import UNet2DConditionModel, UNet2DModel, UNetOutput, open_unconditional_unet, open_unet

#: the class named in model_index.json -> how it is opened
NETWORK_OPENERS: dict[str, Callable[[ModelFolder, Engine, str], Any]] = {
    "AutoencoderKL": AutoencoderKL.open,
    "AutoencoderTiny": AutoencoderTiny.open,
    "CLIPTextModel": open_text_encoder,
    "CLIPTextModelWithProjection": open_projecting_text_encoder,
    "DPTForDepthEstimation": open_depth_estimator,
    "StableDiffusionSafetyChecker": open_safety_checker,
    "UNet2DConditionModel": open_unet,
    "UNet2DModel": open_unconditional_unet,
}

__all__ = [
    "DEFAULTS",
    "FINAL_LAYER_NORM",
    "NETWORK_OPENERS",
    "Autoencoder",
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CertainLatents",
    "DPTForDepthEstimation",
    "DepthEstimatorOutput",
    "DiagonalGaussian",
    "Engine",
    "LayerNorm",
    "ProjectedTextOutput",
    "StableDiffusionSafetyChecker",
    "TextEncoderOutput",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNetOutput",
    "open_autoencoder",
    "open_depth_estimator",
    "open_projecting_text_encoder",
    "open_safety_checker",
    "open_text_encoder",
    "open_unconditional_unet",
    "open_unet",
    "read_config",
]
