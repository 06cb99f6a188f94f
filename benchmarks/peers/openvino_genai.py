"""OpenVINO GenAI's `Text2ImagePipeline` on a CPU: `python -m benchmarks.peers.openvino_genai JOB.json`.

Options of a job are properties of OpenVINO. As its own samples do, the networks get the job's shape before they are
compiled.
"""

from typing import Any

import numpy as np

from .job import Generate, Job, Picture, main

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # as OpenVINO spells them


def open_tool(job: Job) -> Generate:
    """Opens a folder that `optimum-cli export openvino` wrote.

    Raises:
        ValueError: a precision that OpenVINO has no hint for.
    """
    if job.precision not in _PRECISIONS:
        raise ValueError(f"OpenVINO GenAI is asked for {', '.join(_PRECISIONS)}, got {job.precision}")
    import openvino_genai

    properties = {"INFERENCE_PRECISION_HINT": _PRECISIONS[job.precision], "PERFORMANCE_HINT": "LATENCY", **job.options}
    if job.threads is not None:
        properties["INFERENCE_NUM_THREADS"] = job.threads
    pipeline = openvino_genai.Text2ImagePipeline(job.model)
    pipeline.reshape(len(job.prompts) if job.one_prompt else 1, job.height, job.width, job.guidance_scale)
    pipeline.compile("CPU", **properties)
    latents = None if job.latents is None else np.load(job.latents).astype(np.float32)
    return lambda steps: _batch(pipeline, job, latents, steps)


def _batch(pipeline: Any, job: Job, latents: Any, num_inference_steps: int) -> Picture:
    """A call takes one prompt: other prompts are other calls."""
    if job.one_prompt:
        return _pictures(pipeline, job, job.prompts[0], latents, num_inference_steps)
    calls = []
    for index, prompt in enumerate(job.prompts):
        noise = None if latents is None else latents[index : index + 1]
        calls.append(_pictures(pipeline, job, prompt, noise, num_inference_steps))
    return Picture(
        images=np.concatenate([call.images for call in calls]),
        text=sum(call.text or 0 for call in calls),
        steps=[sum(step) for step in zip(*(call.steps for call in calls), strict=True)],
        decode=sum(call.decode or 0 for call in calls),
        eight_bits=True,
        note="one call a prompt",
    )


def _pictures(pipeline: Any, job: Job, prompt: str, latents: Any, num_inference_steps: int) -> Picture:
    import openvino_genai

    count = len(job.prompts) if job.one_prompt else 1
    generator = openvino_genai.TorchGenerator(job.seed) if latents is None else _noise(latents)
    options: dict[str, Any] = {"guidance_scale": job.guidance_scale, "generator": generator}
    if job.guidance_scale > 1:  # it refuses one that it would not use
        options["negative_prompt"] = job.negative_prompt
    images = pipeline.generate(
        prompt,
        height=job.height,
        width=job.width,
        num_inference_steps=num_inference_steps,
        num_images_per_prompt=count,
        **options,
    ).data
    metrics = pipeline.get_performance_metrics()
    return Picture(
        images=images.astype(np.float32) / 255,
        text=sum(metrics.get_text_encoder_infer_duration().values()) / 1e3,  # from milliseconds
        steps=[microseconds / 1e6 for microseconds in metrics.raw_metrics.iteration_durations],
        decode=metrics.get_vae_decoder_infer_duration() / 1e3,
        eight_bits=True,
    )


def _noise(latents: Any) -> Any:
    """A generator that gives the job's noise."""
    import openvino
    import openvino_genai

    class Noise(openvino_genai.Generator):  # type: ignore[misc]  # it has no types
        def next(self) -> float:
            raise RuntimeError("the pipeline draws single numbers, where it was to draw the latents at once")

        def randn_tensor(self, shape: Any) -> Any:
            if tuple(shape) != latents.shape:
                raise ValueError(f"the pipeline draws noise of {tuple(shape)}, and the job's is {latents.shape}")
            return openvino.Tensor(np.ascontiguousarray(latents))

    return Noise()


if __name__ == "__main__":
    main(open_tool, ["openvino-genai", "openvino", "openvino-tokenizers"])
