"""One measurement in a process of its own, of whichever tool: what is asked for, and what was found.

Other tools' environments have neither this package nor its dependencies: this module needs NumPy alone.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures to be made, all of one batch."""

    model: str  # what the tool opens
    prompts: list[str]
    negative_prompt: str = ""
    height: int  # in pixels
    width: int
    num_inference_steps: int
    guidance_scale: float
    seed: int  # of the first picture's noise; tools that draw it themselves give the next one seed + 1
    latents: str | None  # .npy: the starting noise, (batch, channels, height / factor, width / factor), unit variance
    precision: str  # of the arithmetic: fp32, bf16, fp16, int8
    threads: int | None
    pictures: int  # that are measured after the warm-up; 0: a cold start, one picture, saved as PNG, and no more
    warm_up_steps: int  # of one picture that is not measured
    options: dict[str, Any] = field(default_factory=dict)  # the tool's own
    output: str  # a folder: `result.json`, `image.npy`, and `picture.png` of a cold start

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a JSON file."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Into a JSON file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @property
    def one_prompt(self) -> bool:
        """Whether all pictures have the same prompt."""
        return len(set(self.prompts)) == 1


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What one run gave."""

    images: Any  # (batch, height, width, 3) float32 in [0, 1]
    text: float | None  # seconds; None where the tool does not tell it apart
    steps: list[float]  # seconds of each
    decode: float | None
    eight_bits: bool = False  # whether the tool gave 8 bits, and no floats
    note: str | None = None  # in what it is not made as the other tools make theirs


#: makes the job's pictures in so many steps
Generate = Callable[[int], Picture]


def work(job: Job, open_tool: Callable[[Job], Generate], versions: dict[str, str]) -> None:
    """Opens a tool, makes the pictures, and leaves what was found in the job's folder.

    Args:
        job: what is asked for.
        open_tool: gives what makes pictures.
        versions: of the tool's packages.
    """
    output = Path(job.output)
    started = perf_counter()
    generate = open_tool(job)
    opened = perf_counter() - started
    if job.pictures and job.warm_up_steps:
        generate(job.warm_up_steps)
    found = []
    for _ in range(max(job.pictures, 1)):
        started = perf_counter()
        picture = generate(job.num_inference_steps)
        total = perf_counter() - started
        found.append({"text": picture.text, "steps": picture.steps, "decode": picture.decode, "total": total})
    if not job.pictures:
        from PIL import Image

        Image.fromarray((picture.images[0] * 255).round().astype(np.uint8)).save(output / "picture.png")
    np.save(output / "image.npy", np.asarray(picture.images, dtype=np.float32))
    result = {
        "versions": versions,
        "open": opened,
        "pictures": found,
        "peak_memory": peak_memory(),
        "eight_bits": picture.eight_bits,
        "note": picture.note,
    }
    (output / "result.json").write_text(json.dumps(result), encoding="utf-8")


def main(open_tool: Callable[[Job], Generate], packages: Sequence[str]) -> None:
    """A worker's command line, which has one argument: the file of the job.

    Args:
        open_tool: gives what makes pictures.
        packages: whose versions belong to the result.
    """
    work(Job.read(Path(sys.argv[1])), open_tool, {name: version(name) for name in packages})


def peak_memory() -> int | None:
    """The most resident bytes that this process had; None where the system does not say."""
    status = Path("/proc/self/status")
    match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    return int(match[1]) * 1024 if match else None
