"""Tiny random checkpoints made by diffusers and transformers, and their exports, cached by what made them."""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "tests"
EMOJI_CHECKPOINT = ROOT / "reference" / "emoji" / "checkpoint"
TOKENIZER = EMOJI_CHECKPOINT / "tokenizer"  # 2,265 tokens, at most 32 in a prompt


@dataclass(frozen=True)
class TinyCheckpoint:
    """What a tiny checkpoint is made of."""

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


#: a UNet that halves twice, so that latents of 11x22 are odd at every level; no width is a power of two
ODD = TinyCheckpoint(
    name="odd",
    unet={
        "sample_size": 11,
        "block_out_channels": (24, 40, 72),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 36,
        "attention_head_dim": (2, 4, 8),
        "norm_num_groups": 8,
    },
    vae={
        "block_out_channels": (12, 20, 20, 28),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "scaling_factor": 0.31,
        "sample_size": 88,
    },
    text_encoder={
        "hidden_size": 36,
        "intermediate_size": 84,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "hidden_act": "quick_gelu",
    },
)

#: the other branches: linear projections, gelu, two layers a block, no attention in the VAE, one number for the heads
LINEAR = TinyCheckpoint(
    name="linear",
    unet={
        "sample_size": 10,
        "block_out_channels": (20, 60),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 24,
        "attention_head_dim": 5,
        "norm_num_groups": 10,
        "use_linear_projection": True,
    },
    vae={
        "block_out_channels": (12, 18, 24, 24),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 6,
        "scaling_factor": 0.5,
        "sample_size": 80,
        "mid_block_add_attention": False,
    },
    text_encoder={
        "hidden_size": 24,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
    },
    seed=1,
)

DEPTH = replace(LINEAR, name="depth", unet={**LINEAR.unet, "in_channels": 5}, seed=3)
INPAINTING = replace(LINEAR, name="inpainting", unet={**LINEAR.unet, "in_channels": 9}, seed=2)

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}


def make_checkpoint(tiny: TinyCheckpoint) -> Path:
    """A folder in diffusers' layout with random weights; made once."""
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionDepth2ImgPipeline,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    description = [tiny.name, tiny.seed, *map(dict, (tiny.unet, tiny.vae, tiny.text_encoder, tiny.scheduler))]
    folder = CACHE / "checkpoints" / f"{tiny.name}-{key(description, [Path(__file__)])}"
    if folder.is_dir():
        return folder
    torch.manual_seed(tiny.seed)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=16,
        **tiny.text_encoder,
    )
    parts = {
        "vae": randomized(AutoencoderKL(**tiny.vae)),
        "text_encoder": randomized(CLIPTextModel(text_config)),
        "tokenizer": tokenizer,
        "unet": randomized(UNet2DConditionModel(**tiny.unet)),
        "scheduler": PNDMScheduler(**SCHEDULER | dict(tiny.scheduler)),
    }
    if tiny is DEPTH:
        estimator, processor = _depth_estimator()
        pipeline = StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=estimator, feature_extractor=processor)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return publish(folder, pipeline.save_pretrained)


def _depth_estimator() -> tuple[Any, Any]:
    """A depth estimator of 48x48 pixels, and its image processor."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=48,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 12, 16, 16],
        fusion_hidden_size=12,
        initializer_range=0.1,
    )
    size = {"height": 48, "width": 48}
    return randomized(DPTForDepthEstimation(config)), DPTImageProcessor(size=size)


def make_unconditional_checkpoint(name: str, unet: Mapping[str, Any], *, flat: bool = False) -> Path:
    """A folder with an unconditional UNet and a DDPM scheduler.

    Args:
        name: of the folder.
        unet: of diffusers' `UNet2DModel`.
        flat: everything at the root, as the first checkpoints on the hub have it.
    """
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = CACHE / "checkpoints" / f"{name}-{key([name, dict(unet), flat], [Path(__file__)])}"
    if folder.is_dir():
        return folder
    torch.manual_seed(0)
    scheduler = DDPMScheduler(variance_type="fixed_large", clip_sample=True)
    pipeline = DDPMPipeline(unet=randomized(UNet2DModel(**unet)), scheduler=scheduler)

    def write(target: Path) -> None:
        pipeline.save_pretrained(target)
        for component in ("unet", "scheduler") if flat else ():
            for file in (target / component).iterdir():
                file.rename(target / file.name)
            (target / component).rmdir()

    return publish(folder, write)


def export_checkpoint(checkpoint: Path, **options: Any) -> Path:
    """The export of a checkpoint, folder or file, made once for each state of the code that makes it."""
    from safelight.export.folder import ExportOptions, export_model
    from safelight.export.source import open_source

    code = [*(ROOT / "export").rglob("*.py"), *(ROOT / "reference").glob("*.py"), ROOT / "runtime" / "manifest.py"]
    weights = [path for path in [checkpoint, *checkpoint.rglob("*")] if path.suffix in {".safetensors", ".json"}]
    versions = [importlib.metadata.version(package) for package in ("torch", "onnxscript", "onnxruntime")]
    folder = CACHE / "exports" / f"{checkpoint.name}-{key([versions, options], [*code, *weights])}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open_source(checkpoint, workspace=folder.parent) as source:
            export_model(source, folder, ExportOptions(**options))
    return folder


def randomized(network: Any) -> Any:
    """Norms and biases that are no longer ones and zeros, so that a swapped or missing one shows."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.eval()


def publish(folder: Path, write: Any) -> Path:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    partial.rename(folder)
    return folder


def key(description: list[Any], files: list[Path]) -> str:
    digest = hashlib.sha256(json.dumps(description, default=str).encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
