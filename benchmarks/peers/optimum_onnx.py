"""optimum-onnx, diffusers' pipelines on ONNX Runtime, in fp32: `python -m benchmarks.peers.optimum_onnx JOB.json`.

Options of a job are entries of ONNX Runtime's session configuration.
"""

from typing import Any

from .diffusers_call import timed_pipeline
from .job import Generate, Job, main


def open_tool(job: Job) -> Generate:
    """Opens a folder that `optimum-cli export onnx` wrote.

    Raises:
        ValueError: a precision that is not fp32.
    """
    if job.precision != "fp32":
        raise ValueError(f"optimum-onnx is asked for fp32 on a CPU, got {job.precision}")
    import torch
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTDiffusionPipeline

    options = SessionOptions()
    if job.threads is not None:
        options.intra_op_num_threads = job.threads
        torch.set_num_threads(job.threads)  # of what is between the networks
    for name, value in job.options.items():
        options.add_session_config_entry(name, value)
    pipeline: Any = ORTDiffusionPipeline.from_pretrained(
        job.model, provider="CPUExecutionProvider", session_options=options
    )
    return timed_pipeline(pipeline, job)


if __name__ == "__main__":
    main(open_tool, ["optimum-onnx", "onnxruntime", "diffusers", "torch", "transformers"])
