import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from safelight.reference import CLIPTextModel

SMALL = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 13,
    "bos_token_id": 95,
    "eos_token_id": 96,
    "pad_token_id": 96,
}

CONFIGS = {
    "quick_gelu": SMALL,
    "gelu, three layers": {
        **SMALL,
        "hidden_act": "gelu",
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    },
    "mistaken end-of-text token, large epsilon": {**SMALL, "eos_token_id": 2, "layer_norm_eps": 1e-2},
    "another end-of-text token": {**SMALL, "eos_token_id": 50, "num_hidden_layers": 1},
}


@pytest.fixture(params=CONFIGS)
def oracle(request, randomize):
    return randomize(transformers.CLIPTextModel(transformers.CLIPTextConfig(**CONFIGS[request.param])))


@pytest.fixture
def small(randomize):
    return randomize(transformers.CLIPTextModel(transformers.CLIPTextConfig(**SMALL)))


@pytest.fixture
def input_ids():
    """The end-of-text token (96 and, elsewhere, 50) comes in the middle, and is repeated as padding."""
    ids = torch.randint(3, 50, (3, 13), generator=torch.Generator().manual_seed(0))
    ids[0, 5:], ids[1, 12], ids[2, 3] = 96, 96, 96
    ids[0, 4], ids[2, 9:] = 50, 50
    return ids


def test_equals_transformers(oracle, saved, input_ids, assert_equal):
    result = CLIPTextModel.from_pretrained(saved(oracle))(input_ids)
    expected = oracle(input_ids, output_hidden_states=True)
    assert_equal(result.last_hidden_state, expected.last_hidden_state)
    assert_equal(result.pooler_output, expected.pooler_output)
    assert len(result.hidden_states) == oracle.config.num_hidden_layers + 1
    for state, expected_state in zip(result.hidden_states, expected.hidden_states, strict=True):
        assert_equal(state, expected_state)


def test_equals_transformers_for_short_int32_sequences(small, saved, input_ids, assert_equal):
    ids = input_ids[:1, :6].int()
    result, expected = CLIPTextModel.from_pretrained(saved(small))(ids), small(ids)
    assert_equal(result.last_hidden_state, expected.last_hidden_state)
    assert_equal(result.pooler_output, expected.pooler_output)


def test_has_the_parameters_of_transformers(oracle):
    with torch.device("meta"):
        encoder = CLIPTextModel.from_config(oracle.config.to_dict())
    expected = {CLIPTextModel.parameter_name(name): tuple(value.shape) for name, value in oracle.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == expected
    assert all(name.startswith("text_model.") for name in expected)


@pytest.mark.parametrize("prefix", ["", "text_model."], ids=["transformers 5", "transformers 4"])
def test_loads_both_spellings(small, saved, input_ids, assert_equal, prefix):
    folder = saved(small)
    file = folder / "model.safetensors"
    weights = {prefix + name.removeprefix("text_model."): value for name, value in load_file(file).items()}
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(13)[None]
    save_file(weights, file)
    result = CLIPTextModel.from_pretrained(folder)(input_ids)
    assert_equal(result.last_hidden_state, small(input_ids).last_hidden_state)


@pytest.mark.full_shape
def test_equals_transformers_at_the_shape_of_stable_diffusion_1_5(randomize, assert_equal):
    config = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=2, projection_dim=768
    )
    oracle = randomize(transformers.CLIPTextModel(config))
    with torch.device("meta"):
        encoder = CLIPTextModel.from_config(config.to_dict())
    weights = {CLIPTextModel.parameter_name(name): value for name, value in oracle.state_dict().items()}
    encoder.load_state_dict(weights, assign=True)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 123_060_480
    input_ids = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    result, expected = encoder(input_ids), oracle(input_ids)
    assert_equal(result.last_hidden_state, expected.last_hidden_state)
    assert_equal(result.pooler_output, expected.pooler_output)
