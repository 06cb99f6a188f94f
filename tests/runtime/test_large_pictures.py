"""Tiles and slices of the autoencoder, as a pipeline's user turns them on, against diffusers."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from safelight.runtime import DiffusionPipeline
from safelight.runtime.networks import AutoencoderKL


@pytest.fixture(scope="module")
def theirs(linear_checkpoint: Path) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL.from_pretrained(linear_checkpoint, subfolder="vae").eval()


@pytest.fixture
def ours(linear_export: Path) -> AutoencoderKL:
    vae: AutoencoderKL = DiffusionPipeline.from_pretrained(linear_export).vae
    return vae


def test_tiles_equal_diffusers(ours: AutoencoderKL, theirs: diffusers.AutoencoderKL) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 19, 27), dtype=np.float32)
    image = np.random.default_rng(1).uniform(-1, 1, (1, 3, 96, 128)).astype(np.float32)
    whole = ours.decode(latents)
    for size in (4, 8):
        ours.enable_tiling(size)
        theirs.enable_tiling()
        theirs.tile_latent_min_size, theirs.tile_sample_min_size = size, size * 8
        with torch.no_grad():
            expected = theirs.decode(torch.from_numpy(latents)).sample.numpy()
            encoded = theirs.encode(torch.from_numpy(image)).latent_dist.parameters.numpy()
        np.testing.assert_allclose(ours.decode(latents), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        found = ours.encode(image).parameters
        np.testing.assert_allclose(found, encoded, rtol=0, atol=1e-4 * np.abs(encoded).max())
        assert np.abs(ours.decode(latents) - whole).max() > 1e-3, "tiles see less"
    ours.disable_tiling()
    np.testing.assert_array_equal(ours.decode(latents), whole)


def test_a_tile_is_as_large_as_the_trainings_pictures(ours: AutoencoderKL, theirs: diffusers.AutoencoderKL) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 10, 20), dtype=np.float32)
    square = latents[..., :10]
    whole, whole_square = ours.decode(latents), ours.decode(square)
    ours.enable_tiling(diffusers.AutoencoderKL.from_config(theirs.config).tile_latent_min_size)
    expected = ours.decode(latents)
    assert np.abs(expected - whole).max() > 1e-2 * np.abs(whole).max(), "it was cut into tiles"
    ours.enable_tiling()
    np.testing.assert_array_equal(ours.decode(latents), expected)
    np.testing.assert_array_equal(ours.decode(square), whole_square)


def test_slices_are_the_batch(ours: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = np.random.default_rng(0).standard_normal((3, 4, 5, 6), dtype=np.float32)
    whole = ours.decode(latents)
    ours.enable_slicing()
    batches: list[int] = []
    network = ours.decoder
    monkeypatch.setattr(ours, "decoder", lambda inputs: batches.append(len(inputs["latent_sample"])) or network(inputs))
    np.testing.assert_allclose(ours.decode(latents), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    assert batches == [1, 1, 1]
    ours.disable_slicing()
    ours.decode(latents)
    assert batches[3:] == [3]


@pytest.mark.parametrize("size", [1, 0, -4])
def test_tiles_without_size_are_refused(ours: AutoencoderKL, size: int) -> None:
    with pytest.raises(ValueError, match=rf"^tile_latent_size must be at least 2, got {size}$"):
        ours.enable_tiling(size)
