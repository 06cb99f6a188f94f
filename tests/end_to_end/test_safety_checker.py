"""Pictures that a safety checker looks at, against diffusers; the checkpoint's is tuned so that it finds some."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import FLAGGED_CALL, FLAGGED_PHOTOGRAPHS, FLAGGED_SEEDS
from pairs import IMAGE_TOLERANCE, PROMPT, Pair, open_pair, photograph
from PIL import Image

from safelight.runtime.backends import open_network

pytestmark = [
    # diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

SIZE = (104, 72)
FROM_PHOTOGRAPHS = {**FLAGGED_CALL, "image": [photograph(name, SIZE) for name in FLAGGED_PHOTOGRAPHS]}
SEEDS = list(range(8))
FROM_TEXT = {"prompt": [PROMPT] * len(SEEDS), "num_inference_steps": 2}


@pytest.fixture(scope="module")
def opened(checked_export: Path, checked_checkpoint: Path) -> dict[str, Pair]:
    """Of each task, the two pipelines."""
    names = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
    return {name: open_pair(name, checked_export, checked_checkpoint) for name in names}


def call_both(pair: Pair, seeds: Any, **options: Any) -> list[Any]:
    """The outputs of the same call of both."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [pair[0](seed=list(seeds), **options), pair[1](generator=generators, **options)]


def assert_same(pair: Pair, seeds: Any, **options: Any) -> list[bool]:
    """Both find the same pictures, make those black, and make the others the same; gives what they found."""
    ours, theirs = call_both(pair, seeds, output_type="np", **options)
    found: list[bool] = ours.nsfw_content_detected
    assert found == theirs.nsfw_content_detected
    assert all(type(each) is bool for each in found)
    assert np.abs(ours.images - theirs.images).max() < IMAGE_TOLERANCE
    assert [not image.any() for image in ours.images] == found
    assert theirs.images[~np.array(found)].std() > 0.02, "a flat picture would hide a difference"
    return found


def test_photographs_as_the_checkpoint_is_tuned(opened: dict[str, Pair], caplog: pytest.LogCaptureFixture) -> None:
    pair = opened["StableDiffusionImg2ImgPipeline"]
    assert assert_same(pair, FLAGGED_SEEDS, **FROM_PHOTOGRAPHS) == [True, True, False]
    assert "2 of 3 pictures may be not safe for work and came out black" in caplog.text


def test_text_to_image(opened: dict[str, Pair]) -> None:
    found = assert_same(opened["StableDiffusionPipeline"], SEEDS, **FROM_TEXT)
    assert 0 < sum(found) < len(SEEDS)


def test_pil_images_are_diffusers(opened: dict[str, Pair]) -> None:
    ours, theirs = call_both(opened["StableDiffusionImg2ImgPipeline"], FLAGGED_SEEDS, **FROM_PHOTOGRAPHS)
    assert ours.nsfw_content_detected == theirs.nsfw_content_detected == [True, True, False]
    pictures, expected = (np.stack([np.asarray(image) for image in each.images]).astype(int) for each in (ours, theirs))
    assert np.abs(pictures - expected).max() <= 1
    assert not pictures[:2].any()
    assert pictures[2].std() > 5


def test_inpainting(opened: dict[str, Pair]) -> None:
    mask = Image.new("L", SIZE)
    mask.paste(255, (30, 20, 80, 50))
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 4, "strength": 0.9, "num_images_per_prompt": 8}
    options |= {"image": photograph("coffee", SIZE), "mask_image": mask, "height": 80, "width": 80}
    pair = opened["StableDiffusionInpaintPipeline"]
    found = assert_same(pair, SEEDS, **options)
    assert 0 < sum(found) < len(SEEDS)

    ours, theirs = call_both(pair, SEEDS, padding_mask_crop=8, **options)  # black goes into the picture
    assert ours.nsfw_content_detected == theirs.nsfw_content_detected
    assert 0 < sum(ours.nsfw_content_detected) < len(SEEDS)
    for image, expected, is_black in zip(ours.images, theirs.images, ours.nsfw_content_detected, strict=True):
        pixels = np.asarray(image).astype(int)
        assert np.abs(pixels - np.asarray(expected)).max() <= 1
        assert (not pixels[25:45, 35:75].any()) == is_black
        assert pixels.any()


def test_latents_are_not_looked_at(opened: dict[str, Pair]) -> None:
    for output in call_both(
        opened["StableDiffusionPipeline"], [0], prompt=PROMPT, num_inference_steps=2, output_type="latent"
    ):
        assert output.nsfw_content_detected is None


def test_the_tuple_says_what_was_found(opened: dict[str, Pair]) -> None:
    ours, theirs = call_both(
        opened["StableDiffusionImg2ImgPipeline"], FLAGGED_SEEDS, return_dict=False, **FROM_PHOTOGRAPHS
    )
    assert ours[1] == theirs[1] == [True, True, False]


@pytest.mark.parametrize(
    ("special", "concept", "found"),
    [
        (-0.5, 0.0004, False),
        (-0.5, 0.0006, True),
        (0.3, -0.5, False),
        (0.0006, -0.0094, True),
        (0.0006, -0.0096, False),
        (0.0004, -0.0094, False),
    ],
)
@pytest.mark.parametrize("graph", ["model.onnx", "model.onnxruntime-cpu.onnx"])
def test_near_the_thresholds(
    opened: dict[str, Pair], checked_export: Path, graph: str, special: float, concept: float, found: bool
) -> None:
    """The checkpoint's network with other thresholds; diffusers' with the same."""
    oracle = copy.deepcopy(opened["StableDiffusionPipeline"][1].safety_checker)
    clip_input = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    path = checked_export / "safety_checker" / graph
    scores = open_network(path)({"clip_input": clip_input})
    thresholds = {}
    for name, output, wanted in (
        ("special_care_embeds_weights", "special_scores", special),
        ("concept_embeds_weights", "concept_scores", concept),
    ):
        own = getattr(oracle, name).detach()
        changed = torch.full_like(own, 2)
        changed[-1] = own[-1] + float(scores[output][0, -1]) - wanted
        own.copy_(changed)
        thresholds[name] = changed.numpy()
    result = open_network(path, initializers=thresholds)({"clip_input": clip_input})
    assert result["has_nsfw_concepts"].tolist() == [found]
    assert oracle(torch.from_numpy(clip_input), np.ones((1, 4, 4, 3)))[1] == [found]
