"""Where text to image starts: from noise alone."""

import numpy as np

from ..backends import Array
from ..latents import initial_latents
from .call import Call
from .text_guided import Start, TextGuidedPipeline


def start_from_noise(
    pipeline: TextGuidedPipeline,
    call: Call,
    batch: int,
    height: int,
    width: int,
    latents: Array | None = None,
    *,
    image_channels: int = 0,
) -> Start:
    """The start of a batch of pictures.

    Args:
        pipeline: its scheduler's timesteps are set.
        call: how many timesteps there are, and where the noise comes from.
        batch: how many pictures.
        height: in pixels.
        width: in pixels.
        latents: noise that the caller brings.
        image_channels: of an image that the UNet sees besides.

    Raises:
        ValueError: latents of another shape, or a UNet that sees more than latents.
    """
    scheduler, factor = pipeline.scheduler, pipeline.vae.factor
    pipeline.check_channels(type(pipeline).__name__, pipeline.vae.latent_channels + image_channels)
    call.set_timesteps(scheduler)
    source = call.noise_sources(batch)
    shape = (batch, pipeline.vae.latent_channels, height // factor, width // factor)
    noise = initial_latents(shape, source, latents) * np.float32(scheduler.init_noise_sigma)
    return Start(latents=noise, timesteps=call.until_the_end(scheduler, scheduler.timesteps.tolist()), generator=source)
