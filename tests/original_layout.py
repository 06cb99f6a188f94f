"""The layout of the original code (CompVis, Stability AI), written down from what it publishes.

From diffusers' names to the original ones: the inverse of what `export/single_file/` does, and made otherwise, for each
name is taken apart by itself.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def unet(state: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`model.diffusion_model.*`."""
    return {f"model.diffusion_model.{_unet_key(name, config)}": tensor for name, tensor in state.items()}


def _unet_key(name: str, config: Mapping[str, Any]) -> str:
    a_level = config["layers_per_block"] + 1  # blocks of the original in a level: its layers and what changes the size
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        block = 1 + int(match[1]) * a_level + int(match[3])
        return f"input_blocks.{block}.{_slot(match[2])}.{_resnet_key(match[4])}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(int(match[1]) + 1) * a_level}.0.op.{match[2]}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        block = int(match[1]) * a_level + int(match[3])
        return f"output_blocks.{block}.{_slot(match[2])}.{_resnet_key(match[4])}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", name):
        level = int(match[1])
        attends = config["up_block_types"][level].startswith("CrossAttn")
        return f"output_blocks.{level * a_level + a_level - 1}.{2 if attends else 1}.conv.{match[2]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{_resnet_key(match[3])}"
    layer, parameter = name.rsplit(".", 1)
    others = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    return f"{others[layer]}.{parameter}"


def _slot(kind: str) -> int:
    return ["resnets", "attentions"].index(kind)


def _resnet_key(name: str) -> str:
    """Of a resnet; a transformer's are the same in both."""
    layer, parameter = name.rsplit(".", 1)
    spelled = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    return f"{spelled.get(layer, layer)}.{parameter}"


def autoencoder(state: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`first_stage_model.*`: the decoder's levels are counted from the finest on, attention is convolutions."""
    last = len(config["block_out_channels"]) - 1
    original = {}
    for name, tensor in state.items():
        key = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{last - int(match[1])}.", name)
        key = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", key)
        key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda match: f"mid.block_{int(match[1]) + 1}.", key)
        key = re.sub(r"\.resnets\.(\d+)\.", r".block.\1.", key)
        key = key.replace("downsamplers.0.", "downsample.").replace("upsamplers.0.", "upsample.")
        key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in key:
            key = key.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
            key = re.sub(r"to_([qkv])\.", r"\1.", key).replace("to_out.0.", "proj_out.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        original[f"first_stage_model.{key}"] = tensor
    return original


def clip(state: State, prefix: str) -> dict[str, Tensor]:
    """OpenAI's text encoder, as transformers 4 names it, with the positions that old versions stored."""
    original = {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    length = original[f"{prefix}text_model.embeddings.position_embedding.weight"].shape[0]
    return original | {f"{prefix}text_model.embeddings.position_ids": torch.arange(length)[None]}


def openclip(state: State, prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's text encoder: query, key and value in one matrix, a projection to multiply by from the right."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    original = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in state:
        original["text_projection"] = state["text_projection.weight"].T.contiguous()
    spelled = {
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    layer = 0
    while f"encoder.layers.{layer}.layer_norm1.weight" in state:
        block, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for parameter in ("weight", "bias"):
            parts = [state[f"{ours}.self_attn.{part}_proj.{parameter}"] for part in "qkv"]
            original[f"{block}.attn.in_proj_{parameter}"] = torch.cat(parts)
            for name, key in spelled.items():
                original[f"{block}.{key}.{parameter}"] = state[f"{ours}.{name}.{parameter}"]
        layer += 1
    return {f"{prefix}{key}": tensor for key, tensor in original.items()}


def midas(state: State) -> dict[str, Tensor]:
    """`depth_model.model.*`: DPT-Hybrid, whose transformer and convolutions are timm's."""
    original = {}
    for name, tensor in state.items():
        if re.search(r"attention\.attention\.(key|value)", name):
            continue
        key = name
        if "attention.attention.query" in name:
            tensor = torch.cat([state[name.replace("query", part)] for part in ("query", "key", "value")])
            key = name.replace("attention.attention.query", "attn.qkv")
        for pattern, spelled in _MIDAS:
            key = re.sub(pattern, spelled, key)
        key = re.sub(r"fusion_stage\.layers\.(\d)\.", lambda match: f"refinenet{4 - int(match[1])}.", key)
        key = re.sub(r"convs\.(\d)\.", lambda match: f"layer{int(match[1]) + 1}_rn.", key)
        original[f"depth_model.model.{key}"] = tensor
    width = state["dpt.embeddings.cls_token"].shape[-1]
    head = {"weight": torch.zeros(1000, width), "bias": torch.zeros(1000)}
    return original | {f"depth_model.model.pretrained.model.head.{name}": value for name, value in head.items()}


_MIDAS = (
    (r"^dpt\.embeddings\.(cls_token)", r"pretrained.model.\1"),
    (r"^dpt\.embeddings\.position_embeddings", "pretrained.model.pos_embed"),
    (r"^dpt\.embeddings\.projection", "pretrained.model.patch_embed.proj"),
    (r"^dpt\.embeddings\.backbone\.bit\.embedder\.convolution", "pretrained.model.patch_embed.backbone.stem.conv"),
    (r"^dpt\.embeddings\.backbone\.bit\.embedder\.norm", "pretrained.model.patch_embed.backbone.stem.norm"),
    (
        r"^dpt\.embeddings\.backbone\.bit\.encoder\.stages\.(\d)\.layers",
        r"pretrained.model.patch_embed.backbone.stages.\1.blocks",
    ),
    (r"^dpt\.layernorm", "pretrained.model.norm"),
    (r"^dpt\.encoder\.layer\.", "pretrained.model.blocks."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^neck\.reassemble_stage\.readout_projects\.2\.0", "pretrained.act_postprocess3.0.project.0"),
    (r"^neck\.reassemble_stage\.readout_projects\.3\.0", "pretrained.act_postprocess4.0.project.0"),
    (r"^neck\.reassemble_stage\.layers\.2\.projection", "pretrained.act_postprocess3.3"),
    (r"^neck\.reassemble_stage\.layers\.3\.projection", "pretrained.act_postprocess4.3"),
    (r"^neck\.reassemble_stage\.layers\.3\.resize", "pretrained.act_postprocess4.4"),
    (r"^neck\.", "scratch."),
    (r"^head\.head\.", "scratch.output_conv."),
    (r"residual_layer(\d)\.convolution(\d)", r"resConfUnit\1.conv\2"),
    (r"(fusion_stage\.layers\.\d)\.projection", r"\1.out_conv"),
)
