"""What a single file holds, as far as the names and shapes of its tensors tell: a pipeline in diffusers' layout."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..families import IN_FILES, file_family
from .autoencoder import autoencoder
from .depth_estimator import depth_estimator, image_processor
from .layout import Network, Shapes
from .text_encoder import PENULTIMATE_LAYERS, clip, openclip
from .unet import PREFIX as UNET
from .unet import unet

PREDICTION_TYPES = ("epsilon", "v_prediction")

#: diffusers' version whose choices these are
_DIFFUSERS_VERSION = "0.42.1"
_NAMED_IN_ERRORS = 5
_END_OF_TEXT, _EXCLAMATION_MARK = "<|endoftext|>", "!"
_LATENTS, _WITH_DEPTH, _WITH_PICTURE, _WITH_MASK = 4, 5, 8, 9  # input channels of the UNet

_SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
_SDXL_SCHEDULER: Mapping[str, Any] = {
    **_SCHEDULER,
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
#: the training step of Stable Diffusion 2 base, from which diffusers concludes that it predicts noise
_BASE_STEP = 875000
#: tensors without a value that SDXL's finetunes have, to say how they were trained
_PREDICTS_VELOCITY, _TRAINED_TO_PURE_NOISE = "v_pred", "ztsnr"

#: tensors that a file may have and diffusers' layout does not, and why nothing is lost
DROPPED: Mapping[str, str] = {
    r"model_ema\..*": "the running average of a training: diffusers takes the UNet's own weights",
    r"(alphas_cumprod(_prev)?|betas|logvar|lvlb_weights)": "the noise schedule, which the scheduler computes",
    r"(sqrt_|log_one_minus_|posterior_).*": "the noise schedule, which the scheduler computes",
    r"denoiser\.sigmas": "the noise schedule, which the scheduler computes",
    r".*\.position_ids": "0, 1, 2 ...",
    r".*\.attn_mask": "the causal mask, which the text encoder computes",
    r".*\.logit_scale": "of CLIP's training with pictures",
    r"cond_stage_model\.((model|transformer)\.)?text_projection(\.weight)?": "the pooled text is not used",
    rf"cond_stage_model\.model\.transformer\.resblocks\.{PENULTIMATE_LAYERS}\..*": "the layer before it gives the text",
    r"conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?": "the second encoder's is used",
    r"first_stage_model\.(loss|model_ema)\..*": "of the autoencoder's training",
    r"depth_model\.model\.pretrained\.model\.head\..*": "of the classes that the vision transformer was trained with",
}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A pipeline: everything that its folder in diffusers' layout has, but for the values of the tensors."""

    family: str
    class_name: str  # of the pipeline
    settings: Mapping[str, Any]  # of the pipeline, in model_index.json
    networks: tuple[Network, ...]
    scheduler: Mapping[str, Any]  # scheduler_config.json
    pad_tokens: Mapping[str, str]  # of each tokenizer, by its folder
    image_processor: Mapping[str, Any] | None  # preprocessor_config.json of the depth estimator
    remarks: tuple[str, ...]  # what was assumed where the file does not tell

    @property
    def index(self) -> dict[str, Any]:
        """model_index.json."""
        libraries = {network.name: ["transformers", network.class_name] for network in self.networks}
        libraries |= {name: ["diffusers", libraries[name][1]] for name in ("unet", "vae")}
        processor = "DPTImageProcessor" if self.image_processor else None
        return {
            "_class_name": self.class_name,
            "_diffusers_version": _DIFFUSERS_VERSION,
            **self.settings,
            **libraries,
            **{name: ["transformers", "CLIPTokenizer"] for name in self.pad_tokens},
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
            "feature_extractor": ["transformers" if processor else None, processor],
        }


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What the files of a family have in common, and no tensor tells."""

    name: str
    text_encoders: Callable[[Shapes], list[Network]]
    pad_tokens: Mapping[str, str]
    pipelines: Mapping[int, tuple[str, str]]  # input channels of the UNet -> classes of pipeline and scheduler
    settings: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=lambda: _SCHEDULER)
    image_size: int = 512
    scaling_factor: float = 0.18215


def _openclip_alone(shapes: Shapes) -> list[Network]:
    return [openclip(shapes, "cond_stage_model.model.", name="text_encoder", projects=False)]


def _clip_and_openclip(shapes: Shapes) -> list[Network]:
    second = openclip(shapes, "conditioner.embedders.1.model.", name="text_encoder_2", projects=True)
    return [clip(shapes, "conditioner.embedders.0.transformer."), second]


def _refiners_openclip(shapes: Shapes) -> list[Network]:
    return [openclip(shapes, "conditioner.embedders.0.model.", name="text_encoder_2", projects=True)]


_UNCHECKED = {"safety_checker": [None, None], "requires_safety_checker": False}

#: how the names of a text encoder's tensors begin -> the family; the first that fits
_FAMILIES: Mapping[str, _Family] = {
    "conditioner.embedders.0.model.": _Family(
        name="the SDXL refiner",
        text_encoders=_refiners_openclip,
        pad_tokens={"tokenizer_2": _EXCLAMATION_MARK},
        pipelines={_LATENTS: ("StableDiffusionXLImg2ImgPipeline", "EulerDiscreteScheduler")},
        settings={
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "requires_aesthetics_score": True,
            "force_zeros_for_empty_prompt": False,
        },
        scheduler=_SDXL_SCHEDULER,
        image_size=1024,
        scaling_factor=0.13025,
    ),
    "conditioner.": _Family(
        name="SDXL",
        text_encoders=_clip_and_openclip,
        pad_tokens={"tokenizer": _END_OF_TEXT, "tokenizer_2": _EXCLAMATION_MARK},
        pipelines={
            _LATENTS: ("StableDiffusionXLPipeline", "EulerDiscreteScheduler"),
            _WITH_MASK: ("StableDiffusionXLInpaintPipeline", "EulerDiscreteScheduler"),
        },
        settings={"force_zeros_for_empty_prompt": True},
        scheduler=_SDXL_SCHEDULER,
        image_size=1024,
        scaling_factor=0.13025,
    ),
    "cond_stage_model.model.": _Family(
        name="Stable Diffusion 2.x",
        text_encoders=_openclip_alone,
        pad_tokens={"tokenizer": _EXCLAMATION_MARK},
        pipelines={
            _LATENTS: ("StableDiffusionPipeline", "DDIMScheduler"),
            _WITH_DEPTH: ("StableDiffusionDepth2ImgPipeline", "PNDMScheduler"),
            _WITH_MASK: ("StableDiffusionInpaintPipeline", "PNDMScheduler"),
        },
        settings=_UNCHECKED,
    ),
    "cond_stage_model.": _Family(
        name="Stable Diffusion 1.x",
        text_encoders=lambda shapes: [clip(shapes, "cond_stage_model.transformer.")],
        pad_tokens={"tokenizer": _END_OF_TEXT},
        pipelines={
            _LATENTS: ("StableDiffusionPipeline", "PNDMScheduler"),
            _WITH_PICTURE: ("StableDiffusionInstructPix2PixPipeline", "EulerAncestralDiscreteScheduler"),
            _WITH_MASK: ("StableDiffusionInpaintPipeline", "DDIMScheduler"),
        },
        settings=_UNCHECKED,
    ),
}
_STABLE_DIFFUSION_2 = _FAMILIES["cond_stage_model.model."]
#: of those of Stable Diffusion 2.x that predict velocity
_VELOCITY_IMAGE_SIZE = 768


def contents(shapes: Shapes, *, prediction_type: str | None = None, global_step: int | None = None) -> Contents:
    """The pipeline that a file holds.

    What diffusers' `from_single_file` looks up on the hub is inferred from the tensors, or is the family's constant.

    Args:
        shapes: of the file's tensors.
        prediction_type: "epsilon" or "v_prediction"; inferred when None.
        global_step: the training step that a file in PyTorch's own format may name.

    Raises:
        ValueError: the file holds something else, lacks a tensor, or has one that is not known; the message names them.
    """
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    in_channels = first[1] if first else None
    if other := file_family(shapes.keys(), in_channels=in_channels):
        raise ValueError(f"holds {other}; a single file can hold {IN_FILES}")
    family = _family(shapes)
    if in_channels is None or in_channels not in family.pipelines:
        known = ", ".join(map(str, family.pipelines))
        raise ValueError(f"has a UNet with {in_channels} input channels; {family.name} is known with {known}")
    pipeline, scheduler = family.pipelines[in_channels]
    velocity, remarks = _predicts_velocity(shapes, family, in_channels, prediction_type, global_step)
    enlarged = family is _STABLE_DIFFUSION_2 and velocity
    image_size = _VELOCITY_IMAGE_SIZE if enlarged else family.image_size
    vae = autoencoder(shapes, sample_size=image_size, scaling_factor=family.scaling_factor)
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    estimator = depth_estimator(shapes) if in_channels == _WITH_DEPTH else None
    networks = [
        *family.text_encoders(shapes),
        unet(shapes, sample_size=image_size // factor, upcast_attention=enlarged),
        vae,
        *([estimator] if estimator else []),
    ]
    _check(shapes, networks, family)
    return Contents(
        family=family.name,
        class_name=pipeline,
        settings=family.settings,
        networks=tuple(networks),
        scheduler={
            "_class_name": scheduler,
            "_diffusers_version": _DIFFUSERS_VERSION,
            **family.scheduler,
            "prediction_type": PREDICTION_TYPES[velocity],
            **({"rescale_betas_zero_snr": True} if _TRAINED_TO_PURE_NOISE in shapes else {}),
        },
        pad_tokens=family.pad_tokens,
        image_processor=image_processor(estimator.config) if estimator else None,
        remarks=remarks,
    )


def _family(shapes: Shapes) -> _Family:
    if not any(name.startswith(UNET) for name in shapes):
        raise ValueError(f"holds no UNet of a known layout; a single file can hold {IN_FILES}")
    for prefix, family in _FAMILIES.items():
        if any(name.startswith(prefix) for name in shapes):
            return family
    raise ValueError(f"holds a UNet without a text encoder; a single file must hold the whole of {IN_FILES}")


def _predicts_velocity(
    shapes: Shapes, family: _Family, in_channels: int, prediction_type: str | None, global_step: int | None
) -> tuple[bool, tuple[str, ...]]:
    """Whether the UNet predicts velocity rather than noise, and what is to be said where that is no more than likely.

    Of Stable Diffusion 2.x diffusers takes for granted that it does, but for inpainting and depth, and unless the
    training step is that of the base model.
    """
    if prediction_type is not None:
        return prediction_type == PREDICTION_TYPES[1], ()
    if family is not _STABLE_DIFFUSION_2 or in_channels != _LATENTS:
        return _PREDICTS_VELOCITY in shapes, ()
    if global_step is not None:
        return global_step != _BASE_STEP, ()
    remark = (
        f"{family.name} that predicts velocity is assumed, as diffusers does, for the file does not say it; "
        "of the base model (512 pixels): --prediction-type epsilon"
    )
    return True, (remark,)


def _check(shapes: Shapes, networks: Iterable[Network], family: _Family) -> None:
    """Every tensor that the networks need must be there, and there may be no other.

    Raises:
        ValueError: names those that are missing, or not known.
    """
    needed = dict.fromkeys(piece.key for network in networks for piece in network.pieces.values())
    if missing := [key for key in needed if key not in shapes]:
        raise ValueError(f"lacks {len(missing)} tensors of {family.name}: {_some(missing)}")
    known = {*needed, _PREDICTS_VELOCITY, _TRAINED_TO_PURE_NOISE}
    if unknown := [key for key in shapes if key not in known and not is_dropped(key)]:
        raise ValueError(
            f"has {len(unknown)} tensors that are not known in {family.name}, and might change its pictures: "
            f"{_some(unknown)}; save it without them"
        )


def is_dropped(key: str) -> bool:
    """Whether a tensor is one of those that diffusers' layout does not have; see `DROPPED`."""
    return any(re.fullmatch(pattern, key) for pattern in DROPPED)


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED_IN_ERRORS])
    return shown if len(names) <= _NAMED_IN_ERRORS else f"{shown}, ..."
