"""Tiny random checkpoints made by diffusers and transformers, and their exports, cached by what made them."""

import fcntl
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    text_encoder: Mapping[str, Any] | None
    text_encoder_2: Mapping[str, Any] | None = None  # of SDXL: with a projection, and a tokenizer that pads with "!"
    scheduler: Mapping[str, Any] = field(default_factory=dict)  # with a `_class_name`, or it is a PNDMScheduler
    pipeline: str = "StableDiffusionPipeline"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline
    pad_token: str | None = None  # of the tokenizer, where it is not the end of text
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

CHECKED = replace(LINEAR, name="checked", seed=4)
DEPTH = replace(
    LINEAR,
    name="depth",
    unet={**LINEAR.unet, "in_channels": 5},
    pipeline="StableDiffusionDepth2ImgPipeline",
    seed=3,
)
INPAINTING = replace(LINEAR, name="inpainting", unet={**LINEAR.unet, "in_channels": 9}, seed=2)

_SMALL_UNET = {
    "sample_size": 10,
    "block_out_channels": (20, 40),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": (2, 4),
    "norm_num_groups": 10,
    "use_linear_projection": True,
}
_SMALL_VAE = {**LINEAR.vae, "mid_block_add_attention": True}

#: Stable Diffusion 2.1: velocities, scores in float32, the padding of OpenCLIP
SD2 = replace(
    LINEAR,
    name="sd2",
    unet={**_SMALL_UNET, "upcast_attention": True},
    scheduler={"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False},
    pad_token="!",
    seed=4,
)
SD2_INPAINTING = replace(
    SD2,
    name="sd2-inpainting",
    unet={**_SMALL_UNET, "in_channels": 9},
    scheduler={},
    pipeline="StableDiffusionInpaintPipeline",
    seed=5,
)

#: SDXL: two text encoders, pooled text and sizes, levels with different numbers of transformer layers
SDXL = TinyCheckpoint(
    name="sdxl",
    unet={
        **_SMALL_UNET,
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 24 + 20,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
    vae={**_SMALL_VAE, "scaling_factor": 0.13025},
    text_encoder={**LINEAR.text_encoder, "num_hidden_layers": 3, "hidden_act": "quick_gelu"},
    text_encoder_2={
        "hidden_size": 20,
        "intermediate_size": 50,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    },
    scheduler={"_class_name": "EulerDiscreteScheduler"},
    pipeline="StableDiffusionXLPipeline",
    seed=6,
)
SDXL_INPAINTING = replace(
    SDXL,
    name="sdxl-inpainting",
    unet={**SDXL.unet, "in_channels": 9},
    pipeline="StableDiffusionXLInpaintPipeline",
    options={"force_zeros_for_empty_prompt": False},
    seed=7,
)
#: SDXL's refiner: the second text encoder alone, and an aesthetic score
REFINER = replace(
    SDXL,
    name="refiner",
    unet={
        **SDXL.unet,
        "cross_attention_dim": 20,
        "projection_class_embeddings_input_dim": 16 + 5 * 8,
    },
    text_encoder=None,
    pipeline="StableDiffusionXLImg2ImgPipeline",
    options={"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    seed=8,
)
LCM = replace(
    LINEAR,
    name="lcm",
    unet={**_SMALL_UNET, "time_cond_proj_dim": 12},
    scheduler={"_class_name": "LCMScheduler"},
    pipeline="LatentConsistencyModelPipeline",
    seed=9,
)
PIX2PIX = replace(
    LINEAR,
    name="pix2pix",
    unet={**_SMALL_UNET, "in_channels": 8},
    scheduler={"_class_name": "EulerAncestralDiscreteScheduler"},
    pipeline="StableDiffusionInstructPix2PixPipeline",
    seed=10,
)

#: those of the checkpoints above whose exports are used with DeepCache too -> the options that they are made with
EXPORT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "SDXL": {"cache_branch_id": 1},
    "SD2_INPAINTING": {"cache_branch_id": 0},
    "PIX2PIX": {"cache_branch_id": 0},
}

#: an unconditional UNet, of pixels
UNCONDITIONAL: dict[str, Any] = {
    "sample_size": (24, 16),
    "block_out_channels": (16, 24, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}

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
    folder = CACHE / "checkpoints" / f"{tiny.name}-{key([repr(tiny)], [Path(__file__)])}"
    return publish(folder, lambda target: _pipeline(tiny).save_pretrained(target))


def _pipeline(tiny: TinyCheckpoint) -> Any:
    """diffusers' pipeline with random weights."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(tiny.seed)
    scheduler = {"_class_name": "PNDMScheduler", **SCHEDULER, **tiny.scheduler}
    parts: dict[str, Any] = {
        "vae": randomized(diffusers.AutoencoderKL(**tiny.vae)),
        **_text_parts("", tiny.text_encoder, CLIPTextModel, tiny.pad_token),
        "unet": randomized(diffusers.UNet2DConditionModel(**tiny.unet)),
        "scheduler": getattr(diffusers, scheduler["_class_name"]).from_config(scheduler),
    }
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    kind = getattr(diffusers, tiny.pipeline)
    if tiny.text_encoder_2 is not None:
        parts |= _text_parts("_2", tiny.text_encoder_2, CLIPTextModelWithProjection, "!")
    elif tiny is DEPTH:
        estimator, processor = _depth_estimator()
        parts |= {"depth_estimator": estimator, "feature_extractor": processor}
    elif tiny is CHECKED:
        checker, processor = _safety_checker(diffusers.StableDiffusionImg2ImgPipeline(**parts, **unchecked))
        parts |= {"safety_checker": checker, "feature_extractor": processor}
    else:
        parts |= unchecked
    return kind(**parts, **tiny.options)


def _text_parts(suffix: str, config: Mapping[str, Any] | None, kind: Any, pad_token: str | None) -> dict[str, Any]:
    """A text encoder and its tokenizer, or None for both."""
    from transformers import CLIPTextConfig, CLIPTokenizer

    if config is None:
        return {f"text_encoder{suffix}": None, f"tokenizer{suffix}": None}
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, **{} if pad_token is None else {"pad_token": pad_token})
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=16,
        **config,
    )
    return {f"text_encoder{suffix}": randomized(kind(text_config)), f"tokenizer{suffix}": tokenizer}


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


#: a call of image to image from three photographs: of what it makes, `CHECKED` flags the first and the second picture
FLAGGED_CALL = {"num_inference_steps": 4, "strength": 0.7, "prompt": ["cat face", "pizza", "red apple"]}
FLAGGED_PHOTOGRAPHS, FLAGGED_SEEDS = ("astronaut", "coffee", "chelsea"), (1, 2, 3)


def _safety_checker(pipeline: Any) -> tuple[Any, Any]:
    """A safety checker that sees 32x32 pixels, and its image processor.

    The first concept is what tells the first picture from the others. The second one is for the second picture, and
    near enough only with what special care adds.
    """
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from PIL import Image
    from skimage import data
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    checker = randomized(StableDiffusionSafetyChecker(CLIPConfig(projection_dim=12, vision_config=vision)))
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    photographs = [Image.fromarray(getattr(data, name)()).resize((104, 72)) for name in FLAGGED_PHOTOGRAPHS]
    generators = [torch.Generator().manual_seed(seed) for seed in FLAGGED_SEEDS]
    pictures = pipeline(image=photographs, generator=generators, **FLAGGED_CALL).images
    with torch.no_grad():
        for parameter in checker.vision_model.parameters():
            if parameter.ndim > 1:  # which transformers leaves so small that all pictures look alike
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
        checker.concept_embeds.normal_()
        checker.special_care_embeds.normal_()
        seen = checker.vision_model(processor(pictures, return_tensors="pt").pixel_values).pooler_output
        embeds = torch.nn.functional.normalize(checker.visual_projection(seen))
        typical = torch.nn.functional.normalize(embeds - embeds.mean(dim=0))  # of each picture
        cosines = embeds @ typical.T
        between = cosines.topk(2, dim=0).values.mean(dim=0)
        checker.concept_embeds[:2] = checker.special_care_embeds[:2] = typical[:2]
        checker.concept_embeds_weights[0] = between[0]
        checker.concept_embeds_weights[1] = cosines[1, 1] + 0.005
        checker.special_care_embeds_weights[1] = between[1]
    return checker.eval(), processor


def make_tiny_autoencoder() -> Path:
    """A folder with an `AutoencoderTiny` alone, as the hub has it."""

    def write(target: Path) -> None:
        from diffusers import AutoencoderTiny

        torch.manual_seed(0)
        channels, blocks = (12,) * 4, (1, 2, 1, 1)
        autoencoder = AutoencoderTiny(
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            num_encoder_blocks=blocks,
            num_decoder_blocks=blocks[::-1],
            scaling_factor=0.7,
        )
        randomized(autoencoder).save_pretrained(target)

    return publish(CACHE / "checkpoints" / f"tiny-autoencoder-{key([], [Path(__file__)])}", write)


def make_unconditional_checkpoint(name: str, unet: Mapping[str, Any], *, flat: bool = False) -> Path:
    """A folder with an unconditional UNet and a DDPM scheduler.

    Args:
        name: of the folder.
        unet: of diffusers' `UNet2DModel`.
        flat: everything at the root, as the first checkpoints on the hub have it.
    """

    def write(target: Path) -> None:
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        torch.manual_seed(0)
        scheduler = DDPMScheduler(variance_type="fixed_large", clip_sample=True)
        DDPMPipeline(unet=randomized(UNet2DModel(**unet)), scheduler=scheduler).save_pretrained(target)
        for component in ("unet", "scheduler") if flat else ():
            for file in (target / component).iterdir():
                file.rename(target / file.name)
            (target / component).rmdir()

    return publish(CACHE / "checkpoints" / f"{name}-{key([name, dict(unet), flat], [Path(__file__)])}", write)


def export_checkpoint(checkpoint: Path, **options: Any) -> Path:
    """The export of a checkpoint, folder or file, made once for each state of the code that makes it.

    Unless `options` say otherwise it is for ONNX Runtime on a CPU.
    """
    from safelight.export.folder import export_model
    from safelight.export.options import ExportOptions
    from safelight.export.source import open_source

    options = {"targets": ("onnxruntime-cpu",), **options}
    code = [path for path in (ROOT / "export").rglob("*.py") if path.parent.name != "engines"]
    code += [*(ROOT / "reference").glob("*.py"), ROOT / "runtime" / "manifest.py"]
    code += (ROOT / "runtime" / "fidelity").glob("*.py")
    weights = [path for path in [checkpoint, *checkpoint.rglob("*")] if path.suffix in {".safetensors", ".json"}]
    versions = [importlib.metadata.version(package) for package in ("torch", "onnxscript", "onnxruntime")]
    folder = CACHE / "exports" / f"{checkpoint.name}-{key([versions, options], [*code, *weights])}"
    with alone(folder):
        if not folder.is_dir():
            with open_source(checkpoint, workspace=folder.parent) as source:
                export_model(source, folder, ExportOptions(**options), processes=False)
    return folder


def randomized(network: Any) -> Any:
    """Norms and biases that are no longer ones and zeros, so that a swapped or missing one shows."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.eval()


def publish(folder: Path, write: Callable[[Path], object]) -> Path:
    """The folder that `write` fills, made once: it is there as a whole or not at all."""
    with alone(folder):
        if not folder.is_dir():
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write(partial)
            partial.rename(folder)
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time make a folder: tests run in several."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def key(description: list[Any], files: list[Path]) -> str:
    digest = hashlib.sha256(json.dumps(description, default=str).encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
