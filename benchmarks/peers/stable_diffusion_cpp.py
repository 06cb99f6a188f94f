"""stable-diffusion.cpp, by its Python binding: `python -m benchmarks.peers.stable_diffusion_cpp JOB.json`.

It opens a checkpoint in diffusers' layout as it is, draws the noise of torch's CPU generator itself (the job's latents
have to be that noise; a batch is one picture after the other, whose seeds count up), and takes the noise levels as a
list. Its kernels know the published shapes alone.

The precision of a job is the type that it stores weights in: ggml's kernels of convolutions have weights in float16,
whichever that is, and its products of matrices in float16 round the activations to it too.

Options of a job are arguments of the binding's `StableDiffusion`.
"""

import json
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .job import Generate, Job, Picture, main

_WEIGHT_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
#: of a schedule: what its denoiser assumes, whatever the checkpoint says
_TRAIN_TIMESTEPS, _BETA_START, _BETA_END = 1000, 0.00085, 0.012
_ASSUMED = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": _BETA_START,
    "beta_end": _BETA_END,
    "beta_schedule": "scaled_linear",
}
#: of a schedule: what `sigmas` does not implement the others of, and what diffusers takes where nothing is said
_DEFAULTS = {
    "num_train_timesteps": _TRAIN_TIMESTEPS,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "final_sigmas_type": "zero",
    "rescale_betas_zero_snr": False,
}


def sigmas(scheduler: dict[str, Any], num_inference_steps: int) -> list[float]:
    """The noise levels of diffusers' `EulerDiscreteScheduler`, high to low, and a zero.

    Args:
        scheduler: its configuration.
        num_inference_steps: one less than there are levels.

    Raises:
        ValueError: a schedule that stable-diffusion.cpp is not asked for.
    """
    for name, expected in (_ASSUMED | _DEFAULTS).items():
        found = scheduler.get(name, _DEFAULTS.get(name))
        if found != expected:
            raise ValueError(f"stable-diffusion.cpp is asked for schedules whose {name} is {expected}, got {found}")
    betas = np.linspace(_BETA_START**0.5, _BETA_END**0.5, _TRAIN_TIMESTEPS) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    timesteps = np.linspace(0, _TRAIN_TIMESTEPS - 1, num_inference_steps)[::-1]
    levels = np.interp(timesteps, np.arange(_TRAIN_TIMESTEPS), ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5)
    return [*levels.tolist(), 0.0]


def open_tool(job: Job) -> Generate:
    """Opens a checkpoint.

    Raises:
        ValueError: a precision that it has no weights in, or a schedule that it is not asked for.
    """
    if job.precision not in _WEIGHT_TYPES:
        raise ValueError(f"stable-diffusion.cpp is asked for {', '.join(_WEIGHT_TYPES)}, got {job.precision}")
    scheduler = json.loads((Path(job.model) / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    sigmas(scheduler, job.num_inference_steps)
    from stable_diffusion_cpp import StableDiffusion

    pipeline = StableDiffusion(
        model_path=job.model,
        wtype=_WEIGHT_TYPES[job.precision],
        n_threads=job.threads or -1,
        rng_type="cpu",
        sampler_rng_type="cpu",
        vae_decode_only=True,
        verbose=False,
        **job.options,
    )
    return lambda steps: _pictures(pipeline, job, sigmas(scheduler, steps))


def _pictures(pipeline: Any, job: Job, levels: list[float]) -> Picture:
    count = len(job.prompts) if job.one_prompt else 1
    prompts = job.prompts[:1] if job.one_prompt else job.prompts
    calls = [_call(pipeline, job, prompt, job.seed + index, count, levels) for index, prompt in enumerate(prompts)]
    return Picture(
        images=np.concatenate([call.images for call in calls]),
        text=sum(call.text or 0 for call in calls),
        steps=[sum(step) for step in zip(*(call.steps for call in calls), strict=True)],
        decode=sum(call.decode or 0 for call in calls),
        eight_bits=True,
        note=None if len(job.prompts) == 1 else "one picture after the other",
    )


def _call(pipeline: Any, job: Job, prompt: str, seed: int, count: int, levels: list[float]) -> Picture:
    """So many pictures, from that seed on."""
    steps = len(levels) - 1
    marks: list[tuple[int, float]] = []  # a step, 0 where sampling begins, and when it ended

    def note_time(step: int, total: int, _seconds: float) -> None:
        if total == steps:
            marks.append((step, perf_counter()))

    started = perf_counter()
    images = pipeline.generate_image(
        prompt=prompt,
        negative_prompt=job.negative_prompt,
        height=job.height,
        width=job.width,
        cfg_scale=job.guidance_scale,
        sample_method="euler",
        sample_steps=steps,
        sigmas=",".join(map(repr, levels)),
        seed=seed,
        batch_count=count,
        progress_callback=note_time,
    )
    ended = perf_counter()
    seconds = [0.0] * steps
    for (_, before), (step, after) in pairwise(marks):
        if step:
            seconds[step - 1] += after - before
    return Picture(
        images=np.stack([np.asarray(image.convert("RGB"), np.float32) for image in images]) / 255,
        text=marks[0][1] - started,
        steps=seconds,
        decode=ended - marks[-1][1],
    )


if __name__ == "__main__":
    main(open_tool, ["stable-diffusion-cpp-python"])
