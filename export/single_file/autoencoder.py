"""The autoencoder of a single file."""

from typing import Any

from .layout import Network, Piece, Pieces, Shapes, alike, count, layers, shape

PREFIX = "first_stage_model."

_ENDS = {
    **{f"{half}.{layer}": f"{half}.{layer}" for half in ("encoder", "decoder") for layer in ("conv_in", "conv_out")},
    **{f"{half}.norm_out": f"{half}.conv_norm_out" for half in ("encoder", "decoder")},
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
}
_RESNET = alike(["norm1", "conv1", "norm2", "conv2"])
_SHORTCUT = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def autoencoder(shapes: Shapes, *, sample_size: int, scaling_factor: float) -> Network:
    """The autoencoder of a file.

    Args:
        shapes: of the file's tensors.
        sample_size: of the pictures that the checkpoint was trained with, which no tensor tells.
        scaling_factor: of the latents, which no tensor tells.

    Raises:
        ValueError: a tensor without which nothing can be told is missing.
    """
    levels = count(shapes, f"{PREFIX}encoder.down.{{}}.block.0.conv1.weight")
    depth = count(shapes, f"{PREFIX}encoder.down.0.block.{{}}.conv1.weight")
    channels = [shape(shapes, f"{PREFIX}encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "sample_size": sample_size,
        "in_channels": shape(shapes, f"{PREFIX}encoder.conv_in.weight")[1],
        "out_channels": shape(shapes, f"{PREFIX}decoder.conv_out.weight")[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": channels,
        "layers_per_block": depth,
        "latent_channels": shape(shapes, f"{PREFIX}decoder.conv_in.weight")[1],
        "scaling_factor": scaling_factor,
    }
    return Network("vae", "AutoencoderKL", config, _pieces(channels, depth))


def _pieces(channels: list[int], depth: int) -> Pieces:
    pieces = layers(PREFIX, "", _ENDS)
    last = len(channels) - 1
    for level, wide in enumerate(channels):
        ours, original = f"encoder.down_blocks.{level}.", f"{PREFIX}encoder.down.{level}."
        for layer in range(depth):
            widens = layer == 0 and level > 0 and wide != channels[level - 1]
            pieces |= _resnet(f"{original}block.{layer}.", f"{ours}resnets.{layer}.", shortcut=widens)
        if level < last:
            pieces |= layers(f"{original}downsample.", f"{ours}downsamplers.0.", alike(["conv"]))

        # the original counts the decoder's levels from the finest on, diffusers from the coarsest
        ours, original = f"decoder.up_blocks.{last - level}.", f"{PREFIX}decoder.up.{level}."
        for layer in range(depth + 1):
            narrows = layer == 0 and level < last and wide != channels[level + 1]
            pieces |= _resnet(f"{original}block.{layer}.", f"{ours}resnets.{layer}.", shortcut=narrows)
        if level > 0:
            pieces |= layers(f"{original}upsample.", f"{ours}upsamplers.0.", alike(["conv"]))
    for half in ("encoder", "decoder"):
        original, ours = f"{PREFIX}{half}.mid.", f"{half}.mid_block."
        pieces |= _resnet(f"{original}block_1.", f"{ours}resnets.0.", shortcut=False)
        pieces |= _resnet(f"{original}block_2.", f"{ours}resnets.1.", shortcut=False)
        pieces |= layers(f"{original}attn_1.", f"{ours}attentions.0.", {"norm": "group_norm"})
        for spelled, name in _ATTENTION.items():
            pieces[f"{ours}attentions.0.{name}.weight"] = Piece(f"{original}attn_1.{spelled}.weight", linear=True)
            pieces[f"{ours}attentions.0.{name}.bias"] = Piece(f"{original}attn_1.{spelled}.bias")
    return pieces


def _resnet(original: str, ours: str, *, shortcut: bool) -> Pieces:
    return layers(original, ours, _RESNET | _SHORTCUT if shortcut else _RESNET)
