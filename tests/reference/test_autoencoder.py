import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.reference import AutoencoderKL

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def config(*channels, **others):
    levels = len(channels)
    return {
        "block_out_channels": channels,
        "down_block_types": (DOWN,) * levels,
        "up_block_types": (UP,) * levels,
        **others,
    }


CONFIGS = {
    "two levels": config(24, 40, norm_num_groups=8),
    "three levels, two layers, without attention": config(
        24, 40, 72, norm_num_groups=4, layers_per_block=2, mid_block_add_attention=False
    ),
    "four levels, 16 latent channels, without quantization": config(
        16, 24, 24, 40, norm_num_groups=8, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False
    ),
    "one level, grey": config(24, norm_num_groups=2, in_channels=1, out_channels=1, latent_channels=3),
}


@pytest.fixture(params=CONFIGS)
def oracle(request, randomize):
    return randomize(diffusers.AutoencoderKL(sample_size=32, **CONFIGS[request.param]))


@pytest.fixture
def small(randomize):
    return randomize(diffusers.AutoencoderKL(**CONFIGS["two levels"]))


@pytest.mark.parametrize("size", [(32, 48), (27, 37)], ids=str)
def test_encodes_as_diffusers(oracle, saved, noise, assert_equal, size):
    autoencoder = AutoencoderKL.from_pretrained(saved(oracle))
    image = noise(2, oracle.config.in_channels, *size)
    result, expected = autoencoder.encode(image).latent_dist, oracle.encode(image).latent_dist
    assert_equal(result.parameters, expected.parameters)
    assert_equal(result.mode(), expected.mode())
    assert_equal(result.std, expected.std)
    assert_equal(result.sample(torch.Generator().manual_seed(3)), expected.sample(torch.Generator().manual_seed(3)))


def test_decodes_as_diffusers(oracle, saved, noise, assert_equal):
    autoencoder = AutoencoderKL.from_pretrained(saved(oracle))
    latents = noise(2, oracle.config.latent_channels, 5, 11)
    assert_equal(autoencoder.decode(latents).sample, oracle.decode(latents).sample)


def test_forward_decodes_the_mode(small, saved, noise, assert_equal):
    image = noise(1, 3, 16, 16)
    assert_equal(AutoencoderKL.from_pretrained(saved(small))(image).sample, small(image).sample)


def test_has_the_parameters_of_diffusers(oracle):
    with torch.device("meta"):
        autoencoder = AutoencoderKL.from_config(oracle.config)
    assert _shapes(autoencoder) == _shapes(oracle)


@pytest.mark.parametrize("spatial", [False, True], ids=["linear", "1x1 convolution"])
def test_loads_attention_as_it_was_once_named(small, saved, noise, assert_equal, spatial):
    folder = saved(small)
    file = folder / "diffusion_pytorch_model.safetensors"
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in load_file(file).items():
        for new, old in old_names.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{old}.")
                value = value[:, :, None, None].contiguous() if spatial and value.ndim == 2 else value
        weights[name] = value
    assert sum("proj_attn" in name for name in weights) == 4
    save_file(weights, file)
    autoencoder = AutoencoderKL.from_pretrained(folder)
    image, latents = noise(1, 3, 16, 16), noise(1, 4, 8, 8)
    assert_equal(autoencoder.encode_parameters(image), small.encode(image).latent_dist.parameters)
    assert_equal(autoencoder.decode_sample(latents), small.decode(latents).sample)


@pytest.mark.full_shape
def test_equals_diffusers_at_the_shape_of_stable_diffusion_1_5(noise, assert_equal):
    oracle = diffusers.AutoencoderKL(**config(128, 256, 512, 512, layers_per_block=2)).eval()
    with torch.device("meta"):
        autoencoder = AutoencoderKL.from_config(oracle.config)
    autoencoder.load_state_dict(oracle.state_dict(), assign=True)
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == 83_653_863
    image, latents = noise(1, 3, 88, 136), noise(1, 4, 11, 17)
    assert_equal(autoencoder.encode_parameters(image), oracle.encode(image).latent_dist.parameters)
    assert_equal(autoencoder.decode_sample(latents), oracle.decode(latents).sample)


def _shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
