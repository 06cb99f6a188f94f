import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from safelight.reference import CLIPVisionModel, CLIPVisionModelWithProjection

SMALL = {
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 40,
    "patch_size": 8,
    "projection_dim": 14,
}

CONFIGS = {
    "quick_gelu": SMALL,
    "gelu, one channel, large epsilon": {**SMALL, "hidden_act": "gelu", "num_channels": 1, "layer_norm_eps": 1e-2},
    "patches that do not fill the picture": {**SMALL, "patch_size": 9},
}

#: of CLIP ViT-L/14, the model in Stable Diffusion's safety checker; what is not named has transformers' default
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return transformers.CLIPVisionConfig(**CONFIGS[request.param])


def pictures(config, noise):
    return noise(2, config.num_channels, config.image_size, config.image_size)


def shapes(network, state_dict):
    return {network.parameter_name(name): tuple(value.shape) for name, value in state_dict.items()}


def test_equals_transformers(config, randomize, saved, noise, assert_equal):
    oracle = randomize(transformers.CLIPVisionModel(config))
    result = CLIPVisionModel.from_pretrained(saved(oracle))(pictures(config, noise))
    expected = oracle(pictures(config, noise))
    assert_equal(result.last_hidden_state, expected.last_hidden_state)
    assert_equal(result.pooler_output, expected.pooler_output)


def test_projection_equals_transformers(config, randomize, saved, noise, assert_equal):
    oracle = randomize(transformers.CLIPVisionModelWithProjection(config))
    result = CLIPVisionModelWithProjection.from_pretrained(saved(oracle))(pictures(config, noise))
    assert_equal(result, oracle(pictures(config, noise)).image_embeds)


@pytest.mark.parametrize("network", [CLIPVisionModel, CLIPVisionModelWithProjection])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "ViT-L/14"])
def test_has_the_parameters_of_transformers(network, size):
    with torch.device("meta"):
        oracle = getattr(transformers, network.__name__)(transformers.CLIPVisionConfig(**size))
        model = network.from_config(oracle.config.to_dict())
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert found == shapes(network, oracle.state_dict())
    assert all(name.startswith(("vision_model.", "visual_projection.")) for name in found)


@pytest.mark.parametrize("prefix", ["", "vision_model."], ids=["transformers 5", "transformers 4"])
def test_loads_both_spellings(randomize, saved, noise, assert_equal, prefix):
    oracle = randomize(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL)))
    folder = saved(oracle)
    file = folder / "model.safetensors"
    weights = {prefix + name.removeprefix("vision_model."): value for name, value in load_file(file).items()}
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(26)[None]
    save_file(weights, file)
    pixel_values = noise(1, 3, 40, 40)
    assert_equal(
        CLIPVisionModel.from_pretrained(folder)(pixel_values).pooler_output, oracle(pixel_values).pooler_output
    )
