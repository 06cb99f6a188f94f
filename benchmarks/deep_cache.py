"""What DeepCache saves and what it costs, by branch and interval: `python -m safelight.benchmarks.deep_cache`.

The work is counted in the graphs of a published shape, and in the bundled checkpoint's; drift and time are measured on
the bundled checkpoint, whose pictures mean something.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from safelight.export.component import canonical_graph
from safelight.export.deep_cache import Variant, deep_graph, shallow_graph
from safelight.export.folder import export_model
from safelight.export.lowering import tidy
from safelight.export.networks import NetworkDescription, describe
from safelight.export.options import ExportOptions
from safelight.export.source import open_source
from safelight.reference import UNet2DConditionModel
from safelight.runtime import DiffusionPipeline, StableDiffusionPipeline
from safelight.runtime.backends import Array
from safelight.runtime.fidelity.picture import psnr

from .flops import graph_flops
from .machine import machine, versions
from .published import SHAPES

BRANCHES = (0, 1, 2)  # those at the size of the latents, of a UNet with two layers a level
INTERVALS = (2, 3, 5)
STEPS = 20
PROMPTS = (
    "cat face on a blue background",
    "pizza on a white background",
    "red apple on a green background",
    "dog face on a pink background",
    "rocket on a black background",
    "tiger on an orange background",
)
_CHECKPOINT = Path(__file__).resolve().parent.parent / "reference" / "emoji" / "checkpoint"
_CLASS = "UNet2DConditionModel"


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations of a guided call."""

    shape: str
    branch: int
    deep: int
    shallow: int

    def share(self, interval: int) -> float:
        """Of the operations that a picture takes without a cache."""
        return (self.deep + (interval - 1) * self.shallow) / (interval * self.deep)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Cached pictures beside those that are computed in full."""

    branch: int
    interval: int
    psnr: list[float]  # dB, of each prompt's picture
    seconds: float  # of a picture, the median
    plain_seconds: float


def main() -> None:
    """Prints both tables, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="sd15", choices=SHAPES, help="whose work is counted (default: %(default)s)")
    parser.add_argument("--backend", default="onnxruntime", help="that draws the pictures (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    arguments = parser.parse_args()
    works, drifts = list(work(arguments.shape)), list(drift(arguments.backend))
    if arguments.json:
        content = {
            "machine": machine(),
            "versions": versions(),
            "backend": arguments.backend,
            "steps": STEPS,
            "work": [asdict(each) | {"share": {n: each.share(n) for n in INTERVALS}} for each in works],
            "drift": [asdict(each) for each in drifts],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


def work(shape: str) -> Iterator[Work]:
    """What the graphs of a shape's UNet compute, of the latents that it was trained on."""
    _, given = SHAPES[shape].networks["unet"]
    config = UNet2DConditionModel.from_config(given).config.to_dict()
    (description,) = describe(_CLASS, "unet", config, {})
    graph, _ = canonical_graph(description, _CLASS, config, "fp32")
    side = config["sample_size"]
    sizes = {"batch": 2, "height": side, "width": side, "sequence_length": 77}
    deep = _flops(deep_graph(graph, description, 0), sizes)
    for branch in BRANCHES:
        found = Work(
            shape=shape, branch=branch, deep=deep, shallow=_flops(shallow_graph(graph, description, branch), sizes)
        )
        shares = "  ".join(f"interval {interval}: {found.share(interval):.3f}" for interval in INTERVALS)
        print(
            f"{shape} branch {branch}: a shallow call {found.shallow / deep:.3f} of a whole one;  {shares}", flush=True
        )
        yield found


def _flops(variant: Variant, sizes: Mapping[str, int]) -> int:
    """Of a graph whose weights are inputs yet."""
    graph = variant.graph.clone()
    tidy(graph)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        ir.save(graph, path)
        return graph_flops(path, _shapes(variant.description, sizes))


def _shapes(description: NetworkDescription, sizes: Mapping[str, int]) -> dict[str, Sequence[int]]:
    return {
        tensor.name: tuple(sizes[side] if isinstance(side, str) else side for side in tensor.shape)
        for tensor in description.inputs
    }


def drift(backend: str) -> Iterator[Drift]:
    """How far the bundled checkpoint's pictures drift, and how long they take."""
    with tempfile.TemporaryDirectory() as scratch:
        for branch in BRANCHES:
            folder = Path(scratch) / str(branch)
            options = ExportOptions(weights_dtype="fp16", cache_branch_id=branch, validate=False)
            with open_source(_CHECKPOINT, workspace=folder.parent) as source:
                export_model(source, folder, options)
            pipeline = DiffusionPipeline.from_pretrained(folder, backend=backend)
            assert isinstance(pipeline, StableDiffusionPipeline)
            pipeline.set_progress_bar_config(disable=True)
            with pipeline:
                yield from _drift_of(pipeline, branch)


def _drift_of(pipeline: StableDiffusionPipeline, branch: int) -> Iterator[Drift]:
    pipeline(PROMPTS[0], seed=0, num_inference_steps=2)  # which warms up
    plain, plain_seconds = _pictures(pipeline)
    for interval in INTERVALS:
        pipeline.enable_deep_cache(interval)
        pictures, seconds = _pictures(pipeline)
        found = [psnr(picture, whole) for picture, whole in zip(pictures, plain, strict=True)]
        print(
            f"bundled branch {branch}, interval {interval}: PSNR {statistics.mean(found):.1f} dB, at worst "
            f"{min(found):.1f} dB; {plain_seconds / seconds:.2f} times as fast",
            flush=True,
        )
        yield Drift(branch=branch, interval=interval, psnr=found, seconds=seconds, plain_seconds=plain_seconds)
    pipeline.disable_deep_cache()


def _pictures(pipeline: Any) -> tuple[list[Array], float]:
    """A picture of each prompt, and the median of the seconds that one takes."""
    pictures, seconds = [], []
    for seed, prompt in enumerate(PROMPTS):
        started = time.perf_counter()
        image = pipeline(prompt, seed=seed, num_inference_steps=STEPS).images[0]
        seconds.append(time.perf_counter() - started)
        pictures.append(np.asarray(image))
    return pictures, statistics.median(seconds)


if __name__ == "__main__":
    main()
