"""The spellings of a network's layers: each is one layer's alone."""

import diffusers
import pytest
import torch

from safelight.export.lora_names import LoraKey, layer_finder, parse_key, plain_spelling

SD_UNET: dict[str, object] = {"cross_attention_dim": 768}
XL_UNET: dict[str, object] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def layers_of(config: dict[str, object]) -> list[str]:
    with torch.device("meta"):
        network = diffusers.UNet2DConditionModel(**config)
    return [name.removesuffix(".weight") for name, tensor in network.state_dict().items() if tensor.ndim > 1]


@pytest.mark.parametrize("config", [SD_UNET, XL_UNET], ids=["SD", "SDXL"])
def test_every_layer_is_found_by_its_name(config: dict[str, object]) -> None:
    layers = layers_of(config)
    finder = layer_finder(layers)
    assert len(layers) > 250
    assert [finder[layer.replace(".", "_")] for layer in layers] == layers


@pytest.mark.parametrize(
    ("config", "original", "layer"),
    [
        (SD_UNET, "input_blocks.10.0.in_layers.2", "down_blocks.3.resnets.0.conv1"),
        (SD_UNET, "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        (SD_UNET, "output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
        (SD_UNET, "output_blocks.11.1.proj_out", "up_blocks.3.attentions.2.proj_out"),
        (XL_UNET, "input_blocks.8.0.out_layers.3", "down_blocks.2.resnets.1.conv2"),
        (XL_UNET, "output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        (
            XL_UNET,
            "middle_block.1.transformer_blocks.9.attn2.to_out.0",
            "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0",
        ),
    ],
)
def test_the_original_implementation_counts_blocks_through_all_levels(
    config: dict[str, object], original: str, layer: str
) -> None:
    assert layer_finder(layers_of(config))[plain_spelling(original)] == layer


def test_two_layers_that_are_spelled_alike_are_no_network() -> None:
    with pytest.raises(AssertionError, match=r"a_b\.c and a\.b_c are spelled alike|a\.b_c and a_b\.c"):
        layer_finder(["a.b_c", "a_b.c"])


@pytest.mark.parametrize(
    ("key", "parsed"),
    [
        ("lora_te2_text_projection.lora_up.weight", LoraKey("text_encoder_2", "text_projection", "up")),
        ("lora_te_text_model_a.alpha", LoraKey("text_encoder", "text_model_a", "alpha")),
        ("text_encoder_2.a.b.lora_A.weight", LoraKey("text_encoder_2", "a.b", "down")),
        ("unet.a.processor.to_out_lora.up.weight", LoraKey("unet", "a.processor.to_out", "up")),
        ("text_encoder.a.lora_linear_layer.down.weight", LoraKey("text_encoder", "a", "down")),
        ("a.to_k.lora.down.weight", LoraKey("unet", "a.to_k", "down")),
        ("unet.conv_in.lora_A.bias", None),
    ],
)
def test_a_key_is_component_layer_and_role(key: str, parsed: LoraKey | None) -> None:
    assert parse_key(key) == parsed
