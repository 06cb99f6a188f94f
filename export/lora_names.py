"""How LoRA files call the layers of a network: each trainer's spelling, resolved against the layers that there are.

`lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight` is a component, a layer and a role. kohya's trainers
write underscores for dots, which no rule undoes; but the layers of a network are known, and no two of them are alike
when theirs are written so, too. What is left are the names that a layer had at other times: in diffusers' attention
processors, in text encoders before and after transformers 5, and in the original implementation of the UNet, whose
names kohya's trainers keep for SDXL.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Literal

Role = Literal["down", "up", "alpha"]

#: how a key begins -> the component that it is about
_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
#: of keys that begin with a layer, as those of diffusers' first LoRAs do
_DEFAULT_COMPONENT = "unet"

#: the components that a LoRA can be for
COMPONENTS = frozenset(_PREFIXES.values())

#: how a key ends -> what it holds; kohya's, PEFT's, and diffusers' own of before it used PEFT
_ROLES: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(\.lora_down|\.lora_A|[._]lora\.down|\.lora_linear_layer\.down)\.weight$"), "down"),
    (re.compile(r"(\.lora_up|\.lora_B|[._]lora\.up|\.lora_linear_layer\.up)\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
)

#: a part of a key that only another method's files have -> the method
_OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with CP decomposition",
}

#: the ends of a layer's name that had another spelling in attention processors, in UNet and text encoder
_PROCESSOR_SPELLINGS = ((r"_to_out_0$", "_to_out"), (r"_self_attn_(q|k|v|out)_proj$", r"_self_attn_to_\1"))

#: layers outside of the blocks -> their names in the original implementation
_ORIGINAL_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
#: layers of a resnet block -> their names in the original implementation
_ORIGINAL_RESNET_LAYERS = {
    ".conv1": ".in_layers.2",
    ".time_emb_proj": ".emb_layers.1",
    ".conv2": ".out_layers.3",
    ".conv_shortcut": ".skip_connection",
}


@dataclass(frozen=True)
class LoraKey:
    """What a key of a LoRA file says.

    Attributes:
        component: the network's folder in a checkpoint, such as "text_encoder_2".
        layer: as the file spells it, without what says component and role.
        role: the matrix `down` or `up`, or the number alpha.
    """

    component: str
    layer: str
    role: Role


def parse_key(key: str) -> LoraKey | None:
    """What a key of a LoRA file says; None where it has none of the known endings."""
    found = next(((match, role) for pattern, role in _ROLES if (match := pattern.search(key))), None)
    if found is None:
        return None
    match, role = found
    prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
    return LoraKey(_PREFIXES.get(prefix, _DEFAULT_COMPONENT), key[len(prefix) : match.start()], role)


def other_method(key: str) -> str | None:
    """The name of the method other than LoRA that a key shows its file to be of, such as "LoHa"; None if none."""
    return next((method for mark, method in _OTHER_METHODS.items() if mark in key), None)


def layer_finder(layers: Iterable[str]) -> dict[str, str]:
    """The layers of a network by each of their spellings, which `plain_spelling` gives."""
    layers = list(layers)
    blocks = dict(_original_blocks(set(layers)))
    found: dict[str, str] = {}
    for layer in layers:
        for spelling in _spellings(layer, blocks):
            assert found.setdefault(spelling, layer) == layer, f"{layer} and {found[spelling]} are spelled alike"
    return found


def plain_spelling(layer: str) -> str:
    """A layer's name with underscores for dots, and without the parts that some files have and others do not."""
    return layer.replace(".", "_").replace("_processor_", "_").removeprefix("text_model_")


def _spellings(layer: str, original_blocks: Mapping[str, str]) -> Iterator[str]:
    spelling = plain_spelling(layer)
    yield spelling
    for pattern, replacement in _PROCESSOR_SPELLINGS:
        if re.search(pattern, spelling):
            yield re.sub(pattern, replacement, spelling)
    if layer in _ORIGINAL_LAYERS:
        yield plain_spelling(_ORIGINAL_LAYERS[layer])
    for block, original in original_blocks.items():
        if layer == block or layer.startswith(f"{block}."):
            rest = layer.removeprefix(block)
            yield plain_spelling(original + _ORIGINAL_RESNET_LAYERS.get(rest, rest))


def _original_blocks(layers: set[str]) -> Iterator[tuple[str, str]]:
    """Each block of a UNet with its name in the original implementation, which counts them through all levels."""
    blocks = {".".join(layer.split(".")[:length]) for layer in layers for length in (3, 4)}

    def numbers(pattern: str) -> Iterator[int]:
        return takewhile(lambda number: pattern.format(number) in blocks, count())

    position = 1  # input_blocks.0 is conv_in
    for level in numbers("down_blocks.{}.resnets.0"):
        down = f"down_blocks.{level}"
        for layer in numbers(down + ".resnets.{}"):
            yield f"{down}.resnets.{layer}", f"input_blocks.{position}.0"
            yield f"{down}.attentions.{layer}", f"input_blocks.{position}.1"
            position += 1
        if f"{down}.downsamplers.0" in blocks:
            yield f"{down}.downsamplers.0.conv", f"input_blocks.{position}.0.op"
            position += 1
    for layer in numbers("mid_block.resnets.{}"):
        yield f"mid_block.resnets.{layer}", f"middle_block.{2 * layer}"
        yield f"mid_block.attentions.{layer}", f"middle_block.{2 * layer + 1}"
    position = 0
    for level in numbers("up_blocks.{}.resnets.0"):
        up = f"up_blocks.{level}"
        for layer in numbers(up + ".resnets.{}"):
            yield f"{up}.resnets.{layer}", f"output_blocks.{position}.0"
            yield f"{up}.attentions.{layer}", f"output_blocks.{position}.1"
            position += 1
        beside = 2 if f"{up}.attentions.0" in blocks else 1  # it shares the level's last position
        yield f"{up}.upsamplers.0.conv", f"output_blocks.{position - 1}.{beside}.conv"
