"""Where image to image starts: from a picture with noise (SDEdit, arXiv:2108.01073), and so later."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..backends import Array
from ..image_input import ImageInput, preprocess_image
from ..networks import Autoencoder
from ..random import Generator, randn
from ..schedulers import Scheduler
from .call import Call, timestep_at
from .text_guided import Start, TextGuidedPipeline


def start_from_image(
    pipeline: TextGuidedPipeline,
    call: Call,
    batch: int,
    image: ImageInput | None,
    strength: float,
    latents: Array | None = None,
) -> Start:
    """The start of a batch of pictures.

    Args:
        pipeline: its scheduler's timesteps are set.
        call: how many timesteps there are, and where the noise comes from; with a `denoising_start` the image is taken
            to be as noisy as that.
        batch: how many pictures; a multiple of the number of images.
        image: one, or several.
        strength: how much of the way the noise goes, 0 to 1.
        latents: what the image would become, if the caller brings it.

    Raises:
        TypeError: an image of another kind.
        ValueError: an image that cannot be used, or a strength that is none or leaves no step.
    """
    if image is None:
        raise ValueError("give an image")
    vae, scheduler = pipeline.vae, pipeline.scheduler
    pixels = preprocess_image(image, factor=vae.factor, latent_channels=vae.latent_channels)
    timesteps = late_timesteps(scheduler, call, strength)
    source = call.noise_sources(batch)
    if latents is None:
        latents = encoded_latents(vae, pixels, batch, source, before_sampling=True)
        if call.denoising_start is None:
            latents, _ = noised_start(scheduler, latents, timesteps[0], source)
    elif len(latents) != batch or np.shape(latents)[1:2] != (vae.latent_channels,):
        raise ValueError(f"latents must be ({batch}, {vae.latent_channels}, height, width), got {np.shape(latents)}")
    return Start(latents=latents, timesteps=timesteps, generator=source)


def late_timesteps(scheduler: Scheduler, call: Call, strength: float) -> list[float]:
    """The timesteps of a call that starts with a picture; the scheduler's are set, and it is told where it starts.

    Raises:
        ValueError: strength is not in [0, 1], or leaves no step; a `denoising_start` leaves none.
    """
    call.set_timesteps(scheduler)
    if call.denoising_start is not None:
        left = _after(scheduler, call.denoising_start)
    else:
        own = call.timesteps is not None or call.sigmas is not None
        left = start_late(scheduler, strength, None if own else call.num_inference_steps)
    return call.until_the_end(scheduler, left)


def _after(scheduler: Scheduler, denoising_start: float) -> list[float]:
    """The timesteps that come after another model has gone a part of the way; the scheduler is told where it starts."""
    count = int((scheduler.timesteps < timestep_at(scheduler, denoising_start)).sum())
    if not count:
        raise ValueError(
            f"denoising_start {denoising_start} leaves none of {len(scheduler.timesteps)} timesteps: lower it, "
            "or raise num_inference_steps"
        )
    if scheduler.order == 2 and count % 2 == 0:
        count += 1  # between the two evaluations of a step there is no start
    begin = len(scheduler.timesteps) - count
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    left: list[float] = scheduler.timesteps[begin:].tolist()
    return left


def start_late(scheduler: Scheduler, strength: float, num_inference_steps: int | None = None) -> list[float]:
    """The timesteps that are left when only a part of the way is gone; the scheduler is told where it starts.

    Args:
        scheduler: its timesteps are set.
        strength: how much of the way, 0 to 1.
        num_inference_steps: of the whole way; how many timesteps there are when None.

    Raises:
        ValueError: strength is not in [0, 1], or leaves no step.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    steps = len(scheduler.timesteps) if num_inference_steps is None else num_inference_steps
    begin = (steps - min(int(steps * strength), steps)) * scheduler.order
    left: list[float] = scheduler.timesteps[begin:].tolist()
    if begin >= steps * scheduler.order or not left:
        raise ValueError(f"strength {strength} leaves none of {steps} steps: raise either")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return left


def repeated(array: Array, batch: int, name: str) -> Array:
    """An array for a batch: again and again where there are fewer.

    Raises:
        ValueError: they do not go into the batch, or there are more.
    """
    if not len(array) or batch % len(array):
        raise ValueError(f"there are {len(array)} {name}s for {batch} pictures: the one must go into the other")
    return np.tile(array, (batch // len(array), *[1] * (array.ndim - 1)))


def encoded_latents(
    vae: Autoencoder,
    pixels: Array,
    batch: int,
    generator: Generator | Sequence[Generator],
    *,
    before_sampling: bool = False,
) -> Array:
    """The scaled latents of pictures, (batch, latent_channels, height, width), drawn from their distribution.

    Args:
        vae: the autoencoder.
        pixels: (images, 3, height, width) in [-1, 1]; or latents, which are taken as they are.
        batch: how many to make; a multiple of the number of images.
        generator: one for all, or one per image of the batch.
        before_sampling: whether images are repeated before latents are drawn, where each has a generator: then those
            of one image differ.
    """
    if pixels.shape[1] == vae.latent_channels:
        return repeated(pixels, batch, "image")
    repeated(pixels[:, :1, :1, :1], batch, "image")  # which may raise, before any work
    distribution = vae.encode(pixels)
    if not isinstance(generator, Generator):
        if before_sampling:
            distribution = replace(distribution, parameters=repeated(distribution.parameters, batch, "image"))
        generator = generator[: len(distribution.parameters)]
    return repeated(vae.scale(distribution.sample(generator)), batch, "image")


def noised_start(
    scheduler: Scheduler, clean: Array, timestep: float, generator: Generator | Sequence[Generator]
) -> tuple[Array, Array]:
    """Latents with the noise of a timestep, and that noise at variance 1; both of the clean ones' shape."""
    noise = randn(clean.shape, generator)
    return scheduler.add_noise(clean, noise, np.full(len(clean), timestep)), noise
