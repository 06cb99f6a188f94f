"""The UNet of a single file: blocks counted through, where diffusers has levels of resnets and transformers."""

from dataclasses import dataclass
from typing import Any

from .layout import Network, Pieces, Shapes, alike, count, layers, shape

PREFIX = "model.diffusion_model."

#: attention heads: as many as in Stable Diffusion 1.x where projections are convolutions, of one width where they are
#: linear, as in everything after it
_HEADS = 8
_HEAD_WIDTH = 64
#: of each of SDXL's six numbers about the size; not to be seen in a tensor
_TIME_IDS_WIDTH = 256

_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_ADDED_CONDITIONS = {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_SHORTCUT = {"skip_connection": "conv_shortcut"}
_TRANSFORMER = ("norm", "proj_in", "proj_out")
_TRANSFORMER_BLOCK = ("attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3")
_WITHOUT_BIAS = tuple(f"{attention}.{name}" for attention in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v"))


@dataclass(frozen=True)
class _Levels:
    """What the blocks of a UNet say of its levels, from the finest on."""

    channels: tuple[int, ...]
    layers: int  # resnets of a level on the way down; one more on the way up
    depths: tuple[int, ...]  # transformer blocks after each resnet; 0 for no transformer
    middle_depth: int


def unet(shapes: Shapes, *, sample_size: int, upcast_attention: bool = False) -> Network:
    """The UNet of a file.

    Args:
        shapes: of the file's tensors.
        sample_size: of the latents that the checkpoint was trained with, which no tensor tells.
        upcast_attention: whether attention is computed in float32, which no tensor tells.

    Raises:
        ValueError: a tensor without which nothing can be told is missing, or the levels are not all alike.
    """
    levels = _levels(shapes)
    first = _first_transformer(levels)
    linear = len(shape(shapes, f"{PREFIX}{first}.proj_in.weight")) == 2
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": shape(shapes, f"{PREFIX}input_blocks.0.0.weight")[1],
        "out_channels": shape(shapes, f"{PREFIX}out.2.weight")[0],
        "block_out_channels": list(levels.channels),
        "down_block_types": [f"{'CrossAttn' if depth else ''}DownBlock2D" for depth in levels.depths],
        "up_block_types": [f"{'CrossAttn' if depth else ''}UpBlock2D" for depth in reversed(levels.depths)],
        "layers_per_block": levels.layers,
        "transformer_layers_per_block": _transformer_layers(levels),
        "cross_attention_dim": shape(shapes, f"{PREFIX}{first}.transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": [channels // _HEAD_WIDTH for channels in levels.channels] if linear else _HEADS,
        "use_linear_projection": linear,
        "upcast_attention": upcast_attention,
    }
    pieces = _pieces(levels)
    if f"{PREFIX}label_emb.0.0.weight" in shapes:
        pieces |= layers(PREFIX, "", _ADDED_CONDITIONS)
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_IDS_WIDTH,
            "projection_class_embeddings_input_dim": shape(shapes, f"{PREFIX}label_emb.0.0.weight")[1],
        }
    return Network("unet", "UNet2DConditionModel", config, pieces)


def _levels(shapes: Shapes) -> _Levels:
    def depth(block: str) -> int:
        return count(shapes, f"{PREFIX}{block}.transformer_blocks.{{}}.norm1.weight")

    found: list[list[int]] = [[]]
    block = 1
    while True:
        if f"{PREFIX}input_blocks.{block}.0.op.weight" in shapes:
            found.append([])
        elif f"{PREFIX}input_blocks.{block}.0.in_layers.0.weight" in shapes:
            found[-1].append(block)
        else:
            break
        block += 1
    if len({len(blocks) for blocks in found}) != 1 or not found[0]:
        raise ValueError(
            f"has a UNet with {', '.join(str(len(blocks)) for blocks in found)} blocks in its levels; "
            "only as many in each are implemented"
        )
    depths = [{depth(f"input_blocks.{block}.1") for block in blocks} for blocks in found]
    middle = depth("middle_block.1")
    if any(len(one) != 1 for one in depths) or not middle or max(depths[-1]) not in (0, middle):
        raise ValueError(
            "has a UNet with other transformers than Stable Diffusion 1.x, 2.x and SDXL have: "
            f"{', '.join('/'.join(map(str, sorted(one))) for one in depths)} blocks in its levels, "
            f"{middle} in the middle"
        )
    return _Levels(
        channels=tuple(shape(shapes, f"{PREFIX}input_blocks.{blocks[0]}.0.out_layers.3.weight")[0] for blocks in found),
        layers=len(found[0]),
        depths=tuple(max(one) for one in depths),
        middle_depth=middle,
    )


def _first_transformer(levels: _Levels) -> str:
    for level, depth in enumerate(levels.depths):
        if depth:
            return f"input_blocks.{level * (levels.layers + 1) + 1}.1"
    return "middle_block.1"


def _transformer_layers(levels: _Levels) -> int | list[int]:
    """One number where all transformers are as deep; a level without any gets 1, or the last one the middle's depth."""
    depths = [depth or 1 for depth in (*levels.depths[:-1], levels.middle_depth)]
    own = {depth for depth in levels.depths if depth} | {levels.middle_depth}
    return own.pop() if len(own) == 1 else depths


def _pieces(levels: _Levels) -> Pieces:
    pieces = layers(PREFIX, "", _ENDS)
    channels, last = levels.channels, len(levels.channels) - 1
    block = 1
    for level, depth in enumerate(levels.depths):
        ours = f"down_blocks.{level}"
        for layer in range(levels.layers):
            widens = layer == 0 and level > 0 and channels[level] != channels[level - 1]
            pieces |= _resnet(f"input_blocks.{block}.0", f"{ours}.resnets.{layer}", shortcut=widens)
            pieces |= _transformer(f"input_blocks.{block}.1", f"{ours}.attentions.{layer}", depth)
            block += 1
        if level < last:
            pieces |= layers(f"{PREFIX}input_blocks.{block}.0.", f"{ours}.downsamplers.0.", {"op": "conv"})
            block += 1
    pieces |= _resnet("middle_block.0", "mid_block.resnets.0", shortcut=False)
    pieces |= _transformer("middle_block.1", "mid_block.attentions.0", levels.middle_depth)
    pieces |= _resnet("middle_block.2", "mid_block.resnets.1", shortcut=False)
    block = 0
    for level, depth in enumerate(reversed(levels.depths)):
        ours = f"up_blocks.{level}"
        for layer in range(levels.layers + 1):
            pieces |= _resnet(f"output_blocks.{block}.0", f"{ours}.resnets.{layer}", shortcut=True)
            pieces |= _transformer(f"output_blocks.{block}.1", f"{ours}.attentions.{layer}", depth)
            block += 1
        if level < last:
            upsampler = f"{PREFIX}output_blocks.{block - 1}.{2 if depth else 1}."
            pieces |= layers(upsampler, f"{ours}.upsamplers.0.", alike(["conv"]))
    return pieces


def _resnet(original: str, ours: str, *, shortcut: bool) -> Pieces:
    return layers(f"{PREFIX}{original}.", f"{ours}.", _RESNET | _SHORTCUT if shortcut else _RESNET)


def _transformer(original: str, ours: str, depth: int) -> Pieces:
    if not depth:
        return {}
    pieces = layers(f"{PREFIX}{original}.", f"{ours}.", alike(_TRANSFORMER))
    for block in range(depth):
        inner = f"transformer_blocks.{block}."
        pieces |= layers(f"{PREFIX}{original}.{inner}", f"{ours}.{inner}", alike(_TRANSFORMER_BLOCK))
        pieces |= layers(f"{PREFIX}{original}.{inner}", f"{ours}.{inner}", alike(_WITHOUT_BIAS), ["weight"])
    return pieces
