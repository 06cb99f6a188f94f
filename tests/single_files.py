"""Tiny random checkpoints of every family in single files, as widths that the families' rules about heads allow."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkpoints
import original_layout
import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY = 49408
LENGTH = 77
PENULTIMATE = 23  # layers that Stable Diffusion 2.x uses of OpenCLIP's 24

_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_VELOCITY = _SCHEDULER | {"prediction_type": "v_prediction"}
_EULER = {
    **{name: _SCHEDULER[name] for name in _SCHEDULER if name not in ("clip_sample", "set_alpha_to_one")},
    "timestep_spacing": "leading",
}

CLIP = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "hidden_act": "quick_gelu"}
_OPENCLIP = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": PENULTIMATE, "hidden_act": "gelu"}
_BIG_OPENCLIP = {"hidden_size": 128, "intermediate_size": 144, "num_hidden_layers": 3, "hidden_act": "gelu"}

_SD_UNET = {
    "block_out_channels": [32, 96, 96],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
    "sample_size": 64,
}
_SD2_UNET = _SD_UNET | {
    "block_out_channels": [64, 128, 128],
    "attention_head_dim": [1, 2, 2],
    "use_linear_projection": True,
}
_SDXL_UNET = {
    "block_out_channels": [64, 128, 192],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 3],
    "layers_per_block": 1,
    "cross_attention_dim": 192,
    "attention_head_dim": [1, 2, 3],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 128,
    "sample_size": 128,
}
_REFINER_UNET = _SDXL_UNET | {
    "block_out_channels": [64, 128, 128, 128],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": 2,
    "cross_attention_dim": 128,
    "attention_head_dim": [1, 2, 2, 2],
    "projection_class_embeddings_input_dim": 5 * 256 + 128,
}
_VAE = {
    "block_out_channels": [32, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_SDXL_VAE = _VAE | {"sample_size": 1024, "scaling_factor": 0.13025}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a tiny checkpoint is made of, and what its file is to be taken for."""

    pipeline: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any] = field(default_factory=lambda: _VAE)
    text_encoder: Mapping[str, Any] | None = None  # of OpenAI's CLIP, or of OpenCLIP where it is alone
    text_encoder_2: Mapping[str, Any] | None = None  # of OpenCLIP, with a projection
    scheduler: str
    scheduler_config: Mapping[str, Any]
    prediction_type: str | None = None  # that the user has to name
    markers: Mapping[str, Tensor] = field(default_factory=dict)


