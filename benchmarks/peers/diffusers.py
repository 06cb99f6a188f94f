"""diffusers on PyTorch, in fp32 or bf16: `python -m benchmarks.peers.diffusers JOB.json`.

Options of a job:
    channels_last: the weights of convolutions lie with their channels last.
    compile: UNet and decoder by `torch.compile`; the compilation is part of opening.
    freezing: with `compile`, weights are constants of what is compiled, laid out as its kernels want them.
"""

from typing import Any

from .diffusers_call import timed_pipeline
from .job import Generate, Job, main


def open_tool(job: Job) -> Generate:
    """Opens a checkpoint in diffusers' layout.

    Raises:
        ValueError: a precision that is neither fp32 nor bf16.
    """
    import torch
    from diffusers import DiffusionPipeline

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if job.precision not in dtypes:
        raise ValueError(f"diffusers is asked for fp32 or bf16 on a CPU, got {job.precision}")
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    names = DiffusionPipeline.load_config(job.model)
    unchecked = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in names else {}
    pipeline: Any = DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        job.model, dtype=dtypes[job.precision], **unchecked
    )
    if job.options.get("channels_last"):
        for network in (pipeline.unet, pipeline.vae):
            network.to(memory_format=torch.channels_last)
    if not job.options.get("compile"):
        return timed_pipeline(pipeline, job)
    torch._inductor.config.freezing = bool(job.options.get("freezing"))
    pipeline.unet.compile()
    pipeline.vae.decoder.compile()
    generate = timed_pipeline(pipeline, job)
    generate(1)  # the compilers run at the first call
    return generate


if __name__ == "__main__":
    main(open_tool, ["diffusers", "torch", "transformers"])
