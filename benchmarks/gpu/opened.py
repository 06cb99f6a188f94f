"""The runtime's pipelines as contenders."""

import inspect
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from safelight.runtime import DiffusionPipeline
from safelight.runtime.backends import Array

from .case import Case, Picture
from .contenders import Task


class RuntimePipeline:
    """A pipeline of the runtime: arrays go in and come out on the host, as a user has them."""

    def __init__(self, pipeline: Any, case: Case) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline, self._case = pipeline, case

    def unet(self, inputs: Mapping[str, Array]) -> Array:
        """See `Opened`."""
        others = dict(inputs)
        sample, timestep, text = (others.pop(name) for name in ("sample", "timestep", "encoder_hidden_states"))
        found: Array = self._pipeline.unet(sample, timestep, text, added_cond_kwargs=others).sample
        return found

    def step(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """See `Opened`."""
        return lambda: self.unet(inputs)

    def pictures(self, latents: Array, num_inference_steps: int) -> Picture:
        """See `Opened`."""
        started = perf_counter()
        output = self._pipeline(
            self._case.prompt,
            height=self._case.height,
            width=self._case.width,
            num_inference_steps=num_inference_steps,
            guidance_scale=self._case.guidance_scale,
            num_images_per_prompt=len(latents),
            latents=latents,
            seed=self._case.seed,
            output_type="np",
        )
        return Picture(output.images, {"total": perf_counter() - started, **output.timings})


def open_runtime(task: Task, backend: str) -> Any:
    """The pipeline of the task's model folder.

    Raises:
        ValueError: the backend cannot use the device.
        FileNotFoundError: there are no engines that fit.
    """
    options: dict[str, Any] = {} if task.engines is None else {"engines": task.engines}
    known = inspect.signature(DiffusionPipeline.from_pretrained).parameters
    if options.keys() - known:
        raise ValueError(f"this safelight's pipelines take no {', '.join(options)}")
    return DiffusionPipeline.from_pretrained(task.case.model, backend=backend, device=task.device, **options)
