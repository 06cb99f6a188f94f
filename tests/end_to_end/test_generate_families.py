"""`safelight generate` with the models of every family: the same pictures as from Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from pairs import PROMPT, photograph
from PIL import Image

from safelight.runtime import AutoencoderTiny, DiffusionPipeline, StableDiffusionXLInpaintPipeline, cli

Tiny = Callable[[str], tuple[Path, Path]]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    photograph("coffee", (104, 72)).save(tmp_path / "coffee.png")
    return tmp_path / "coffee.png"


def generated(folder: Path, *arguments: Any) -> np.ndarray:
    """The picture, or the array, that the command makes with seed 3."""
    output = folder / ("made.npy" if "--output-type" in arguments else "made.png")
    words = [str(argument) for argument in arguments]
    assert cli.main(["generate", *words, "--seed", "3", "--output", str(output), "--no-progress"]) == 0
    return np.load(output) if output.suffix == ".npy" else np.asarray(Image.open(output))


def opened(folder: Path, kind: Any = DiffusionPipeline, **components: Any) -> Any:
    pipeline = kind.from_pretrained(folder, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_base_and_refiner_of_sdxl(tiny: Tiny, tmp_path: Path) -> None:
    base, refiner = tiny("SDXL")[0], tiny("REFINER")[0]
    steps = ["--num-inference-steps", 5]
    words = [PROMPT, "--prompt-2", "dog", "--negative-prompt", "a", "--negative-prompt-2", "b", *steps]
    begun = generated(tmp_path, *words, "--model", base, "--denoising-end", 0.6, "--output-type", "latent")
    options: dict[str, Any] = {"num_inference_steps": 5, "seed": 3}
    texts = {"prompt_2": "dog", "negative_prompt": "a", "negative_prompt_2": "b"}
    expected = opened(base)(PROMPT, **texts, **options, denoising_end=0.6, output_type="latent").images
    np.testing.assert_array_equal(begun, expected)

    words = [PROMPT, *steps, "--model", refiner, "--image", tmp_path / "made.npy", "--denoising-start", 0.6]
    finished = generated(tmp_path, *words)
    expected = opened(refiner)(PROMPT, image=begun, **options, denoising_start=0.6).images[0]
    np.testing.assert_array_equal(finished, np.asarray(expected))


def test_image_to_image_and_inpainting_of_sdxl(tiny: Tiny, tmp_path: Path, picture: Path) -> None:
    folder = tiny("SDXL")[0]
    painted = np.zeros((72, 104), np.uint8)
    painted[20:60, 30:90] = 255
    Image.fromarray(painted).save(tmp_path / "mask.png")
    size = ["--height", 72, "--width", 104, "--num-inference-steps", 3]
    words = [PROMPT, "--model", folder, *size, "--image", picture, "--mask", tmp_path / "mask.png", "--strength", 0.7]
    found = generated(tmp_path, *words)
    options: dict[str, Any] = {"height": 72, "width": 104, "num_inference_steps": 3, "strength": 0.7, "seed": 3}
    images = {"image": Image.open(picture), "mask_image": Image.open(tmp_path / "mask.png")}
    expected = opened(folder, StableDiffusionXLInpaintPipeline)(PROMPT, **images, **options).images[0]
    np.testing.assert_array_equal(found, np.asarray(expected))
    again = generated(tmp_path, "--from-image", tmp_path / "made.png")
    np.testing.assert_array_equal(again, found)


def test_latent_consistency_models_have_their_own_defaults(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("LCM")[0]
    found = generated(tmp_path, PROMPT, "--model", folder)
    np.testing.assert_array_equal(found, np.asarray(opened(folder)(PROMPT, seed=3).images[0]))


def test_instruct_pix2pix_takes_a_picture(tiny: Tiny, tmp_path: Path, picture: Path) -> None:
    folder = tiny("PIX2PIX")[0]
    words = [PROMPT, "--model", folder, "--image", picture, "--image-guidance-scale", 2.5, "--num-inference-steps", 3]
    found = generated(tmp_path, *words)
    options: dict[str, Any] = {"image_guidance_scale": 2.5, "num_inference_steps": 3, "seed": 3}
    expected = opened(folder)(PROMPT, Image.open(picture), **options).images[0]
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_another_autoencoder(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("SD2")[0]
    vae = checkpoints.export_checkpoint(checkpoints.make_tiny_autoencoder())
    found = generated(tmp_path, PROMPT, "--model", folder, "--vae", vae, "--num-inference-steps", 2)
    pipeline = opened(folder, vae=AutoencoderTiny.from_pretrained(vae))
    np.testing.assert_array_equal(found, np.asarray(pipeline(PROMPT, num_inference_steps=2, seed=3).images[0]))
    again = generated(tmp_path, "--from-image", tmp_path / "made.png")
    np.testing.assert_array_equal(again, found)


def test_options_that_a_family_lacks_are_refused(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny("SD2")[0])
    assert cli.main(["generate", PROMPT, "--model", folder, "--prompt-2", "dog", "--denoising-end", "0.5"]) != 0
    assert "StableDiffusionPipeline takes no --prompt-2, --denoising-end" in capsys.readouterr().err
