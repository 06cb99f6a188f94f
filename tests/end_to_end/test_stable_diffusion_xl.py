"""Stable Diffusion XL and its refiner, all tasks, against diffusers on the same checkpoints, seeds and photographs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pairs import (
    PROMPT,
    Pair,
    assert_same,
    assert_same_pictures,
    call_both,
    open_pair,
    photograph,
    relative,
    use_scheduler,
)
from PIL import Image
from safetensors.numpy import load_file, save_file

from safelight.runtime import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

pytestmark = [
    # diffusers' own, with NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

Tiny = Callable[[str], tuple[Path, Path]]
SIZE = (104, 72)
LATENTS_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def base(tiny: Tiny) -> Pair:
    return open_pair("StableDiffusionXLPipeline", *tiny("SDXL"))


def for_task(pair: Pair, name: str) -> Pair:
    """Both pipelines for another task."""
    return tuple(
        getattr(module, name).from_pipe(pipeline)
        for module, pipeline in zip((__import__("safelight.runtime").runtime, diffusers), pair, strict=True)
    )  # type: ignore[return-value]


@pytest.fixture(scope="module")
def from_image(base: Pair) -> Pair:
    return for_task(base, "StableDiffusionXLImg2ImgPipeline")


@pytest.fixture(scope="module")
def inpainting(base: Pair) -> Pair:
    return for_task(base, "StableDiffusionXLInpaintPipeline")


@pytest.fixture(scope="module")
def inpainting_unet(tiny: Tiny) -> Pair:
    return open_pair("StableDiffusionXLInpaintPipeline", *tiny("SDXL_INPAINTING"))


@pytest.fixture(scope="module")
def refiner(tiny: Tiny) -> Pair:
    return open_pair("StableDiffusionXLImg2ImgPipeline", *tiny("REFINER"))


@pytest.fixture
def mask() -> Image.Image:
    painted = np.zeros(SIZE[::-1], np.uint8)
    painted[20:60, 30:90] = 255
    return Image.fromarray(painted)


# text to image


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_text_to_image_equals_diffusers(base: Pair, scheduler: str) -> None:
    use_scheduler(base, scheduler)
    assert_same(base, prompt=PROMPT, num_inference_steps=10)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"guidance_scale": 0.0, "num_inference_steps": 1}, id="as SDXL-Turbo is called"),
        pytest.param({"negative_prompt": "red apple"}, id="negative prompt"),
        pytest.param({"negative_prompt": ""}, id="empty negative prompt, which is not none"),
        pytest.param({"prompt_2": "dog", "negative_prompt": "a", "negative_prompt_2": "b"}, id="second prompts"),
        pytest.param({"prompt": ["a", "b"], "negative_prompt": ["c", "d"]}, id="two prompts"),
        pytest.param({"num_images_per_prompt": 2, "seed": [7, 5]}, id="a seed per image"),
        pytest.param({"clip_skip": 1, "negative_prompt": "dog"}, id="clip skip"),
        pytest.param({"guidance_rescale": 0.7}, id="guidance rescale"),
        pytest.param({"height": 56, "width": 88}, id="another size"),
        pytest.param(
            {"original_size": (512, 300), "crops_coords_top_left": (4, 9), "target_size": (64, 72)}, id="sizes"
        ),
        pytest.param(
            {
                "negative_original_size": (64, 64),
                "negative_crops_coords_top_left": (3, 2),
                "negative_target_size": (128, 96),
            },
            id="negative sizes",
        ),
        pytest.param({"denoising_end": 0.6}, id="the first part of the way"),
    ],
)
def test_options_equal_diffusers(base: Pair, options: dict[str, Any]) -> None:
    use_scheduler(base, "EulerDiscreteScheduler")
    assert_same(base, **{"prompt": PROMPT, "num_inference_steps": 5, **options})


def test_sizes_and_prompts_of_the_second_encoder_matter(base: Pair) -> None:
    use_scheduler(base, "EulerDiscreteScheduler")
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "seed": 0}
    plain = base[0](PROMPT, **options).images
    for changed in (
        {"prompt_2": "dog"},
        {"negative_prompt": ""},
        {"original_size": (512, 300)},
        {"crops_coords_top_left": (4, 9)},
        {"target_size": (128, 96)},
    ):
        assert relative(base[0](PROMPT, **options, **changed).images, plain) > 10 * LATENTS_TOLERANCE


def test_embeddings_given_equal_diffusers(base: Pair) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "prompt_embeds": rng.standard_normal((2, 9, 44), dtype=np.float32),
        "negative_prompt_embeds": rng.standard_normal((2, 9, 44), dtype=np.float32),
        "pooled_prompt_embeds": rng.standard_normal((2, 16), dtype=np.float32),
        "negative_pooled_prompt_embeds": rng.standard_normal((2, 16), dtype=np.float32),
    }
    assert_same(base, **arrays, num_inference_steps=3)


def test_callback_sees_and_changes_what_diffusers_does(base: Pair) -> None:
    use_scheduler(base, "EulerDiscreteScheduler")
    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    seen: list[dict[str, Any]] = []

    def callback(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append({name: np.asarray(value).copy() for name, value in tensors.items()})
        if step != 1:
            return {}
        pipeline._guidance_scale = 0.0  # from here on without guidance, as diffusers' documentation does it
        return {name: tensors[name][-1:] * (0.5 if name == "add_text_embeds" else 1) for name in names}

    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    found, expected = call_both(base, prompt=PROMPT, num_inference_steps=4, output_type="latent", **options)
    assert relative(found, expected) < LATENTS_TOLERANCE
    theirs, ours = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for one, other in zip(ours, theirs, strict=True):
        for name in names:
            assert relative(one[name], other[name]) < LATENTS_TOLERANCE, name
    assert len(ours[-1]["prompt_embeds"]) == 1


def test_long_prompts_are_equally_long_for_both_encoders(base: Pair) -> None:
    ours = StableDiffusionXLPipeline.from_pipe(base[0])
    ours.enable_long_prompts()
    short = ours("cat", num_inference_steps=1, output_type="latent", seed=0).images
    np.testing.assert_array_equal(short, base[0]("cat", num_inference_steps=1, output_type="latent", seed=0).images)
    (long,) = ours._halves(prompts("cat " * 40, prompt_2="dog"), guided=False)
    assert long.hidden.shape == (1, 64, 44)
    assert long.pooled is not None
    (second,) = ours._halves(prompts("cat", prompt_2="dog"), guided=False)
    np.testing.assert_allclose(long.hidden[:, :32, 24:], second.hidden[:, :, 24:], atol=1e-5)
    np.testing.assert_allclose(long.pooled, second.pooled, atol=1e-5)


def prompts(prompt: str, **options: Any) -> Any:
    from safelight.runtime.pipelines.prompts import Prompts

    return Prompts(prompt=prompt, **options)


# image to image, and the refiner


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
def test_photographs_equal_diffusers(from_image: Pair, photo: str) -> None:
    use_scheduler(from_image, "EulerDiscreteScheduler")
    options: dict[str, Any] = {"prompt": PROMPT, "image": photograph(photo, SIZE), "num_inference_steps": 10}
    assert_same(from_image, **options, strength=0.5)
    assert_same_pictures(from_image, **options, strength=0.5)


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("denoising_start", [0.5, 0.63])
def test_going_on_from_latents_equals_diffusers(from_image: Pair, scheduler: str, denoising_start: float) -> None:
    use_scheduler(from_image, scheduler)
    image = np.random.default_rng(0).standard_normal((1, 4, 9, 13), dtype=np.float32)
    assert_same(from_image, prompt=PROMPT, image=image, num_inference_steps=10, denoising_start=denoising_start)
    assert_same(
        from_image,
        prompt=PROMPT,
        image=image,
        num_inference_steps=10,
        denoising_start=denoising_start,
        denoising_end=0.9,
    )


@pytest.mark.parametrize("steps", [2, 4])
def test_turbo_starts_from_images_too(from_image: Pair, steps: int) -> None:
    use_scheduler(from_image, "EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    options: dict[str, Any] = {"image": photograph("chelsea", SIZE), "strength": 0.5, "guidance_scale": 0.0}
    assert_same(from_image, prompt=PROMPT, num_inference_steps=steps, **options)


def test_several_images_equal_diffusers(from_image: Pair) -> None:
    use_scheduler(from_image, "DDIMScheduler")
    images = [photograph("chelsea", SIZE), photograph("coffee", SIZE)]
    options: dict[str, Any] = {"prompt": ["a", "b"], "image": images, "num_inference_steps": 5, "strength": 0.8}
    assert_same(from_image, **options)
    assert_same(from_image, **options, seed=[1, 2])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0}, id="scores"),
        pytest.param({"original_size": (512, 300), "negative_crops_coords_top_left": (4, 9)}, id="sizes"),
        pytest.param({"guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"negative_prompt": "dog", "strength": 0.9}, id="negative prompt"),
    ],
)
def test_refiner_equals_diffusers(refiner: Pair, options: dict[str, Any]) -> None:
    given = {"prompt": PROMPT, "image": photograph("coffee", SIZE), "num_inference_steps": 10, **options}
    assert_same(refiner, **given)


def test_base_and_refiner_in_a_row_equal_diffusers(base: Pair, refiner: Pair) -> None:
    use_scheduler(base, "EulerDiscreteScheduler")
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 10}
    begun, expected = call_both(base, **options, denoising_end=0.7, output_type="latent")
    ours = refiner[0](**options, image=begun, denoising_start=0.7, seed=0, output_type="latent").images
    generator = torch.Generator().manual_seed(0)
    theirs = refiner[1](
        **options, image=torch.from_numpy(expected), denoising_start=0.7, generator=generator, output_type="latent"
    ).images
    assert relative(ours, theirs.numpy()) < LATENTS_TOLERANCE


def test_a_refiner_has_one_text_encoder(refiner: Pair) -> None:
    ours = refiner[0]
    assert ours.text_encoder is None
    assert ours.tokenizer is None
    assert len(ours.prompt_encoders) == 1


# inpainting


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"strength": 1.0}, id="from noise"),
        pytest.param({"strength": 0.5, "guidance_scale": 1.0}, id="half the way"),
        pytest.param({"denoising_start": 0.5}, id="going on"),
        pytest.param({"seed": [1, 2], "num_images_per_prompt": 2}, id="a seed per image"),
    ],
)
@pytest.mark.parametrize("unet", ["inpainting", "inpainting_unet"])
def test_inpainting_equals_diffusers(
    request: pytest.FixtureRequest, unet: str, mask: Image.Image, options: dict[str, Any]
) -> None:
    pair = request.getfixturevalue(unet)
    use_scheduler(pair, "EulerDiscreteScheduler")
    given = {"image": photograph("chelsea", SIZE), "mask_image": mask, "height": 72, "width": 104, **options}
    assert_same(pair, prompt=PROMPT, num_inference_steps=6, **given)


def test_inpainting_with_a_crop_equals_diffusers(inpainting: Pair, mask: Image.Image) -> None:
    use_scheduler(inpainting, "DDIMScheduler")
    given = {"image": photograph("coffee", SIZE), "mask_image": mask, "height": 64, "width": 64, "padding_mask_crop": 8}
    options: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 4, "strength": 0.8, **given}
    found = np.asarray(inpainting[0](**options, seed=0).images[0], dtype=np.float32)
    expected = np.asarray(inpainting[1](**options, generator=torch.Generator().manual_seed(0)).images[0], np.float32)
    assert np.abs(found - expected).max() <= 1


# what is refused, and which class is chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoising_end": 0.0}, r"^denoising_end must lie between 0 and 1, got 0.0; leave it out"),
        ({"denoising_end": 1.2}, r"^denoising_end must lie between 0 and 1, got 1.2; leave it out"),
        ({"prompt": ["a", "b"], "prompt_2": "c"}, r"^prompt_2 must be as many as prompt, got 1 and 2$"),
        ({"original_size": (1, 2, 3)}, r"^an original size is two numbers, got \(1, 2, 3\)$"),
        ({"prompt": None, "prompt_embeds": np.zeros((1, 9, 44))}, r"^prompt_embeds needs pooled_prompt_embeds"),
        (
            {"prompt": None, "prompt_embeds": np.zeros((1, 9, 44)), "pooled_prompt_embeds": np.zeros((1, 17))},
            r"^pooled_prompt_embeds must be of shape \(batch, 16\), got \(1, 17\)$",
        ),
        ({"clip_skip": 2}, r"^clip_skip must lie between 0 and 1 for this model, got 2$"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"^callbacks are given latents, .*; there is no noise$"),
        (
            {"negative_prompt": "a", "negative_prompt_embeds": np.zeros((1, 9, 44))},
            r"negative_prompt_embeds, got both$",
        ),
    ],
)
def test_bad_calls_are_refused(base: Pair, options: dict[str, Any], message: str) -> None:
    use_scheduler(base, "EulerDiscreteScheduler")
    with pytest.raises(ValueError, match=message):
        base[0](**{"prompt": PROMPT, "num_inference_steps": 5, **options})


def test_an_end_before_the_first_timestep_is_refused(base: Pair) -> None:
    use_scheduler(base, "DDIMScheduler", timestep_spacing="leading")  # the first is not the last of the training
    with pytest.raises(ValueError, match=r"^denoising_end 0.001 leaves none of 5 timesteps: raise it"):
        base[0](PROMPT, num_inference_steps=5, denoising_end=0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoising_start": 1.0}, r"^denoising_start must lie between 0 and 1, got 1.0"),
        ({"denoising_start": 0.9999}, r"^denoising_start 0.9999 leaves none of 10 timesteps: lower it"),
        (
            {"denoising_start": 0.5, "denoising_end": 0.5},
            r"^denoising_start must be below denoising_end, got 0.5 and 0.5$",
        ),
        ({"image": None}, r"^give an image$"),
        ({"strength": 1.5}, r"^strength must lie in \[0, 1\], got 1.5$"),
        ({"latents": np.zeros((2, 4, 8, 8))}, r"^latents must be \(1, 4, height, width\), got \(2, 4, 8, 8\)$"),
    ],
)
def test_bad_images_are_refused(from_image: Pair, options: dict[str, Any], message: str) -> None:
    use_scheduler(from_image, "EulerDiscreteScheduler")
    with pytest.raises(ValueError, match=message):
        from_image[0](**{"prompt": PROMPT, "image": photograph("coffee", SIZE), "num_inference_steps": 10, **options})


def test_a_refiner_does_not_start_from_noise(tiny: Tiny) -> None:
    with (
        StableDiffusionXLPipeline.from_pretrained(tiny("REFINER")[0]) as pipeline,
        pytest.raises(ValueError, match=r"this is a refiner, .* use StableDiffusionXLImg2ImgPipeline"),
    ):
        pipeline(PROMPT)


def test_the_folder_names_the_class_and_tasks_share_networks(tiny: Tiny) -> None:
    with DiffusionPipeline.from_pretrained(tiny("SDXL")[0]) as pipeline:
        assert type(pipeline) is StableDiffusionXLPipeline
        from_image = AutoPipelineForImage2Image.from_pipe(pipeline)
        inpainting = AutoPipelineForInpainting.from_pipe(from_image)
        assert type(from_image) is StableDiffusionXLImg2ImgPipeline
        assert type(inpainting) is StableDiffusionXLInpaintPipeline
        assert inpainting.components == pipeline.components


# what model_index.json says, and does not


def test_no_negative_prompt_is_zeros_where_nothing_is_said(tiny: Tiny, tmp_path: Path) -> None:
    unrecorded = shutil.ignore_patterns("safelight.json")  # which would say that the index was changed
    folder = Path(shutil.copytree(tiny("SDXL")[0], tmp_path / "model", ignore=unrecorded))
    options: dict[str, Any] = {"num_inference_steps": 1, "seed": 0, "output_type": "latent"}
    made = {}
    for said in (True, False, None):
        index = json.loads((folder / "model_index.json").read_text())
        index = {key: value for key, value in index.items() if key != "force_zeros_for_empty_prompt"}
        index |= {} if said is None else {"force_zeros_for_empty_prompt": said}
        (folder / "model_index.json").write_text(json.dumps(index))
        with StableDiffusionXLPipeline.from_pretrained(folder) as pipeline:
            made[said] = pipeline(PROMPT, **options).images
    np.testing.assert_array_equal(made[None], made[True])
    assert relative(made[False], made[True]) > LATENTS_TOLERANCE


def test_without_text_encoders_embeddings_are_asked_for(base: Pair) -> None:
    without = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = StableDiffusionXLPipeline.from_pretrained(base[0].folder.path, **without)
    with pytest.raises(ValueError, match=r"^this pipeline has no text encoder: give prompt_embeds"):
        pipeline(PROMPT)
    embeds = {"prompt_embeds": np.ones((1, 9, 44)), "pooled_prompt_embeds": np.ones((1, 16))}
    assert pipeline(**embeds, num_inference_steps=1, output_type="latent").images.shape == (1, 4, 10, 10)


# textual inversion


@pytest.fixture
def embedding(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    parts = {"clip_l": rng.standard_normal((2, 24)), "clip_g": rng.standard_normal((2, 20))}
    save_file({name: vectors.astype(np.float32) for name, vectors in parts.items()}, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def test_textual_inversion_teaches_both_text_encoders(tiny: Tiny, embedding: Path) -> None:
    ours, theirs = open_pair("StableDiffusionXLPipeline", *tiny("SDXL"))
    ours.load_textual_inversion(embedding, token="<toy>")
    state = load_file(embedding)
    for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
        parts = {key: getattr(theirs, f"{key}{suffix}") for key in ("tokenizer", "text_encoder")}
        theirs.load_textual_inversion(torch.from_numpy(state[name]), token="<toy>", **parts)
    assert_same((ours, theirs), prompt="a <toy> on a beach", num_inference_steps=3)
    without = ours("a toy on a beach", num_inference_steps=1, seed=0, output_type="latent").images
    taught = ours("a <toy> on a beach", num_inference_steps=1, seed=0, output_type="latent").images
    assert relative(taught, without) > 10 * LATENTS_TOLERANCE


def test_embeddings_for_one_text_encoder_are_refused(tiny: Tiny, embedding: Path, linear_export: Path) -> None:
    save_file({"<toy>": np.zeros((1, 24), np.float32)}, embedding.with_stem("one"))
    wide = {"clip_l": np.zeros((1, 24), np.float32), "clip_g": np.zeros((1, 21), np.float32)}
    save_file(wide, embedding.with_stem("wide"))
    with DiffusionPipeline.from_pretrained(tiny("SDXL")[0]) as pipeline:
        with pytest.raises(ValueError, match=r"must hold clip_g and clip_l, the embeddings of one token for the two"):
            pipeline.load_textual_inversion(embedding.with_stem("one"))
        with pytest.raises(ValueError, match=r"embeddings have a width of 20, those of 'wide' have 21"):
            pipeline.load_textual_inversion(embedding.with_stem("wide"))
        assert pipeline.tokenizer.token_ids("wide") == pipeline.tokenizer_2.token_ids("wide")  # neither has learned it
    with (
        DiffusionPipeline.from_pretrained(linear_export) as pipeline,
        pytest.raises(ValueError, match=r"for the two text encoders of SDXL, and this model has one$"),
    ):
        pipeline.load_textual_inversion(embedding)
