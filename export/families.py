"""The families of models by name: those that can be exported, and those that are told apart to be refused by name."""

import re
from collections.abc import Collection, Mapping

#: what a single file can hold, and what a folder can: they end the sentences that refuse
IN_FILES = "Stable Diffusion 1.x (inpainting, InstructPix2Pix), 2.x (inpainting, depth) and SDXL (inpainting, refiner)"
IN_FOLDERS = f"{IN_FILES}, latent consistency models, unconditional models of pixels"

#: a pattern of the pipeline's name in model_index.json -> its family; the first that fits
_PIPELINES: Mapping[str, str] = {
    "ControlNet": "ControlNet",
    "T2IAdapter|StableDiffusion(XL)?Adapter": "T2I-Adapter",
    "AnimateDiff": "AnimateDiff",
    "^StableDiffusion3": "Stable Diffusion 3",
    "Upscale": "the Stable Diffusion upscaler",
    "^StableDiffusionXLInstructPix2Pix": "InstructPix2Pix of SDXL",
    "^StableUnCLIP": "Stable unCLIP",
    "^StableVideoDiffusion": "Stable Video Diffusion",
    "^(StableCascade|Wuerstchen)": "Stable Cascade",
    "^Flux": "FLUX",
    "^Chroma": "Chroma",
    "^PixArt": "PixArt",
    "^HunyuanDiT": "Hunyuan-DiT",
    "^Hunyuan": "HunyuanVideo",
    "^Kandinsky": "Kandinsky",
    "^Kolors": "Kolors",
    "^AuraFlow": "AuraFlow",
    "^Lumina": "Lumina",
    "^Sana": "SANA",
    "^QwenImage": "Qwen-Image",
    "^ZImage": "Z-Image",
    "^HiDream": "HiDream",
    "^CogView": "CogView",
    "^CogVideo": "CogVideoX",
    "^LTX": "LTX-Video",
    "^Wan": "Wan",
    "^Mochi": "Mochi",
    "^Cosmos": "Cosmos",
    "^IF(Img2Img|Inpainting|SuperResolution)?(Pipeline|SuperResolution)": "DeepFloyd IF",
    "^AltDiffusion": "AltDiffusion",
    "^UnCLIP": "unCLIP",
    "^(AudioLDM|MusicLDM|StableAudio)": "a model of sound",
}

#: a pattern of a tensor's name -> what a file with it holds; the first that fits
_TENSORS: Mapping[str, str] = {
    r"^control_model\.|controlnet_cond_embedding\.|(^|\.)input_hint_block\.": "a ControlNet",
    r"^adapter\.(body|conv_in)\.": "a T2I-Adapter",
    r"^(ip_adapter|image_proj)\.": "an IP-Adapter",
    r"motion_modules?\.": "AnimateDiff",
    r"(^|\.)joint_blocks\.": "Stable Diffusion 3",
    r"(^|\.)distilled_guidance_layer\.": "Chroma",
    r"(^|\.)individual_token_refiner\.": "HunyuanVideo",
    r"(^|\.)(double_blocks|single_stream_modulation|early_stream_modulations)\.": "FLUX",
    r"(^|\.)clip_(txt_)?mapper\.|\.channelwise\.0\.": "Stable Cascade",
    r"(^|\.)cond_seq_linear\.": "AuraFlow",
    r"(^|\.)(adaln_single|t_block)\.": "PixArt",
    r"(^|\.)patchify_proj\.|last_scale_shift_table": "LTX-Video",
    r"\.attn\.qkv_x\.": "Mochi",
    r"(^|\.)cap_embedder\.": "Lumina or Z-Image",
    r"\.cross_attn\.(q|kv)_linear\.": "SANA",
    r"(^|\.)head\.modulation$": "Wan",
    r"(^|\.)double_stream_blocks\.": "HiDream",
    r"(^|\.)txt_(in\.text_norm|norm)\.": "Qwen-Image",
    r"^net\.(blocks|x_embedder)\.": "Cosmos",
    r"\.(time_stack|time_mixer)\.": "Stable Video Diffusion",
    r"^(embedder\.model\.visual|noise_augmentor)\.": "Stable unCLIP",
    r"^low_scale_model\.": "the Stable Diffusion upscaler",
    r"^edm_(mean|std)$": "Playground v2.5",
    r"^edm_vpred\.": "CosXL",
    r"^scaled_fp8$|\.(scale_weight|weight_scale|comfy_quant|absmax|quant_map)$": "quantized weights",
}
#: the same of files with a UNet of so many input channels
_CHANNELS: Mapping[int, str] = {7: "the Stable Diffusion upscaler"}
#: the same of files without a UNet
_PARTS: Mapping[str, str] = {
    r"(^|[._])lora_(up|down|A|B|unet|te\d?)([._]|$)|[._](hada_w1_a|lokr_w1|oft_blocks|dora_scale)": "a LoRA",
    r"^(emb_params|string_to_param|clip_[lg])": "a textual inversion",
    r"^model_ema\.": "nothing but the running average of a training (model_ema), which diffusers does not read either",
    r"^(first_stage_model\.)?(encoder|decoder)\.(down|up)(_blocks)?\.": "an autoencoder alone",
    r"^(unet\.)?(down_blocks|up_blocks|mid_block)\.": "a network in diffusers' names, which needs its folder",
    r"(^|\.)(text_model|encoder\.layers|resblocks)\.": "a text encoder alone",
}


def pipeline_family(class_name: str) -> str | None:
    """The family of a pipeline that cannot be exported, by the name of its class; None where none is known."""
    return _first(_PIPELINES, [class_name])


def file_family(names: Collection[str], *, in_channels: int | None) -> str | None:
    """What a single file holds that cannot be exported; None where nothing of the kind is found.

    Args:
        names: of its tensors.
        in_channels: of its UNet, if it has one in the original layout.
    """
    if in_channels is None:
        return _first(_TENSORS, names) or _first(_PARTS, names)
    return _CHANNELS.get(in_channels) or _first(_TENSORS, names)


def _first(families: Mapping[str, str], names: Collection[str]) -> str | None:
    return next(
        (family for pattern, family in families.items() if any(re.search(pattern, name) for name in names)), None
    )
