"""The worker of safelight itself: `python -m safelight.benchmarks.peers.safelight JOB.json`.

The job's options are those of `DiffusionPipeline.from_pretrained`: `backend`, `low_memory`, `speed`, ...
"""

import sys
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from safelight.runtime import DiffusionPipeline

from .job import Generate, Job, Picture, work

#: a safety checker, where there is one, would make pictures black that are to be compared
UNCHECKED: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}


def open_safelight(job: Job) -> Generate:
    """The runtime's pipeline, as its user would open it."""
    pipeline = DiffusionPipeline.from_pretrained(
        job.model, precision=job.precision, threads=job.threads, **job.options, **UNCHECKED
    )
    return pictures_of(pipeline, job)


def pictures_of(pipeline: Any, job: Job) -> Generate:
    """What makes a job's pictures with a pipeline of the runtime."""
    pipeline.set_progress_bar_config(disable=True)
    latents = None if job.latents is None else np.load(job.latents)

    def generate(steps: int) -> Picture:
        ends: list[float] = []

        def note(_pipeline: object, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            ends.append(perf_counter())
            return tensors

        output = pipeline(
            list(job.prompts),
            negative_prompt=[job.negative_prompt] * len(job.prompts),
            height=job.height,
            width=job.width,
            num_inference_steps=steps,
            guidance_scale=job.guidance_scale,
            latents=latents,
            seed=job.seed,
            output_type="np",
            callback_on_step_end=note,
        )
        timings = output.timings
        first = timings["denoise"] - (ends[-1] - ends[0])  # what the loop takes before its first end
        seconds = [first, *(after - before for before, after in pairwise(ends))]
        return Picture(images=output.images, text=timings["text"], steps=seconds, decode=timings["decode"])

    return generate


if __name__ == "__main__":
    from ..machine import version

    packages = ("safelight", "numpy", "onnxruntime", "openvino")
    work(
        Job.read(Path(sys.argv[1])),
        open_safelight,
        {name: found for name in packages if (found := version(name)) is not None},
    )
