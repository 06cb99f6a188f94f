"""Where inpainting starts: what the mask covers is made anew, the rest stays.

A UNet of 9 channels was trained for it: it sees the mask and the picture without what is masked (Rombach et al. 2022,
arXiv:2112.10752, section 4.5). With one of 4, what is not masked is put back after each step, as noisy as the latents
are (RePaint without its resampling, arXiv:2201.09865).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import Array
from ..image_input import (
    Box,
    ImageInput,
    ResizeMode,
    apply_overlay,
    crop_region,
    preprocess_image,
    preprocess_mask,
)
from ..latents import initial_latents
from ..random import Generator, randn
from ..schedulers import Scheduler
from .call import Call
from .image_to_image import encoded_latents, late_timesteps, noised_start, repeated
from .text_guided import Start, TextGuidedPipeline


@dataclass(frozen=True, kw_only=True)
class Inpainting:
    """What is to be made anew, and how large."""

    image: Any  # `ImageInput`
    mask_image: Any  # `ImageInput`
    masked_image_latents: Array | None
    height: int  # of the part that is worked on, in pixels
    width: int
    crop: Box | None  # the part of the image that is worked on; None for all of it
    resize_mode: ResizeMode
    strength: float
    latents: Array | None = None

    def overlaid(self, images: Any) -> Any:
        """The pictures that were made, put back into the image that they were cut out of."""
        if self.crop is None:
            return images
        return [apply_overlay(self.mask_image, self.image, each, self.crop) for each in images]


def check_inpainting(
    image: ImageInput | None, mask_image: ImageInput | None, size: tuple[int, int], padding: int | None, call: Call
) -> Box | None:
    """The part of the image to work on; None for all of it.

    Args:
        image: what was given for it.
        mask_image: likewise.
        size: height and width of the result, in pixels.
        padding: see `padding_mask_crop`.
        call: what is wanted.

    Raises:
        ValueError: one is missing, they are of different sizes, or a crop of what are no PIL images.
    """
    from PIL.Image import Image

    if image is None or mask_image is None:
        raise ValueError(f"give {'an image' if image is None else 'a mask_image'}")
    own, masked = _sizes(image), _sizes(mask_image)
    for number in range(max(len(own), len(masked)) if own and masked else 0):
        one, other = own[number % len(own)], masked[number % len(masked)]
        if one != other:
            raise ValueError(f"image and mask must be of one size, got {one} and {other}")
    if padding is None:
        return None
    pictures = [part for part in (image, mask_image) if isinstance(part, Image)]
    if len(pictures) < 2 or call.output_type != "pil":
        raise ValueError("padding_mask_crop needs image, mask_image and output_type to be PIL")
    height, width = size
    return crop_region(pictures[1], width, height, padding)


def _sizes(images: Any) -> list[tuple[int, int]]:
    """Width and height of each picture or array; latents, and what is no picture at all, have none here."""
    sizes = []
    for each in images if isinstance(images, list | tuple) else [images]:
        if not isinstance(each, np.ndarray):
            sizes += [each.size] if hasattr(each, "convert") else []
        elif each.ndim == 2 or (each.ndim == 3 and each.shape[-1] not in (1, 3)):
            sizes.append((each.shape[-1], each.shape[-2]))
        elif each.ndim in (3, 4) and each.shape[-1] in (1, 3):
            sizes.append((each.shape[-2], each.shape[-3]))
    return sizes


def start_from_mask(pipeline: TextGuidedPipeline, call: Call, batch: int, what: Inpainting) -> Start:
    """The start of a batch of pictures.

    Args:
        pipeline: its scheduler's timesteps are set.
        call: how many timesteps there are, and where the noise comes from; with a `denoising_start` the image is taken
            to be as noisy as that.
        batch: how many pictures; a multiple of the numbers of images and of masks.
        what: image, mask, size and strength.

    Raises:
        TypeError: an image or a mask of another kind.
        ValueError: an image or a mask that cannot be used, numbers that do not fit, a strength that is none or leaves
            no step, a UNet with another number of channels.
    """
    vae, scheduler = pipeline.vae, pipeline.scheduler
    channels = vae.latent_channels
    sees_mask = pipeline.check_channels("inpainting", channels, 2 * channels + 1) != channels
    prepare: dict[str, Any] = {
        "factor": vae.factor,
        "resize_mode": what.resize_mode if what.crop is None else "fill",
        "crops_coords": what.crop,
    }
    pixels = preprocess_image(what.image, what.height, what.width, latent_channels=channels, **prepare)
    mask = preprocess_mask(what.mask_image, what.height, what.width, **prepare)
    timesteps = late_timesteps(scheduler, call, what.strength)
    source = call.noise_sources(batch)
    shape = (batch, channels, what.height // vae.factor, what.width // vae.factor)

    # noise is drawn in diffusers' order: the image's latents, the start, the masked image's latents
    continues = call.denoising_start is not None
    from_noise = what.latents is not None or what.strength == 1
    clean = None
    if continues or not (sees_mask and from_noise):
        clean = encoded_latents(vae, pixels, batch, source)
    if continues:
        assert clean is not None
        start, noise = clean, randn(shape, source)
    elif from_noise:
        noise = initial_latents(shape, source, what.latents)
        start = noise * np.float32(scheduler.init_noise_sigma)
    else:
        assert clean is not None
        start, noise = noised_start(scheduler, clean, timesteps[0], source)

    small_mask = repeated(mask[:, :, :: vae.factor, :: vae.factor], batch, "mask")
    if sees_mask:
        given = what.masked_image_latents
        masked = pixels * (mask < 0.5) if given is None else np.asarray(given)
        kept = encoded_latents(vae, masked.astype(np.float32), batch, source)
        seen = np.concatenate([small_mask, kept], axis=1)
        return Start(latents=start, timesteps=timesteps, generator=source, channels=seen)
    if vae.samples and what.masked_image_latents is None and pixels.shape[1] != channels:
        count = max(len(pixels), len(mask))  # latents of the masked image, which diffusers draws and leaves
        randn((count, *shape[1:]), source if isinstance(source, Generator) else source[:count])
    assert clean is not None
    put_back = _put_back(scheduler, clean, noise, small_mask, timesteps)
    return Start(latents=start, timesteps=timesteps, generator=source, after_step=put_back)


def _put_back(
    scheduler: Scheduler, clean: Array, noise: Array, mask: Array, timesteps: Sequence[float]
) -> Callable[[int, Array], Array]:
    """What is done after each step: the latents of what is not masked, as noisy as the next step has them."""

    def after_step(index: int, latents: Array) -> Array:
        kept = clean
        if index + 1 < len(timesteps):
            kept = scheduler.add_noise(clean, noise, np.array([timesteps[index + 1]]))
        return np.asarray((1 - mask) * kept + mask * latents)

    return after_step