FAMILIES = {
    "sd1": Family(
        pipeline="StableDiffusionPipeline",
        unet=_SD_UNET,
        text_encoder=CLIP,
        scheduler="PNDMScheduler",
        scheduler_config={**checkpoints.SCHEDULER, "prediction_type": "epsilon"},
    ),
    "sd1 inpainting": Family(
        pipeline="StableDiffusionInpaintPipeline",
        unet=_SD_UNET | {"in_channels": 9},
        text_encoder=CLIP,
        scheduler="DDIMScheduler",
        scheduler_config=_SCHEDULER,
    ),
    "sd1 instruct-pix2pix": Family(
        pipeline="StableDiffusionInstructPix2PixPipeline",
        unet=_SD_UNET | {"in_channels": 8},
        text_encoder=CLIP,
        scheduler="EulerAncestralDiscreteScheduler",
        scheduler_config={
            name: _SCHEDULER[name] for name in _SCHEDULER if name not in ("clip_sample", "set_alpha_to_one")
        },
    ),
    "sd2": Family(
        pipeline="StableDiffusionPipeline",
        unet=_SD2_UNET | {"sample_size": 96, "upcast_attention": True},
        vae=_VAE | {"sample_size": 768},
        text_encoder=_OPENCLIP,
        scheduler="DDIMScheduler",
        scheduler_config=_VELOCITY,
    ),
    "sd2 base": Family(
        pipeline="StableDiffusionPipeline",
        unet=_SD2_UNET,
        text_encoder=_OPENCLIP,
        scheduler="DDIMScheduler",
        scheduler_config=_SCHEDULER,
        prediction_type="epsilon",
    ),
    "sd2 inpainting": Family(
        pipeline="StableDiffusionInpaintPipeline",
        unet=_SD2_UNET | {"in_channels": 9},
        text_encoder=_OPENCLIP,
        scheduler="PNDMScheduler",
        scheduler_config=checkpoints.SCHEDULER,
    ),
    "sd2 depth": Family(
        pipeline="StableDiffusionDepth2ImgPipeline",
        unet=_SD2_UNET | {"in_channels": 5},
        text_encoder=_OPENCLIP,
        scheduler="PNDMScheduler",
        scheduler_config=checkpoints.SCHEDULER,
    ),
    "sdxl": Family(
        pipeline="StableDiffusionXLPipeline",
        unet=_SDXL_UNET,
        vae=_SDXL_VAE,
        text_encoder=CLIP,
        text_encoder_2=_BIG_OPENCLIP,
        scheduler="EulerDiscreteScheduler",
        scheduler_config=_EULER,
    ),
    "sdxl velocity": Family(
        pipeline="StableDiffusionXLPipeline",
        unet=_SDXL_UNET,
        vae=_SDXL_VAE,
        text_encoder=CLIP,
        text_encoder_2=_BIG_OPENCLIP,
        scheduler="EulerDiscreteScheduler",
        scheduler_config=_EULER | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        markers={"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])},
    ),
    "sdxl inpainting": Family(
        pipeline="StableDiffusionXLInpaintPipeline",
        unet=_SDXL_UNET | {"in_channels": 9},
        vae=_SDXL_VAE,
        text_encoder=CLIP,
        text_encoder_2=_BIG_OPENCLIP,
        scheduler="EulerDiscreteScheduler",
        scheduler_config=_EULER,
    ),
    "sdxl refiner": Family(
        pipeline="StableDiffusionXLImg2ImgPipeline",
        unet=_REFINER_UNET,
        vae=_SDXL_VAE,
        text_encoder_2=_BIG_OPENCLIP,
        scheduler="EulerDiscreteScheduler",
        scheduler_config=_EULER,
    ),
}


def networks(family: Family) -> dict[str, Any]:
    """The family's networks with random weights, by diffusers' and transformers' classes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, DPTForDepthEstimation

    torch.manual_seed(0)
    made: dict[str, Any] = {"unet": UNet2DConditionModel(**family.unet), "vae": AutoencoderKL(**family.vae)}
    if family.text_encoder:
        made["text_encoder"] = CLIPTextModel(_text_config(family.text_encoder))
    if family.text_encoder_2:
        made["text_encoder_2"] = CLIPTextModelWithProjection(_text_config(family.text_encoder_2))
    if family.unet.get("in_channels") == 5:
        made["depth_estimator"] = DPTForDepthEstimation(_depth_config())
    return {name: checkpoints.randomized(network) for name, network in made.items()}


def _text_config(values: Mapping[str, Any]) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        **values,
        num_attention_heads=values["hidden_size"] // 64,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        projection_dim=values["hidden_size"],
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1 if values is CLIP else 0,
    )


def _depth_config() -> Any:
    """DPT-Hybrid with the layers that it is published with, and fewer channels."""
    from transformers import DPTConfig

    return DPTConfig(
        is_hybrid=True,
        hidden_size=64,
        num_hidden_layers=12,
        num_attention_heads=1,
        intermediate_size=72,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[2, 5, 8, 11],
        backbone_config={
            "model_type": "bit",
            "layer_type": "bottleneck",
            "global_padding": "SAME",
            "embedding_dynamic_padding": True,
            "embedding_size": 32,
            "hidden_sizes": [128, 256, 384],
            "depths": [1, 2, 3],
            "out_features": ["stage1", "stage2", "stage3"],
        },
        backbone_featmap_shape=[1, 384, 4, 4],
        neck_hidden_sizes=[128, 256, 12, 14],
        reassemble_factors=[1, 1, 1, 0.5],
        fusion_hidden_size=12,
        initializer_range=0.1,
    )


def tensors(family: Family, made: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the family's file has, in the original layout, with what the originals have beside the networks."""
    states = {name: network.state_dict() for name, network in made.items()}
    unet = original_layout.unet(states["unet"], made["unet"].config)
    original = unet | original_layout.autoencoder(states["vae"], made["vae"].config)
    if family.text_encoder is None:
        original |= original_layout.openclip(states["text_encoder_2"], "conditioner.embedders.0.model.")
    elif family.text_encoder_2 is not None:
        original |= original_layout.clip(states["text_encoder"], "conditioner.embedders.0.transformer.")
        original |= original_layout.openclip(states["text_encoder_2"], "conditioner.embedders.1.model.")
        original["denoiser.sigmas"] = torch.linspace(0, 14, 1000)
    elif len(states["text_encoder"]) > 12 * PENULTIMATE:
        prefix = "cond_stage_model.model."
        original |= original_layout.openclip(states["text_encoder"], prefix)
        blocks = f"{prefix}transformer.resblocks."
        last = {key: value for key, value in original.items() if key.startswith(f"{blocks}{PENULTIMATE - 1}.")}
        original |= {key.replace(f".{PENULTIMATE - 1}.", f".{PENULTIMATE}."): -value for key, value in last.items()}
        original[f"{prefix}text_projection"] = torch.zeros(64, 64)
    else:
        original |= original_layout.clip(states["text_encoder"], "cond_stage_model.transformer.")
    if "depth_estimator" in states:
        original |= original_layout.midas(states["depth_estimator"])
    if family.text_encoder_2 is None:
        for name in ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "posterior_mean_coef1"):
            original[name] = torch.zeros(1000)
        original["model_ema.decay"] = torch.tensor(0.9999)
        original["model_ema.diffusion_modelout0weight"] = torch.zeros(3)
    return original | dict(family.markers)


