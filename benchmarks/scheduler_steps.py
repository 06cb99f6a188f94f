"""One step of each scheduler, and the drawing of noise, beside diffusers'.

`python -m safelight.benchmarks.scheduler_steps [--threads N] [--json FILE]`.

Each pair walks the same schedule from the same sample with the same noise, drawn beforehand; the results are compared
before the times. What is timed is `step` alone: not the model, nor the scaling of its input. The drawing of noise is
timed apart, beside torch's.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

from safelight.runtime import Generator
from safelight.runtime.backends import Array
from safelight.runtime.schedulers import every_scheduler, scheduler_class

from .machine import machine, versions

#: latents of Stable Diffusion 1.5, and four of SDXL
SHAPES = ((1, 4, 64, 64), (4, 4, 128, 128))
STEPS = 20
SAME = 1e-3  # relative difference of the last sample, for a time to count: twenty steps of rounding


class FixedNoise(Generator):
    """A generator that draws nothing: the same noise again and again, in copies made beforehand."""

    def __init__(self, noise: Array) -> None:
        super().__init__(0)
        self.noise = noise
        self.copies: list[Array] = []

    def prepare(self) -> None:
        """Copies the noise for a walk."""
        self.copies = [self.noise.copy() for _ in range(2 * STEPS)]

    def randn(self, shape: Sequence[int], dtype: Any = np.float32) -> Array:
        """The next copy."""
        return self.copies.pop().reshape(shape).astype(dtype, copy=False)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Median microseconds of one step."""

    scheduler: str
    shape: tuple[int, ...]
    difference: float  # of the last sample, relative
    diffusers: float
    safelight: float

    @property
    def ratio(self) -> float:
        """Below 1 is faster than diffusers."""
        return self.safelight / self.diffusers


def measure(name: str, shape: tuple[int, ...], runs: int) -> Timing:
    """Walks both schedulers `runs` times, in turns.

    Args:
        name: of a scheduler that both have.
        shape: of the latents.
        runs: walks of each that are timed, after one that is compared.
    """
    ours_class: Any = scheduler_class(name)  # whose constructors differ
    ours, theirs = ours_class(), getattr(diffusers, name)()
    rng = np.random.default_rng(0)
    sample, output, noise = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    tensors = [torch.from_numpy(array) for array in (sample, output, noise)]
    with _drawing_nothing(theirs, tensors[2]):
        own = _walker(ours, sample, output, {"generator": FixedNoise(noise)})
        other = _walker(theirs, tensors[0], tensors[1], {})
        found, expected = own()[1], other()[1].numpy()
        pairs = [(own()[0], other()[0]) for _ in range(runs)]
    mine, its = zip(*pairs, strict=True)
    return Timing(
        scheduler=name,
        shape=shape,
        difference=float(np.abs(found - expected).max() / np.abs(expected).max()),
        diffusers=statistics.median(its) * 1e6,
        safelight=statistics.median(mine) * 1e6,
    )


def measure_noise(shape: tuple[int, ...], runs: int) -> Timing:
    """Draws float32 noise with `Generator` and with torch's, `runs` times, in turns."""
    ours, theirs = Generator(0), torch.Generator().manual_seed(0)
    difference = float(np.abs(ours.randn(shape) - torch.randn(shape, generator=theirs).numpy()).max())
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(runs * STEPS):
        started = perf_counter()
        ours.randn(shape)
        between = perf_counter()
        torch.randn(shape, generator=theirs)
        times["ours"].append(between - started)
        times["theirs"].append(perf_counter() - between)
    mine, its = (statistics.median(times[who]) * 1e6 for who in ("ours", "theirs"))
    return Timing(scheduler="Generator.randn", shape=shape, difference=difference, diffusers=its, safelight=mine)


def _walker(scheduler: Any, sample: Any, output: Any, options: dict[str, Any]) -> Callable[[], tuple[float, Any]]:
    """A walk down the schedule: (median seconds of a step, the last sample)."""
    options = options if "generator" in type(scheduler).step.__annotations__ else {}

    def walk() -> tuple[float, Any]:
        if "generator" in options:
            options["generator"].prepare()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.set_timesteps(STEPS)
        latents, times = sample * float(getattr(scheduler, "init_noise_sigma", 1.0)), []
        for timestep in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):  # flow matching has none in diffusers
                scheduler.scale_model_input(latents, timestep)
            started = perf_counter()
            latents = scheduler.step(output, timestep, latents, return_dict=False, **options)[0]
            times.append(perf_counter() - started)
        return statistics.median(times), latents

    return walk


@contextmanager
def _drawing_nothing(scheduler: Any, noise: torch.Tensor) -> Iterator[None]:
    """Gives a scheduler of diffusers this noise where it would draw some."""
    module = sys.modules[type(scheduler).__module__]
    if not hasattr(module, "randn_tensor"):
        yield
        return
    with mock.patch.object(module, "randn_tensor", return_value=noise):
        yield


def table(timings: Sequence[Timing]) -> str:
    """A row a scheduler, a pair of columns a shape; microseconds, and the ratio to diffusers."""
    shapes = sorted({timing.shape for timing in timings})
    by = {(timing.scheduler, timing.shape): timing for timing in timings}
    heads = [f"{'x'.join(map(str, shape))}: diffusers, safelight, x" for shape in shapes]
    lines = ["| scheduler | " + " | ".join(heads) + " |", "|---" * (len(shapes) + 1) + "|"]
    for name in sorted({timing.scheduler for timing in timings}):
        cells = [_cell(by[name, shape]) for shape in shapes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for shape in shapes:
        ratios = [timing.ratio for timing in timings if timing.shape == shape]
        lines.append(
            f"{'x'.join(map(str, shape))}: median x {statistics.median(ratios):.2f}, largest {max(ratios):.2f}"
        )
    return "\n".join(lines)


def _is_usable(name: str) -> bool:
    """Whether diffusers has the scheduler, and the packages that it needs are there (DPMSolverSDE: torchsde)."""
    return hasattr(diffusers, name) and not hasattr(getattr(diffusers, name), "_backends")  # which its stand-ins have


def _cell(timing: Timing) -> str:
    if not timing.difference <= SAME:
        return f"DIFFERS by {timing.difference:.1e}"
    return f"{timing.diffusers:.0f} us, {timing.safelight:.0f} us, {timing.ratio:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes the JSON; the exit status is 1 when a result differs."""
    parser = argparse.ArgumentParser(description="One step of each scheduler beside diffusers'.")
    parser.add_argument("--scheduler", action="append", help="only this one; may be given again")
    parser.add_argument("--runs", type=int, default=15, help=f"walks of {STEPS} steps each (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch's; NumPy has one (default: torch's own choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    names = arguments.scheduler or [name for name in every_scheduler() if _is_usable(name)]
    timings = [measure(name, shape, arguments.runs) for name in names for shape in SHAPES]
    noise = [measure_noise(shape, arguments.runs) for shape in SHAPES]
    print(table(timings))
    print(table(noise))
    if arguments.json is not None:
        content = {
            "machine": machine(),
            "versions": versions(),
            "torch_threads": torch.get_num_threads(),
            "steps": STEPS,
            "runs": arguments.runs,
            "microseconds": [asdict(timing) | {"ratio": timing.ratio} for timing in timings],
            "noise": [asdict(timing) | {"ratio": timing.ratio} for timing in noise],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(timing.difference <= SAME for timing in (*timings, *noise)) else 1


if __name__ == "__main__":
    sys.exit(main())
