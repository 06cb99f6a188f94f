import json

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker as Oracle
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from safelight.reference import SafetyCheckerConfig, StableDiffusionSafetyChecker

VISION = {
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 40,
    "patch_size": 8,
}

#: of CompVis/stable-diffusion-safety-checker; what is not named has transformers' default
PUBLISHED = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}


@pytest.fixture
def oracle(randomize):
    return randomize(Oracle(CLIPConfig(projection_dim=14, vision_config=VISION)))


@pytest.fixture
def pictures(noise):
    return noise(8, 3, 40, 40)


def decisions(oracle, clip_input):
    """What diffusers decides; it makes what it finds black, in place."""
    images, found = oracle(clip_input, np.ones((len(clip_input), 4, 4, 3)))
    assert [not image.any() for image in images] == found
    return found


def cosines(oracle, clip_input, concepts):
    embeds = oracle.visual_projection(oracle.vision_model(clip_input).pooler_output)
    return torch.nn.functional.cosine_similarity(embeds[:, None], concepts[None], dim=-1)


def test_equals_diffusers(oracle, saved, pictures, assert_equal):
    special, concepts = (
        cosines(oracle, pictures, each) for each in (oracle.special_care_embeds, oracle.concept_embeds)
    )
    oracle.special_care_embeds_weights.copy_(special.amax(dim=0) + 0.1)
    oracle.special_care_embeds_weights[0] -= 0.1005  # found in one picture
    oracle.concept_embeds_weights.copy_(concepts.amax(dim=0) + 0.1)
    oracle.concept_embeds_weights[3] = concepts[:, 3].quantile(0.7)
    result = StableDiffusionSafetyChecker.from_pretrained(saved(oracle))(pictures)
    expected = decisions(oracle, pictures)
    assert 0 < sum(expected) < len(expected)
    assert result.has_nsfw_concepts.tolist() == expected
    assert_equal(result.special_scores, special - oracle.special_care_embeds_weights)
    assert_equal(result.concept_scores, concepts - oracle.concept_embeds_weights)


@pytest.mark.parametrize(
    ("special", "concept", "found"),
    [
        (-0.5, 0.0004, False),  # which `forward_onnx` of diffusers finds
        (-0.5, 0.0006, True),
        (0.3, -0.0006, True),
        (0.3, -0.5, False),  # special care alone is no reason
        (0.0006, -0.0094, True),
        (0.0006, -0.0096, False),  # which `forward_onnx` finds
        (0.0004, -0.0094, False),  # likewise
        (0.0004, 0.0006, True),
    ],
)
def test_decides_as_diffusers_near_the_thresholds(oracle, saved, pictures, special, concept, found):
    """The last concepts have these scores, the others are nowhere near."""
    picture = pictures[:1]
    for embeds, weights, score in (
        (oracle.special_care_embeds, oracle.special_care_embeds_weights, special),
        (oracle.concept_embeds, oracle.concept_embeds_weights, concept),
    ):
        weights.fill_(2)
        weights[-1] = cosines(oracle, picture, embeds)[0, -1] - score
    assert decisions(oracle, picture) == [found]
    result = StableDiffusionSafetyChecker.from_pretrained(saved(oracle))(picture)
    assert result.has_nsfw_concepts.tolist() == [found]
    assert result.special_scores[0, -1].item() == pytest.approx(special, abs=1e-5)
    assert result.concept_scores[0, -1].item() == pytest.approx(concept, abs=1e-5)


def test_has_the_parameters_of_diffusers_at_the_published_shape():
    with torch.device("meta"):
        oracle = Oracle(CLIPConfig(**PUBLISHED))
        checker = StableDiffusionSafetyChecker.from_config(PUBLISHED)
    named = {checker.parameter_name(name): tuple(value.shape) for name, value in oracle.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in checker.state_dict().items()}
    assert found == named
    assert sum(parameter.numel() for parameter in checker.parameters()) == 303_981_588
    assert found["vision_model.vision_model.embeddings.position_embedding.weight"] == (257, 1024)
    assert found["concept_embeds"] == (17, 768)
    assert found["special_care_embeds_weights"] == (3,)


@pytest.mark.parametrize("prefix", ["vision_model.", "vision_model.vision_model."], ids=["5", "4"])
def test_loads_what_either_transformers_writes(oracle, saved, pictures, assert_equal, prefix):
    folder = saved(oracle)
    file = folder / "model.safetensors"
    weights = {
        name if not name.startswith("vision_model.") else prefix + name.removeprefix("vision_model."): value
        for name, value in load_file(file).items()
    }
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(26)[None]
    save_file(weights, file)
    result = StableDiffusionSafetyChecker.from_pretrained(folder)(pictures)
    assert_equal(
        result.concept_scores, cosines(oracle, pictures, oracle.concept_embeds) - oracle.concept_embeds_weights
    )


def test_weights_must_be_complete(oracle, saved):
    folder = saved(oracle)
    weights = load_file(folder / "model.safetensors")
    weights["concepts"] = weights.pop("concept_embeds")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: concept_embeds; 1 surplus: concepts"):
        StableDiffusionSafetyChecker.from_pretrained(folder)


@pytest.mark.parametrize(
    "values",
    [
        {},
        PUBLISHED,
        {"vision_config": {**VISION, "image_size": 64}, "vision_config_dict": VISION, "projection_dim": 20},
        {"vision_config": {"num_hidden_layers": 5}, "vision_config_dict": {}},
        {"vision_config": VISION, "vision_config_dict": None},
    ],
    ids=["nothing", "published", "two of the vision model", "defaults before what is there", "none"],
)
def test_configuration_is_read_as_transformers_reads_it(values):
    theirs = CLIPConfig.from_dict({"model_type": "clip", **json.loads(json.dumps(values))}).to_dict()
    ours = SafetyCheckerConfig.from_dict(values)
    assert ours == SafetyCheckerConfig.from_dict(theirs)
    assert SafetyCheckerConfig.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "clip_vision_model"}, "StableDiffusionSafetyChecker, got model_type 'clip_vision_model'"),
        ({"vision_config": {"model_type": "clip"}}, "expected the configuration of CLIPVisionModel, .* 'clip'"),
        ({"vision_config": "large"}, "vision_config must be CLIPVisionConfig, got 'large'"),
        ({"vision_config": {"hidden_act": "relu"}}, r"hidden_act must be one of \['quick_gelu', 'gelu'\], got 'relu'"),
        ({"vision_config": {"num_attention_heads": 7}}, "hidden_size 768 is no multiple of num_attention_heads 7"),
        ({"vision_config": {"image_size": [224, 224]}}, r"image_size must be int, got \[224, 224\]"),
        ({"projection_dim": None}, "projection_dim must be int, got None"),
    ],
)
def test_names_the_key_that_is_wrong(values, message):
    with pytest.raises(ValueError, match=message):
        SafetyCheckerConfig.from_dict(values)
