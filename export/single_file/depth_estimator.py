"""The depth estimator of a single file: MiDaS' DPT-Hybrid, in the names of its authors and of timm."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from .layout import Network, Piece, Pieces, Shapes, alike, count, layers, shape

PREFIX = "depth_model.model."

#: what no tensor tells: the width of a head, the pixels that a patch stands for, the layers that are looked at
_HEAD_WIDTH = 64
_PATCH_SIZE = 16
_OUT_INDICES = (2, 5, 8, 11)

_VIT = "pretrained.model."
_BACKBONE = f"{_VIT}patch_embed.backbone."
_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_RESIDUAL_UNITS = {
    f"resConfUnit{unit}.conv{conv}": f"residual_layer{unit}.convolution{conv}" for unit in (1, 2) for conv in (1, 2)
}
_ENDS = {
    f"{_VIT}patch_embed.proj": "dpt.embeddings.projection",
    f"{_VIT}norm": "dpt.layernorm",
    "pretrained.act_postprocess3.0.project.0": "neck.reassemble_stage.readout_projects.2.0",
    "pretrained.act_postprocess4.0.project.0": "neck.reassemble_stage.readout_projects.3.0",
    "pretrained.act_postprocess3.3": "neck.reassemble_stage.layers.2.projection",
    "pretrained.act_postprocess4.3": "neck.reassemble_stage.layers.3.projection",
    "pretrained.act_postprocess4.4": "neck.reassemble_stage.layers.3.resize",
    **{f"scratch.output_conv.{layer}": f"head.head.{layer}" for layer in (0, 2, 4)},
}
_STAGES = range(3)
_NECKS = range(1, 5)  # as the original counts them, from the finest on


def depth_estimator(shapes: Shapes) -> Network:
    """The depth estimator of a file.

    Raises:
        ValueError: a tensor without which nothing can be told is missing.
    """
    width = shape(shapes, f"{PREFIX}{_VIT}cls_token")[-1]
    depth = count(shapes, f"{PREFIX}{_VIT}blocks.{{}}.norm1.weight")
    patches = shape(shapes, f"{PREFIX}{_VIT}pos_embed")[1] - 1
    necks = [shape(shapes, f"{PREFIX}scratch.layer{neck}_rn.weight") for neck in _NECKS]
    stages = [f"{PREFIX}{_BACKBONE}stages.{stage}.blocks." for stage in _STAGES]
    depths = [count(shapes, f"{stage}{{}}.conv1.weight") for stage in stages]
    channels = [shape(shapes, f"{stage}0.conv3.weight")[0] for stage in stages]
    backbone = {
        "model_type": "bit",
        "layer_type": "bottleneck",
        "global_padding": "SAME",
        "embedding_dynamic_padding": True,
        "embedding_size": shape(shapes, f"{PREFIX}{_BACKBONE}stem.conv.weight")[0],
        "hidden_sizes": channels,
        "depths": depths,
        "out_features": ["stage1", "stage2", "stage3"],
    }
    grid = isqrt(patches)
    config: dict[str, Any] = {
        "architectures": ["DPTForDepthEstimation"],
        "model_type": "dpt",
        "is_hybrid": True,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // _HEAD_WIDTH,
        "intermediate_size": shape(shapes, f"{PREFIX}{_VIT}blocks.0.mlp.fc1.weight")[0],
        "image_size": grid * _PATCH_SIZE,
        "patch_size": _PATCH_SIZE,
        "backbone_config": backbone,
        "backbone_featmap_shape": [1, channels[-1], grid, grid],
        "backbone_out_indices": list(_OUT_INDICES),
        "readout_type": "project",
        "reassemble_factors": [1, 1, 1, 0.5],
        "neck_hidden_sizes": [neck[1] for neck in necks],
        "neck_ignore_stages": [0, 1],
        "fusion_hidden_size": necks[0][0],
        "use_batch_norm_in_fusion_residual": False,
    }
    return Network("depth_estimator", "DPTForDepthEstimation", config, _pieces(depth, depths))


def image_processor(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `preprocessor_config.json` of a depth estimator, with the values that are published for DPT-Hybrid."""
    return {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": config["image_size"], "width": config["image_size"]},
        "resample": 3,  # bicubic
        "keep_aspect_ratio": False,
        "ensure_multiple_of": 1,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _pieces(depth: int, stage_depths: list[int]) -> Pieces:
    pieces: Pieces = {
        "dpt.embeddings.cls_token": Piece(f"{PREFIX}{_VIT}cls_token"),
        "dpt.embeddings.position_embeddings": Piece(f"{PREFIX}{_VIT}pos_embed"),
        **layers(PREFIX, "", _ENDS),
        **_backbone_pieces(stage_depths),
    }
    for block in range(depth):
        original, ours = f"{PREFIX}{_VIT}blocks.{block}.", f"dpt.encoder.layer.{block}."
        pieces |= layers(original, ours, _BLOCK)
        for third, projection in enumerate(("query", "key", "value")):
            for parameter in ("weight", "bias"):
                name = f"{ours}attention.attention.{projection}.{parameter}"
                pieces[name] = Piece(f"{original}attn.qkv.{parameter}", third=third)
    for neck in _NECKS:
        pieces |= layers(PREFIX, "", {f"scratch.layer{neck}_rn": f"neck.convs.{neck - 1}"}, ["weight"])
        ours = f"neck.fusion_stage.layers.{_NECKS[-1] - neck}."
        pieces |= layers(f"{PREFIX}scratch.refinenet{neck}.", ours, _RESIDUAL_UNITS | {"out_conv": "projection"})
    return pieces


def _backbone_pieces(stage_depths: list[int]) -> Pieces:
    ours = "dpt.embeddings.backbone.bit."
    pieces = layers(f"{PREFIX}{_BACKBONE}", ours, {"stem.conv": "embedder.convolution"}, ["weight"])
    pieces |= layers(f"{PREFIX}{_BACKBONE}", ours, {"stem.norm": "embedder.norm"})
    for stage, depth in enumerate(stage_depths):
        for block in range(depth):
            place = f"{PREFIX}{_BACKBONE}stages.{stage}.blocks.{block}."
            target = f"{ours}encoder.stages.{stage}.layers.{block}."
            first = block == 0  # changes the size, so that its shortcut has a convolution too
            convolutions = ["conv1", "conv2", "conv3", *(["downsample.conv"] if first else [])]
            norms = ["norm1", "norm2", "norm3", *(["downsample.norm"] if first else [])]
            pieces |= layers(place, target, alike(convolutions), ["weight"])
            pieces |= layers(place, target, alike(norms))
    return pieces
