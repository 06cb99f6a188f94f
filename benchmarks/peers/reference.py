"""The worker of the PyTorch reference: `python -m safelight.benchmarks.peers.reference JOB.json`."""

import sys
from pathlib import Path

import torch

from ..torch_reference import reference_pipeline
from .job import Generate, Job, work
from .safelight import pictures_of


def open_reference(job: Job) -> Generate:
    """The reference's modules behind the runtime's own loop."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    return pictures_of(reference_pipeline(Path(job.model)), job)


if __name__ == "__main__":
    work(Job.read(Path(sys.argv[1])), open_reference, {"torch": torch.__version__})
