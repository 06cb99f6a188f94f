"""One network on OpenVINO and on ONNX Runtime: opening, first call, next calls, memory, and the distance from float32.

`python -m safelight.benchmarks.openvino_network FOLDER [--network unet] [--latent 64] [--rounds 3] [--json FILE]`

Every row is a process of its own, the rows are interleaved, and each round begins with nothing compiled on the disk.
What is compared with float32 is one call on the same random inputs.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from safelight.runtime.backends import Array, TensorSpec, Tuning, open_network
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.source import cache_folder

from .machine import machine, versions

#: row -> backend, precision and options; "again" finds what the row before it has left on the disk
ROWS: Mapping[str, tuple[str, str | None, Mapping[str, Any]]] = {
    "onnxruntime": ("onnxruntime", None, {}),
    "fp32": ("openvino", "fp32", {}),
    "fp32 again": ("openvino", "fp32", {}),
    "fp32, all shapes": ("openvino", "fp32", {"static_shapes": False}),
    "bf16": ("openvino", "bf16", {}),
    "bf16 again": ("openvino", "bf16", {}),
    "bf16, all shapes": ("openvino", "bf16", {"static_shapes": False}),
    "fp16": ("openvino", "fp16", {}),
}
CALLS = 3  # after the first
BATCH = 2  # a guided picture's


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; exit status 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="unet")
    parser.add_argument("--latent", type=int, default=64, help="height and width of the input (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", help=argparse.SUPPRESS)  # what a process of its own does
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.row is not None:
        print(json.dumps(measured(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as workspace:
        rows = _rounds(arguments, Path(workspace))
    for row in rows:
        print(json.dumps(row))
    if arguments.json is not None:
        what = {"network": arguments.network, "latent": arguments.latent, "batch": BATCH, "rounds": arguments.rounds}
        report = {"machine": machine(), "versions": versions(), **what, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process: seconds, bytes, and what came out as a file."""
    backend, precision, options = ROWS[arguments.row]
    folder = open_model_folder(arguments.folder)
    graph = folder.graph(arguments.network, "onnxruntime-cpu" if backend == "onnxruntime" else "openvino")
    started = perf_counter()
    network = open_network(graph, backend=backend, tuning=Tuning(precision=precision, options=options))
    opened = perf_counter() - started
    inputs = {spec.name: _input(spec, arguments.latent) for spec in network.inputs}
    seconds = []
    for _ in range(1 + CALLS):
        started = perf_counter()
        output = next(iter(network(inputs).values()))
        seconds.append(perf_counter() - started)
    np.save(arguments.answer, output)
    kept = sum(path.stat().st_size for path in (cache_folder() / "openvino").glob("*.blob"))
    return {"open": opened, "first": seconds[0], "next": min(seconds[1:]), "on_disk": kept, **_memory()}


def _rounds(arguments: argparse.Namespace, workspace: Path) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    failed: dict[str, str] = {}
    for number in range(arguments.rounds):
        for row in ROWS:
            cache = workspace / f"{number}-{row.removesuffix(' again')}"
            command = [sys.executable, "-m", __spec__.name, str(arguments.folder), "--row", row]
            command += ["--network", arguments.network, "--latent", str(arguments.latent)]
            command += ["--answer", str(workspace / f"{row}.npy")]
            run = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "SAFELIGHT_CACHE": str(cache)}, check=False
            )
            if run.returncode:
                failed[row] = run.stderr.strip().splitlines()[-1]
            else:
                found[row].append(json.loads(run.stdout.splitlines()[-1]))
    answers = {row: np.load(workspace / f"{row}.npy") for row in ROWS if row not in failed}
    return [
        {"row": row, "failed": failed[row]} if row in failed else _row(row, runs, answers[row], answers["fp32"])
        for row, runs in found.items()
    ]


def _row(row: str, runs: list[dict[str, Any]], answer: Array, exact: Array) -> dict[str, Any]:
    """The median of each number, and the error of one call, relative in length."""
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    error = float(np.linalg.norm(answer - exact) / np.linalg.norm(exact))
    return {"row": row, **medians, "relative_error": error}


def _input(spec: TensorSpec, latent: int) -> Array:
    """Standard normal numbers of an input's shape; a timestep, or token ids, where it takes those."""
    sizes = [BATCH, *([77] if len(spec.shape) < 4 else [0, latent, latent])]  # a prompt's tokens, or a picture's sides
    shape = [size if isinstance(size, int) else sizes[axis] for axis, size in enumerate(spec.shape)]
    if len(shape) <= 1 or spec.dtype.kind == "i":
        return np.full(shape, 500, spec.dtype)
    return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)


def _memory() -> dict[str, int]:
    """Resident bytes of this process: its own, mapped files', and the most that it had; none where Linux is not."""
    status = Path("/proc/self/status")
    text = status.read_text() if status.is_file() else ""
    names = {"anonymous": "RssAnon", "mapped": "RssFile", "peak": "VmHWM"}
    matches = {name: re.search(rf"{field}:\s*(\d+) kB", text) for name, field in names.items()}
    return {name: int(match[1]) * 1024 for name, match in matches.items() if match}


if __name__ == "__main__":
    sys.exit(main())
