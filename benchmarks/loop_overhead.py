"""What a step of the loop costs besides the network: `python -m safelight.benchmarks.loop_overhead [MODEL]`.

The UNet's network is wrapped, so that the time inside of it is known; what is left of the loop's time is scaling,
joining, guidance and the scheduler's step, in the processor's time, which other programs do not lengthen.
A profile says where it goes.
"""

import argparse
import cProfile
import io
import json
import pstats
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any
from unittest import mock

from safelight.runtime import StableDiffusionPipeline, bundled_model
from safelight.runtime.backends import Array, Network
from safelight.runtime.denoising import denoise
from safelight.runtime.pipelines import text_guided
from safelight.runtime.schedulers import scheduler_class
from safelight.runtime.speed import Speed

from .machine import machine, versions

PROMPT = "cat face on a blue background"
SCHEDULERS = ("EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")


class TimedNetwork:
    """A network that knows how long it ran."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.inputs, self.outputs = network.inputs, network.outputs
        self.seconds = 0.0
        self.processor_seconds = 0.0  # of the calling thread

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs it."""
        began, started = thread_time(), perf_counter()
        found = self._network(inputs, outputs)
        self.seconds += perf_counter() - started
        self.processor_seconds += thread_time() - began
        return found

    def close(self) -> None:
        """Gives the engine's memory back."""
        self._network.close()


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """What a step costs, in milliseconds: medians over runs."""

    scheduler: str
    speed: str
    step: float
    inside: float  # the network
    outside: float  # of the processor's time
    outside_spread: float  # between the quartiles


def measure(pipeline: Any, scheduler: str, speed: Speed, *, steps: int, runs: int) -> Overhead:
    """Runs the loop a few times.

    Args:
        pipeline: text to image.
        scheduler: its class name.
        speed: what is left out.
        steps: of each run.
        runs: how many; one more before them warms up.
    """
    own, network = pipeline.scheduler, pipeline.unet.network
    timed = TimedNetwork(network)
    pipeline.unet.network, pipeline.scheduler = timed, scheduler_class(scheduler).from_config(own.config)
    pipeline.enable_speed(speed)
    step, inside, outside = [], [], []
    try:
        for _ in range(runs + 1):
            timed.seconds = timed.processor_seconds = 0.0
            with _denoising() as own_time:
                seconds = pipeline(PROMPT, num_inference_steps=steps, seed=0, output_type="latent").timings["denoise"]
            step.append(seconds / steps * 1e3)
            inside.append(timed.seconds / steps * 1e3)
            outside.append((own_time[0] - timed.processor_seconds) / steps * 1e3)
    finally:
        pipeline.disable_speed()
        pipeline.unet.network, pipeline.scheduler = network, own
    quartiles = statistics.quantiles(outside[1:], n=4)
    return Overhead(
        scheduler=scheduler,
        speed=str(speed),
        step=statistics.median(step[1:]),
        inside=statistics.median(inside[1:]),
        outside=statistics.median(outside[1:]),
        outside_spread=quartiles[2] - quartiles[0],
    )


@contextmanager
def _denoising() -> Iterator[list[float]]:
    """The processor's time in the loop, in seconds, in a list of one, once it was run."""
    found: list[float] = []

    def timed(*arguments: Any, **options: Any) -> Array:
        began = thread_time()
        latents = denoise(*arguments, **options)
        found.append(thread_time() - began)
        return latents

    with mock.patch.object(text_guided, "denoise", timed):
        yield found


def profile(pipeline: Any, steps: int) -> str:
    """Where the loop's own time goes: the functions by their own time, the network's call among them."""
    profiler = cProfile.Profile()
    pipeline(PROMPT, num_inference_steps=2, output_type="latent")  # the first call imports
    profiler.runcall(pipeline, PROMPT, num_inference_steps=steps, seed=0, output_type="latent")
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(40)
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description="What a step costs besides the network.")
    parser.add_argument("model", nargs="?", type=Path, help="a folder (default: the bundled model)")
    parser.add_argument("--steps", type=int, default=50, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--backend", default="auto", help="(default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    arguments = parser.parse_args(argv)
    model = arguments.model or bundled_model()
    pipeline = StableDiffusionPipeline.from_pretrained(model, backend=arguments.backend, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    if arguments.profile:
        print(profile(pipeline, arguments.steps))
    pairs = [(scheduler, Speed()) for scheduler in SCHEDULERS] + [(SCHEDULERS[0], Speed.of("balanced"))]
    found = [measure(pipeline, *pair, steps=arguments.steps, runs=arguments.runs) for pair in pairs]
    print("| scheduler | speed | step | network | besides, ms |\n|---|---|---|---|---|")
    for row in found:
        outside = f"{row.outside:.3f} (spread {row.outside_spread:.3f})"
        print(f"| {row.scheduler} | {row.speed} | {row.step:.2f} | {row.inside:.2f} | {outside} |")
    if arguments.json is not None:
        content = {
            "machine": machine(),
            "versions": versions(),
            "model": "emoji" if arguments.model is None else str(model),
            "backend": pipeline.engine.backend,
            "steps": arguments.steps,
            "runs": arguments.runs,
            "milliseconds": [asdict(row) for row in found],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