def make_pair(name: str) -> tuple[Path, Path]:
    """A family's checkpoint in diffusers' layout and as a single file; made once, in the tests' cache."""
    family = FAMILIES[name]
    folder = checkpoints.CACHE / "checkpoints" / f"single-{name.replace(' ', '-')}"
    key = checkpoints.key([repr(family)], [Path(__file__), Path(original_layout.__file__)])
    folder = folder.with_name(f"{folder.name}-{key}")

    def save(target: Path) -> None:
        made = networks(family)
        pipeline(family, made).save_pretrained(target / "folder")
        write(target / f"{name}.safetensors", tensors(family, made))

    checkpoints.publish(folder, save)
    return folder / "folder", folder / f"{name}.safetensors"


def pipeline(family: Family, made: Mapping[str, Any]) -> Any:
    """diffusers' pipeline of the family's networks; the tokenizer is ours, as there is no other here."""
    import diffusers
    import transformers

    from safelight.export.single_file.tokenizer import write_tokenizer

    parts = {
        **made,
        "scheduler": getattr(diffusers, family.scheduler)(**family.scheduler_config),
        "feature_extractor": transformers.DPTImageProcessor(size=64) if "depth_estimator" in made else None,
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name in [name for name in made if "text" in name]:
            folder = Path(temporary) / name
            clip = family.text_encoder is CLIP and name == "text_encoder"
            write_tokenizer(folder, pad_token="<|endoftext|>" if clip else "!")
            parts[name.replace("text_encoder", "tokenizer")] = transformers.CLIPTokenizer.from_pretrained(folder)
    if family.text_encoder_2 is None and "depth_estimator" not in made:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    return getattr(diffusers, family.pipeline)(**parts)


def write(path: Path, original: Mapping[str, Tensor]) -> Path:
    """A single file; tensors that share memory become copies."""
    save_file({key: tensor.clone() for key, tensor in original.items()}, path)
    return path
