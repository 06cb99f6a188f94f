import dataclasses
import json

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel

from safelight.reference import AutoencoderKL, CLIPTextModel, UNet2DConditionModel

LEVELS = {
    "UNet2DConditionModel": {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 4,
    },
    "AutoencoderKL": {"block_out_channels": [8], "norm_num_groups": 4},
    "CLIPTextModel": {"hidden_size": 16, "vocab_size": 9, "num_hidden_layers": 1},
}
NETWORKS = [UNet2DConditionModel, AutoencoderKL, CLIPTextModel]


def build(network, **values):
    return network.from_config({**LEVELS[network.__name__], **values})


@pytest.mark.parametrize("network", NETWORKS)
def test_to_dict_is_json_that_gives_the_same_configuration(network):
    config = build(network).config
    again = network.from_config(json.loads(json.dumps(config.to_dict()))).config
    assert again == config


def test_what_averaging_leaves_in_a_configuration_has_no_effect(tmp_path):
    """As in diffusers/stable-diffusion-xl-1.0-inpainting-0.1."""
    values = {**LEVELS["UNet2DConditionModel"], "sample_size": 8, "cross_attention_dim": 8, "attention_head_dim": 2}
    unet = diffusers.UNet2DConditionModel(**values)
    average = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    average.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"decay", "optimization_step", "update_after_step"} <= config.keys()
    assert UNet2DConditionModel.from_config(config).config == build(UNet2DConditionModel, **values).config


def test_the_published_configuration_of_sdxl_inpainting_is_read():
    """Of diffusers/stable-diffusion-xl-1.0-inpainting-0.1: nulls, and what an averaging has written."""
    values = {
        "_class_name": "UNet2DConditionModel",
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "cross_attention_norm": None,
        "decay": 0.9999,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "encoder_hid_dim": None,
        "in_channels": 9,
        "inv_gamma": 1.0,
        "mid_block_only_cross_attention": None,
        "min_decay": 0.0,
        "num_attention_heads": None,
        "optimization_step": 37000,
        "power": 0.6666666666666666,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "upcast_attention": None,
        "update_after_step": 0,
        "use_ema_warmup": False,
        "use_linear_projection": True,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(values)
        oracle = diffusers.UNet2DConditionModel.from_config(values)
    expected = {name: tensor.shape for name, tensor in oracle.state_dict().items()}
    assert {name: tensor.shape for name, tensor in unet.state_dict().items()} == expected
    assert len(expected) == 1680


@pytest.mark.parametrize("network", NETWORKS)
def test_configuration_is_frozen(network):
    config = build(network).config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.norm_num_groups = 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_embed_type", "timestep"),
        ("dual_cross_attention", True),
        ("only_cross_attention", True),
        ("only_cross_attention", [False, True]),
        ("resnet_time_scale_shift", "scale_shift"),
        ("encoder_hid_dim_type", "text_proj"),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("mid_block_type", None),
        ("mid_block_scale_factor", 2),
        ("act_fn", "gelu"),
        ("time_embedding_dim", 512),
        ("num_attention_heads", 8),
        ("conv_in_kernel", 1),
        ("a_key_of_the_future", 1),
    ],
)
def test_unet_refuses_what_it_does_not_implement(key, value):
    with pytest.raises(ValueError, match=rf"UNet2DConditionModel: {key} = .*{str(value)[-4:]}.* is not implemented"):
        build(UNet2DConditionModel, **{key: value})


@pytest.mark.parametrize(
    ("network", "key", "value", "message"),
    [
        (UNet2DConditionModel, "down_block_types", ["DownBlock2D", "AttnDownBlock2D"], "'AttnDownBlock2D', only"),
        (
            UNet2DConditionModel,
            "up_block_types",
            ["UpBlock2D"],
            "up_block_types must have one entry for each.*2, got 1",
        ),
        (UNet2DConditionModel, "block_out_channels", [8, 18], "block_out_channels 18 must be even and a multiple of"),
        (UNet2DConditionModel, "block_out_channels", "8, 16", "block_out_channels must be .*, got '8, 16'"),
        (UNet2DConditionModel, "layers_per_block", [1, 1, 1], "layers_per_block must have one entry per block, 2"),
        (UNet2DConditionModel, "cross_attention_dim", [8, 8], "cross_attention_dim must be int, got"),
        (UNet2DConditionModel, "in_channels", True, "in_channels must be int, got True"),
        (UNet2DConditionModel, "norm_num_groups", None, "norm_num_groups must be int, got None"),
        (AutoencoderKL, "down_block_types", ["AttnDownEncoderBlock2D"], "'AttnDownEncoderBlock2D', only"),
        (AutoencoderKL, "up_block_types", ["UpDecoderBlock2D"] * 2, "up_block_types must have one entry.*1, got 2"),
        (AutoencoderKL, "latents_mean", [0.1], r"latents_mean = \[0.1\] is not implemented"),
        (AutoencoderKL, "act_fn", "relu", "act_fn = 'relu' is not implemented"),
        (AutoencoderKL, "block_out_channels", [9], "block_out_channels 9 must be a multiple of norm_num_groups 4"),
        (CLIPTextModel, "hidden_act", "relu", r"hidden_act must be one of \['quick_gelu', 'gelu'\], got 'relu'"),
        (CLIPTextModel, "num_attention_heads", 3, "hidden_size 16 is no multiple of num_attention_heads 3"),
        (CLIPTextModel, "model_type", "clip", "expected the configuration of CLIPTextModel, got model_type 'clip'"),
    ],
)
def test_names_the_key_that_is_wrong(network, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(network, **{key: value})


@pytest.mark.parametrize(
    ("network", "values"),
    [
        (
            UNet2DConditionModel,
            {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "dropout": 0.1, "sample_size": 64},
        ),
        (UNet2DConditionModel, {"a_key_of_the_future": None, "addition_embed_type_num_heads": 64}),
        (AutoencoderKL, {"force_upcast": False, "sample_size": [64, 32], "_name_or_path": "x"}),
        (CLIPTextModel, {"attention_dropout": 0.1, "torch_dtype": "float16", "projection_dim": 768}),
    ],
)
def test_accepts_what_changes_no_number(network, values):
    plain, with_values = build(network), build(network, **values)
    names = [name for name, _ in plain.named_parameters()]
    assert names == [name for name, _ in with_values.named_parameters()]


@pytest.mark.parametrize("network", [UNet2DConditionModel, AutoencoderKL])
def test_refuses_the_configuration_of_another_network(network):
    with pytest.raises(ValueError, match=f"expected the configuration of {network.__name__}, got that of UNet2DModel"):
        build(network, _class_name="UNet2DModel")


def test_keeps_what_the_user_of_the_autoencoder_needs():
    config = build(AutoencoderKL, scaling_factor=0.5, shift_factor=0.25, sample_size=512, latent_channels=3).config
    assert (config.scaling_factor, config.shift_factor, config.sample_size, config.latent_channels) == (
        0.5,
        0.25,
        512,
        3,
    )
