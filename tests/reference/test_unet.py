import diffusers
import pytest
import torch

from safelight.reference import UNet2DConditionModel

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"

CONFIGS = {
    "two levels, attention in both": {
        "block_out_channels": (24, 40),
        "down_block_types": (CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP),
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "layers_per_block": 1,
        "cross_attention_dim": 20,
    },
    "three levels, linear projections, heads and depths per level": {
        "block_out_channels": (24, 40, 72),
        "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, UP),
        "norm_num_groups": 4,
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": (1, 2, 1),
        "layers_per_block": 2,
        "cross_attention_dim": 36,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "four levels as in Stable Diffusion 1.5, layers per level, 9 channels in": {
        "in_channels": 9,
        "block_out_channels": (24, 40, 72, 72),
        "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP, CROSS_UP, CROSS_UP),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "layers_per_block": (1, 2, 1, 2),
        "cross_attention_dim": 24,
        "norm_eps": 1e-2,
    },
    "attention at the top only, the unusual choices": {
        "out_channels": 8,
        "block_out_channels": (40, 24),
        "down_block_types": (CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "center_input_sample": True,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
}


@pytest.fixture(params=CONFIGS)
def oracle(request, randomize):
    return randomize(diffusers.UNet2DConditionModel(sample_size=16, **CONFIGS[request.param]))


@pytest.fixture
def inputs(oracle, noise):
    channels, width = oracle.config.in_channels, oracle.config.cross_attention_dim
    return noise(2, channels, 11, 22), noise(2, 7, width, seed=1)


def test_equals_diffusers_at_odd_sizes(oracle, saved, inputs, assert_equal):
    unet = UNet2DConditionModel.from_pretrained(saved(oracle))
    sample, text = inputs
    timesteps = torch.tensor([3.25, 981.0])
    assert_equal(unet(sample, timesteps, text).sample, oracle(sample, timesteps, text).sample)


def test_equals_diffusers_at_even_sizes(oracle, saved, noise, assert_equal):
    unet = UNet2DConditionModel.from_pretrained(saved(oracle))
    sample, text = noise(1, oracle.config.in_channels, 16, 8), noise(1, 5, oracle.config.cross_attention_dim)
    assert_equal(unet(sample, 500, text).sample, oracle(sample, 500, text).sample)


def test_has_the_parameters_of_diffusers(oracle):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(oracle.config)
    assert _shapes(unet) == _shapes(oracle)
    assert {value.device.type for value in unet.state_dict().values()} == {"meta"}


@pytest.fixture
def small(randomize):
    return randomize(diffusers.UNet2DConditionModel(**CONFIGS["two levels, attention in both"]))


@pytest.mark.parametrize(
    "timestep",
    [7, 3.25, torch.tensor(7), torch.tensor(3.25), torch.tensor([7]), torch.tensor([3.25]), torch.tensor([7, 901])],
    ids=str,
)
def test_takes_every_kind_of_timestep(small, saved, noise, assert_equal, timestep):
    unet = UNet2DConditionModel.from_pretrained(saved(small))
    sample, text = noise(2, 4, 6, 6), noise(2, 3, 20, seed=1)
    assert_equal(unet(sample, timestep, text).sample, small(sample, timestep, text).sample)


def test_forward_is_predict_in_an_output(small, saved, noise):
    unet = UNet2DConditionModel.from_pretrained(saved(small))
    sample, text = noise(2, 4, 6, 6), noise(2, 3, 20, seed=1)
    assert torch.equal(unet(sample, 3, text).sample, unet.predict(sample, torch.tensor([3]), text))


def test_dtype_is_of_weights_and_result(small, saved, noise):
    unet = UNet2DConditionModel.from_pretrained(saved(small), dtype=torch.bfloat16)
    sample, text = noise(1, 4, 6, 6).bfloat16(), noise(1, 3, 20).bfloat16()
    result = unet(sample, 981.5, text).sample
    expected = small(sample.float(), 981.5, text.float()).sample
    assert result.dtype == torch.bfloat16
    assert (result - expected).abs().max() < 5e-2 * expected.abs().max()


def test_upcast_attention_survives_scores_that_overflow_float16(noise):
    config = {**CONFIGS["two levels, attention in both"], "upcast_attention": True}
    unet = UNet2DConditionModel.from_config(config).half()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    for projection in (attention.to_q, attention.to_k):
        projection.weight.copy_(300 * torch.eye(40))
    tokens = noise(1, 5, 40).half()
    assert attention(tokens).isfinite().all()


@pytest.mark.full_shape
def test_equals_diffusers_at_the_shape_of_stable_diffusion_1_5(noise, assert_equal):
    oracle = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval()
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(oracle.config)
    unet.load_state_dict(oracle.state_dict(), assign=True)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    sample, text = noise(1, 4, 27, 32), noise(1, 77, 768, seed=1)
    assert_equal(unet(sample, 981.0, text).sample, oracle(sample, 981.0, text).sample)


def _shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
