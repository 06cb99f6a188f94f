"""Pictures from noise alone, against diffusers: both pipelines, both layouts, classes."""

from pathlib import Path
from typing import Any

import checkpoints
import diffusers
import numpy as np
import pytest
import torch
from pairs import assert_same_pictures, open_pair

from safelight.runtime import DDIMPipeline, DDPMPipeline, DiffusionPipeline, UNet2DModel, source

_SMALL = {"sample_size": (24, 16), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8}
#: the other families of levels, each with another embedding of the timestep and another kind of class -> their labels
FAMILIES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "NCSN++": (
        {
            **_SMALL,
            "block_out_channels": (32, 64),
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            "norm_num_groups": None,
            "time_embedding_type": "fourier",
            "num_class_embeds": 5,
        },
        np.array([4, 1]),
    ),
    "ADM": (
        {
            **_SMALL,
            "block_out_channels": (16, 24),
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "resnet_time_scale_shift": "scale_shift",
            "time_embedding_type": "learned",
            "num_train_timesteps": 20,
            "class_embed_type": "timestep",
        },
        np.array([19, 3]),
    ),
    "k-diffusion": (
        {
            **_SMALL,
            "block_out_channels": (32, 64),
            "down_block_types": ("KDownBlock2D", "KDownBlock2D"),
            "up_block_types": ("KUpBlock2D", "KUpBlock2D"),
            "class_embed_type": "identity",
        },
        np.random.default_rng(1).standard_normal((2, 4 * 32), dtype=np.float32),
    ),
}


@pytest.fixture(scope="module", params=["folders", "flat"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return checkpoints.make_unconditional_checkpoint(
        "unconditional", checkpoints.UNCONDITIONAL, flat=request.param == "flat"
    )


@pytest.fixture(scope="module")
def export(checkpoint: Path) -> Path:
    return checkpoints.export_checkpoint(checkpoint)


def test_the_folder_names_the_class(export: Path) -> None:
    assert type(DiffusionPipeline.from_pretrained(export)) is DDPMPipeline


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 3}, {"batch_size": 2, "seed": [4, 5]}], ids=["one", "batch", "a seed per image"]
)
def test_ddpm_equals_diffusers(checkpoint: Path, export: Path, options: dict[str, Any]) -> None:
    assert_same_pictures(open_pair("DDPMPipeline", export, checkpoint), num_inference_steps=30, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"eta": 0.7, "seed": 3}, {"use_clipped_model_output": True, "batch_size": 2}],
    ids=["plain", "noise in the steps", "clipped"],
)
def test_ddim_equals_diffusers(checkpoint: Path, export: Path, options: dict[str, Any]) -> None:
    assert_same_pictures(open_pair("DDIMPipeline", export, checkpoint), num_inference_steps=20, **options)


def test_a_raw_checkpoint_is_exported_on_the_way(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(checkpoints.CACHE / "unconditional"))
    monkeypatch.setattr(source, "download", lambda name, *_, **options: checkpoint)
    pipeline = DDPMPipeline.from_pretrained("google/ddpm-cat-256", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline(num_inference_steps=2, seed=0).images
    assert image.size == (16, 24)


def test_the_model_alone_equals_diffusers(checkpoint: Path, export: Path) -> None:
    ours = UNet2DModel.from_pretrained(export)
    theirs = diffusers.UNet2DModel.from_pretrained(
        checkpoint if (checkpoint / "config.json").exists() else checkpoint / "unet"
    )
    sample = np.random.default_rng(0).standard_normal((2, 3, 24, 16), dtype=np.float32)
    for timestep in (2, 730.25, np.array([3, 900])):
        with torch.no_grad():
            expected = theirs(torch.from_numpy(sample), torch.as_tensor(timestep)).sample.numpy()
        found = ours(sample=sample, timestep=timestep).sample
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
        np.testing.assert_array_equal(ours(sample, timestep, return_dict=False)[0], found)
    with pytest.raises(ValueError, match=r"^this model has no classes$"):
        ours(sample, 2, class_labels=np.array([1, 2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_and_classes_equal_diffusers(family: str) -> None:
    unet, labels = FAMILIES[family]
    checkpoint = checkpoints.make_unconditional_checkpoint(family, unet)
    ours = UNet2DModel.from_pretrained(checkpoints.export_checkpoint(checkpoint))
    theirs = diffusers.UNet2DModel.from_pretrained(checkpoint / "unet")
    sample = np.random.default_rng(0).standard_normal((2, 3, 24, 16), dtype=np.float32)
    timestep = 5 if "num_train_timesteps" in unet else 5.5  # learned ones are whole
    for given in (labels, labels[::-1].copy()):
        with torch.no_grad():
            expected = theirs(
                torch.from_numpy(sample), torch.tensor(timestep), class_labels=torch.from_numpy(given)
            ).sample
        found = ours(sample, timestep, class_labels=given).sample
        assert np.abs(found - expected.numpy()).max() < 1e-4 * float(expected.abs().max())
    assert np.abs(found - ours(sample, timestep, class_labels=labels).sample).max() > 1e-3 * np.abs(found).max()
    with pytest.raises(ValueError, match=r"^this model needs class_labels$"):
        ours(sample, timestep)


def test_another_model_is_refused(linear_export: Path) -> None:
    with pytest.raises(ValueError, match=r"has no UNet2DModel: its unet is a UNet2DConditionModel$"):
        UNet2DModel.from_pretrained(linear_export)
    with pytest.raises(ValueError, match=r"^use_safetensors=False"):
        UNet2DModel.from_pretrained(linear_export, use_safetensors=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"^batch_size must be at least 1, got 0$"),
        ({"output_type": "latent"}, r"^output_type must be one of pil, np, got 'latent'$"),
        ({"num_inference_steps": 0}, "0"),
        ({"batch_size": 2, "seed": [1, 2, 3]}, r"^there are 2 images and 3 generators or seeds$"),
    ],
)
def test_bad_calls_are_refused(export: Path, options: dict[str, Any], message: str) -> None:
    for pipeline in (DDPMPipeline, DDIMPipeline):
        with pytest.raises(ValueError, match=message):
            pipeline.from_pretrained(export)(**options)
