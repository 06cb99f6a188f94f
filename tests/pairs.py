"""A pipeline here and diffusers' on the same checkpoint: the same call of both, and what counts as the same result."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from skimage import data

import safelight.runtime
from safelight.runtime.image import to_unit_interval

PROMPT = "cat face on a blue background"

LATENTS_TOLERANCE = 1e-4  # relative to the largest
IMAGE_TOLERANCE = 0.1 / 255

Pair = tuple[Any, Any]


def photograph(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """One of scikit-image's: astronaut (512x512), coffee (600x400), chelsea (451x300); resized to (width, height)."""
    image = Image.fromarray(getattr(data, name)())
    return image if size is None else image.resize(size)


def open_pair(name: str, folder: Path, checkpoint: Path) -> Pair:
    """The pipelines of a class, of an export and of its checkpoint."""
    ours = getattr(safelight.runtime, name).from_pretrained(folder)
    theirs = getattr(diffusers, name).from_pretrained(checkpoint, dtype=torch.float32)
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    if getattr(theirs, "text_encoder", None) is not None:
        # diffusers 0.42 looks for the final norm in `text_model`, which transformers 5 no longer has
        object.__setattr__(theirs.text_encoder, "text_model", theirs.text_encoder)
    return ours, theirs


def use_scheduler(pair: Pair, name: str, **options: Any) -> None:
    """Gives both the same scheduler."""
    for pipeline, module in zip(pair, (safelight.runtime, diffusers), strict=True):
        config = pipeline.scheduler.config
        pipeline.scheduler = getattr(module, name).from_config(config, **{"clip_sample": False, **options})


def call_both(pair: Pair, *, seed: int | list[int] = 0, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same call of both, as arrays; options that are arrays become tensors for diffusers."""
    seeds = seed if isinstance(seed, list) else [seed]
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    theirs = {name: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for name, v in options.items()}
    expected = pair[1](generator=generators if isinstance(seed, list) else generators[0], **theirs).images
    found = pair[0](seed=seed, **options).images
    return np.asarray(found), np.asarray(expected)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest magnitude."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def assert_same(pair: Pair, **options: Any) -> None:
    """Latents of both, and the float images that each makes of its own, are equal to within the tolerances."""
    latents = call_both(pair, output_type="latent", **options)
    assert relative(*latents) < LATENTS_TOLERANCE
    ours, theirs = pair
    found = to_unit_interval(ours.vae.decode(ours.vae.unscale(latents[0])))
    with torch.no_grad():
        decoded = theirs.vae.decode(torch.from_numpy(latents[1]) / theirs.vae.config.scaling_factor).sample
    expected = theirs.image_processor.postprocess(decoded, output_type="np")
    assert expected.std() > 0.02, "a flat picture would hide a difference"
    assert np.abs(found - expected).max() < IMAGE_TOLERANCE


def assert_same_pictures(pair: Pair, **options: Any) -> None:
    """The float images that both return are equal to within the tolerance."""
    found, expected = call_both(pair, output_type="np", **options)
    assert expected.std() > 0.02, "a flat picture would hide a difference"
    assert np.abs(found - expected).max() < IMAGE_TOLERANCE
