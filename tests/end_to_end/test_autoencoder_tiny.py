"""A tiny autoencoder in place of a pipeline's own, and alone, against diffusers."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import diffusers
import numpy as np
import pytest
import torch
from pairs import PROMPT, Pair, assert_same, assert_same_pictures, open_pair, photograph, relative, use_scheduler
from PIL import Image

from safelight.runtime import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, StableDiffusionPipeline

Tiny = Callable[[str], tuple[Path, Path]]
SIZE = (104, 72)


@pytest.fixture(scope="module")
def autoencoders() -> tuple[AutoencoderTiny, Any]:
    checkpoint = checkpoints.make_tiny_autoencoder()
    ours = AutoencoderTiny.from_pretrained(checkpoints.export_checkpoint(checkpoint))
    return ours, diffusers.AutoencoderTiny.from_pretrained(checkpoint).eval()


def with_tiny(pair: Pair, autoencoders: tuple[AutoencoderTiny, Any]) -> Pair:
    for pipeline, autoencoder in zip(pair, autoencoders, strict=True):
        pipeline.vae = autoencoder
    use_scheduler(pair, "DDIMScheduler")
    return pair


def test_it_equals_diffusers_alone(autoencoders: tuple[AutoencoderTiny, Any]) -> None:
    ours, theirs = autoencoders
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 40, 56)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.encode(torch.from_numpy(images)).latents.numpy()
        expected = theirs.decode(torch.from_numpy(latents)).sample.numpy()
    assert ours.factor == 8
    assert relative(ours.encode(images).mode(), latents) < 1e-5
    assert relative(ours.decode(latents), expected) < 1e-5
    assert expected.std() > 0.01


@pytest.mark.parametrize("photo", ["astronaut", "coffee", "chelsea"])
def test_image_to_image_equals_diffusers(tiny: Tiny, autoencoders: tuple[AutoencoderTiny, Any], photo: str) -> None:
    pair = with_tiny(open_pair("StableDiffusionImg2ImgPipeline", *tiny("SD2")), autoencoders)
    options: dict[str, Any] = {"prompt": PROMPT, "image": photograph(photo, SIZE), "num_inference_steps": 10}
    assert_same(pair, **options, strength=0.6)
    assert_same_pictures(pair, **options, strength=0.6)


def test_inpainting_equals_diffusers(tiny: Tiny, autoencoders: tuple[AutoencoderTiny, Any]) -> None:
    pair = with_tiny(open_pair("StableDiffusionInpaintPipeline", *tiny("SD2")), autoencoders)
    painted = np.zeros(SIZE[::-1], np.uint8)
    painted[20:60, 30:90] = 255
    mask = Image.fromarray(painted)
    options: dict[str, Any] = {"image": photograph("chelsea", SIZE), "mask_image": mask, "height": 72, "width": 104}
    assert_same(pair, prompt=PROMPT, num_inference_steps=4, **options)


def test_a_callback_decodes_previews(tiny: Tiny, autoencoders: tuple[AutoencoderTiny, Any]) -> None:
    previews = []

    def preview(_pipeline: Any, _step: int, _timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        previews.append(autoencoders[0].decode(tensors["latents"]))
        return {}

    with StableDiffusionPipeline.from_pretrained(tiny("SD2")[0]) as pipeline:
        pipeline(PROMPT, num_inference_steps=3, seed=0, callback_on_step_end=preview)
    assert [each.shape for each in previews] == [(1, 3, 80, 80)] * 3
    assert np.abs(previews[0] - previews[2]).max() > 1e-3


def test_tiles_make_about_the_same_picture(autoencoders: tuple[AutoencoderTiny, Any]) -> None:
    ours = autoencoders[0]
    latents = np.random.default_rng(0).standard_normal((1, 4, 40, 40)).astype(np.float32)
    whole = ours.decode(latents)
    ours.enable_tiling(24)
    try:
        tiled = ours.decode(latents)
    finally:
        ours.disable_tiling()
    assert tiled.shape == whole.shape
    assert 0 < np.abs(tiled - whole).mean() < 0.05 * whole.std()


def test_it_can_be_given_to_from_pretrained(tiny: Tiny) -> None:
    vae = AutoencoderTiny.from_pretrained(checkpoints.export_checkpoint(checkpoints.make_tiny_autoencoder()))
    with DiffusionPipeline.from_pretrained(tiny("SD2")[0], vae=vae) as pipeline:
        assert type(pipeline.vae) is AutoencoderTiny  # type: ignore[attr-defined]
    with contextlib.closing(AutoencoderKL.from_pretrained(tiny("SD2")[0])) as own:
        assert own.latent_channels == 4


def test_an_autoencoder_alone_is_no_pipeline() -> None:
    folder = checkpoints.export_checkpoint(checkpoints.make_tiny_autoencoder())
    with pytest.raises(ValueError, match=r"is for a AutoencoderTiny, which is not known here"):
        DiffusionPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"has no AutoencoderKL: its vae is a AutoencoderTiny$"):
        AutoencoderKL.from_pretrained(folder)
