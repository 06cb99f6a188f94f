"""Folders go both ways: what safelight exported runs in optimum-onnx, what optimum-onnx exported runs here."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import export_checkpoint
from pairs import IMAGE_TOLERANCE, PROMPT, photograph

import safelight.runtime
from safelight.runtime import bundled_model
from safelight.runtime.model_folder import open_model_folder

pytestmark = pytest.mark.interchange

Tiny = Callable[[str], tuple[Path, Path]]

SIZE = (104, 72)  # of pictures: 13x9 latents
EVEN = (80, 80)  # 10x10, and their graphs take no odd ones
FEW_STEPS = {"num_inference_steps": 4, "guidance_scale": 5.0}


def inpainting(size: tuple[int, int]) -> dict[str, Any]:
    """A call that paints what is bright in a photograph anew."""
    photo = photograph("coffee", size)
    mask = photo.convert("L").point(lambda value: 255 * (value > 90))
    picture = {"image": photo, "mask_image": mask, "width": size[0], "height": size[1]}
    return {"prompt": PROMPT, **picture, "strength": 0.8, "num_inference_steps": 5}


def latents(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def our_pictures(model: Path, pipeline: str | None = None, *, seed: int = 0, **call: Any) -> np.ndarray:
    ours = getattr(safelight.runtime, pipeline or "DiffusionPipeline").from_pretrained(model)
    ours.set_progress_bar_config(disable=True)
    if getattr(ours, "safety_checker", None) is not None:
        ours.safety_checker = None  # theirs are no graphs
    return np.asarray(ours(seed=seed, output_type="np", **call).images)


def assert_same_pictures(
    optimum: Any, model: Path, pipeline: str, *, tolerance: float = IMAGE_TOLERANCE, **call: Any
) -> None:
    expected = our_pictures(model, pipeline, **call)
    found = optimum.pictures(model, f"ORT{pipeline}", **call)
    assert found.shape == expected.shape
    assert expected.std() > 0.02, "a flat picture would hide a difference"
    assert np.abs(found - expected).max() < tolerance


# ours in theirs


def test_text_to_image_of_two_prompts(optimum: Any, odd_export: Path) -> None:
    assert_same_pictures(
        optimum,
        odd_export,
        "StableDiffusionPipeline",
        prompt=[PROMPT, "pizza"],
        negative_prompt=["", "red"],
        latents=latents(2, 4, 11, 22),  # beside one timestep for all four
        height=88,
        width=176,
        **FEW_STEPS,
    )


def test_velocities(optimum: Any, tiny: Tiny) -> None:
    model, _ = tiny("SD2")
    call = {"prompt": PROMPT, "latents": latents(1, 4, 10, 10), **FEW_STEPS}
    assert_same_pictures(optimum, model, "StableDiffusionPipeline", **call)


def test_sdxl(optimum: Any, tiny: Tiny) -> None:
    model, _ = tiny("SDXL")
    call = {"prompt": PROMPT, "negative_prompt": "red", "latents": latents(1, 4, 10, 10), **FEW_STEPS}
    assert_same_pictures(optimum, model, "StableDiffusionXLPipeline", **call)


def test_latent_consistency(optimum: Any, tiny: Tiny) -> None:
    model, _ = tiny("LCM")
    call = {"prompt": PROMPT, "latents": latents(1, 4, 10, 10), "num_inference_steps": 3, "guidance_scale": 7.0}
    assert_same_pictures(optimum, model, "LatentConsistencyModelPipeline", **call)


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [("LINEAR", "StableDiffusionImg2ImgPipeline"), ("SDXL", "StableDiffusionXLImg2ImgPipeline")],
)
def test_image_to_image(optimum: Any, tiny: Tiny, name: str, pipeline: str) -> None:
    model, _ = tiny(name)
    call = {"prompt": PROMPT, "image": photograph("astronaut", SIZE), "strength": 0.7, "num_inference_steps": 6}
    assert_same_pictures(optimum, model, pipeline, **call)


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("LINEAR", "StableDiffusionInpaintPipeline"),
        ("INPAINTING", "StableDiffusionInpaintPipeline"),
        ("SDXL_INPAINTING", "StableDiffusionXLInpaintPipeline"),
    ],
)
def test_inpainting(optimum: Any, tiny: Tiny, name: str, pipeline: str) -> None:
    model, _ = tiny(name)
    assert_same_pictures(optimum, model, pipeline, **inpainting(SIZE))


@pytest.mark.parametrize("opset", [18, 21])
def test_older_opsets(optimum: Any, linear_checkpoint: Path, opset: int) -> None:
    model = export_checkpoint(linear_checkpoint, opset=opset)
    call = {"prompt": PROMPT, "latents": latents(1, 4, 10, 10), **FEW_STEPS}
    assert_same_pictures(optimum, model, "StableDiffusionPipeline", **call)


def test_half_precision(optimum: Any, linear_checkpoint: Path) -> None:
    model = export_checkpoint(linear_checkpoint, dtype="fp16", validate=False)
    call = {"prompt": PROMPT, "latents": latents(1, 4, 10, 10), **FEW_STEPS}
    assert_same_pictures(optimum, model, "StableDiffusionPipeline", tolerance=2 / 255, **call)


@pytest.mark.parametrize("pipeline", ["ORTDiffusionPipeline", "ORTPipelineForText2Image"])
def test_their_generic_classes_find_the_pipeline(optimum: Any, pipeline: str) -> None:
    """The bundled model: weights stored as halves, a vocabulary of its own, a factor of 4."""
    call = {"prompt": PROMPT, "latents": latents(1, 4, 16, 16), "num_inference_steps": 20, "guidance_scale": 5.0}
    found, expected = optimum.pictures(bundled_model(), pipeline, **call), our_pictures(bundled_model(), **call)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < IMAGE_TOLERANCE


def test_what_they_do_not_know_is_in_nobodys_way(optimum: Any, checked_export: Path, tmp_path: Path) -> None:
    """A safety checker as a graph, the manifest, and folders that belong to no component."""
    model = shutil.copytree(checked_export, tmp_path / "model")
    (model / "fidelity").mkdir(exist_ok=True)
    (model / "fidelity" / "report.json").write_text("{}")
    call = {"prompt": PROMPT, "latents": latents(1, 4, 10, 10), **FEW_STEPS}
    assert_same_pictures(optimum, model, "StableDiffusionPipeline", **call)


def test_what_they_save_again_opens_here(optimum: Any, linear_export: Path, tmp_path: Path) -> None:
    call = {"prompt": PROMPT, "latents": latents(1, 4, 10, 10), **FEW_STEPS}
    expected = optimum.pictures(linear_export, "ORTStableDiffusionPipeline", save_to=tmp_path / "again", **call)
    found = our_pictures(tmp_path / "again", **call)
    assert not (tmp_path / "again" / "safelight.json").exists()
    assert np.abs(found - expected).max() < IMAGE_TOLERANCE


# theirs in ours


TEXT: dict[str, Any] = {"prompt": [PROMPT, "pizza"], "latents": latents(2, 4, 10, 10), **FEW_STEPS}


@pytest.mark.parametrize(
    ("name", "pipeline", "task", "call"),
    [
        ("CHECKED", "StableDiffusionPipeline", "text-to-image", TEXT),
        ("SDXL", "StableDiffusionXLPipeline", "text-to-image", TEXT),
        ("LCM", "LatentConsistencyModelPipeline", "text-to-image", {**TEXT, "guidance_scale": 7.0}),
        ("INPAINTING", "StableDiffusionInpaintPipeline", "inpainting", inpainting(EVEN)),
    ],
)
def test_the_picture_is_theirs_and_ours(
    optimum: Any, tiny: Tiny, name: str, pipeline: str, task: str, call: dict[str, Any]
) -> None:
    ours, checkpoint = tiny(name)
    exported = optimum.export(checkpoint, task, external_data=name == "SDXL")
    assert (exported / "unet" / "model.onnx_data").is_file() == (name == "SDXL")
    assert open_model_folder(exported).manifest is None
    found = our_pictures(exported, pipeline, **call)
    theirs = optimum.pictures(exported, f"ORT{pipeline}", **call)
    assert found.shape == theirs.shape
    assert found.std() > 0.02, "a flat picture would hide a difference"
    assert np.abs(found - theirs).max() < IMAGE_TOLERANCE
    assert np.abs(found - our_pictures(ours, pipeline, **call)).max() < IMAGE_TOLERANCE
