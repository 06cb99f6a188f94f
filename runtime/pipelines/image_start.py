"""Where the loop starts when there is a picture: how late, and from which latents."""

from collections.abc import Sequence

import numpy as np

from ..backends import Array
from ..networks import AutoencoderKL, DiagonalGaussian
from ..random import Generator, randn
from ..schedulers import Scheduler


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
    vae: AutoencoderKL,
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
            distribution = DiagonalGaussian(repeated(distribution.parameters, batch, "image"))
        generator = generator[: len(distribution.parameters)]
    return repeated(vae.scale(distribution.sample(generator)), batch, "image")


def noised_start(
    scheduler: Scheduler, clean: Array, timestep: float, generator: Generator | Sequence[Generator]
) -> tuple[Array, Array]:
    """Latents with the noise of a timestep, and that noise at variance 1; both of the clean ones' shape."""
    noise = randn(clean.shape, generator)
    return scheduler.add_noise(clean, noise, np.full(len(clean), timestep)), noise
