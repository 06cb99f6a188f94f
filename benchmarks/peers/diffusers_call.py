"""A picture by a pipeline that is called as diffusers' are, with the seconds of each stage."""

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from .job import Job, Picture


class Timed:
    """A function that notes how long its calls take, and when the last one ended."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds = 0.0
        self.ended = 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Calls the function."""
        started = perf_counter()
        result = self._function(*arguments, **options)
        self.ended = perf_counter()
        self.seconds += self.ended - started
        return result


def timed_pipeline(pipeline: Any, job: Job) -> Callable[[int], Picture]:
    """What makes a job's pictures with a pipeline.

    The first step begins where the prompts are encoded; it has the little that lies between the two.

    Args:
        pipeline: of diffusers, or one that inherits from its classes. Its `encode_prompt` and `vae.decode` are
            replaced by functions that note the time.
        job: what is asked for.
    """
    import torch

    pipeline.set_progress_bar_config(disable=True)
    pipeline.encode_prompt, pipeline.vae.decode = Timed(pipeline.encode_prompt), Timed(pipeline.vae.decode)
    latents = None if job.latents is None else torch.from_numpy(np.load(job.latents)).to(pipeline.unet.dtype)

    def generate(num_inference_steps: int) -> Picture:
        text, decode = pipeline.encode_prompt, pipeline.vae.decode
        text.seconds = decode.seconds = 0.0
        ends: list[float] = []

        def note_time(_pipeline: object, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            ends.append(perf_counter())
            return tensors

        images = pipeline(
            prompt=job.prompts,
            negative_prompt=[job.negative_prompt] * len(job.prompts),
            height=job.height,
            width=job.width,
            num_inference_steps=num_inference_steps,
            guidance_scale=job.guidance_scale,
            generator=[torch.Generator().manual_seed(job.seed + index) for index in range(len(job.prompts))],
            latents=latents,
            output_type="np",
            callback_on_step_end=note_time,
        ).images
        steps = [after - before for before, after in pairwise([text.ended, *ends])]
        return Picture(images=np.asarray(images, np.float32), text=text.seconds, steps=steps, decode=decode.seconds)

    return generate
