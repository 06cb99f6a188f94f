"""What 8 bits are worth on this machine: times, memory, size and error of a model's UNet, each in a process of its own.

    python -m safelight.benchmarks.int8 MODEL --json benchmarks/results/int8-NAME.json

MODEL is an exported folder with its proof. It is quantized here twice, arithmetic and weights, and weights alone; what
`safelight quantize` would say of either is in the output, and neither is kept.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from safelight.export.quantization.folder import quantize_model
from safelight.export.quantization.gate import at_own_size
from safelight.export.quantization.request import Request
from safelight.runtime.backends import AUTO
from safelight.runtime.fidelity import Proof
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.networks import Engine

from .machine import machine, versions
from .peers.job import peak_memory

NETWORK = "unet"
ROUNDS, CALLS, WARM_UP = 5, 5, 2


def one(model: Path, backend: str, precision: str, threads: int | None) -> dict[str, Any]:
    """Opens the UNet of a folder, and times some calls of the model's own size."""
    folder = open_model_folder(model)
    folder.trust()  # to hash it is no part of opening it
    call = at_own_size(folder, NETWORK, Proof.read(folder).of(NETWORK)[0].arrays())
    started = time.perf_counter()
    network = Engine.of(folder, backend=backend, precision=precision, threads=threads).open(folder, NETWORK)
    opened = time.perf_counter() - started
    seconds = []
    for _ in range(WARM_UP + CALLS):
        started = time.perf_counter()
        network(call)
        seconds.append(time.perf_counter() - started)
    shapes = {name: list(np.shape(array)) for name, array in call.items()}
    return {"open": opened, "calls": seconds[WARM_UP:], "peak_memory": peak_memory(), "shapes": shapes}


def apart(model: Path, backend: str, precision: str, threads: int | None) -> dict[str, Any]:
    """Does `one` in a new process."""
    command = [sys.executable, "-m", __spec__.name, str(model), "--one", "--backend", backend, "--precision", precision]
    command += [] if threads is None else ["--threads", str(threads)]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(json.loads(found.splitlines()[-1]))


def compare(model: Path, backend: str, threads: int | None) -> dict[str, Any]:
    """Quantizes a model twice, and measures both beside it, in rounds."""
    source = open_model_folder(model)
    result: dict[str, Any] = {"backend": backend, "threads": threads, "rows": {}}
    result |= {"machine": machine(), "versions": versions()}
    with tempfile.TemporaryDirectory() as scratch:
        rows = {"float32": (model, "fp32"), "fastest float": (model, AUTO)}
        for name, activations in (("int8", "int8"), ("int8 weights", None)):
            folder = Path(scratch) / name
            outcome = quantize_model(
                source,
                folder,
                Request(activations=activations),
                backend=backend,
                threads=threads,
                keep_anyway=True,
                progress=lambda line: print(line, file=sys.stderr, flush=True),
            )
            rows[name] = folder, AUTO
            result["rows"][name] = {
                "gate": outcome.reasons,
                "fidelity": outcome.report.as_json(),
                "weight_bytes": outcome.bytes_after,
            }
            result["rows"]["float32"] = {"weight_bytes": outcome.bytes_before}
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in rows}
        for number in range(ROUNDS):
            for name, (folder, precision) in rows.items():
                print(f"round {number + 1} of {ROUNDS}: {name}", file=sys.stderr, flush=True)
                runs[name].append(apart(folder, backend, precision, threads))
    for name, found in runs.items():
        result["rows"].setdefault(name, {})["runs"] = found
    return result


def table(result: dict[str, Any]) -> str:
    """The medians, and ratios within each round to the fastest float."""
    lines = [f"{'':16} {'s a call':>9} {'ratio':>6} {'peak MB':>8} {'weights MB':>10} {'PSNR dB':>8}"]
    base = [statistics.median(run["calls"]) for run in result["rows"]["fastest float"]["runs"]]
    for name in ("float32", "fastest float", "int8", "int8 weights"):
        row = result["rows"][name]
        times = [statistics.median(run["calls"]) for run in row["runs"]]
        ratio = statistics.median(mine / other for mine, other in zip(times, base, strict=True))
        peak = max(run["peak_memory"] or 0 for run in row["runs"]) / 1e6
        size = f"{row['weight_bytes'] / 1e6:.1f}" if "weight_bytes" in row else ""
        run = row.get("fidelity", {}).get("run")
        shown = f"{run['psnr']:.1f}" if run else ""
        lines.append(f"{name:16} {statistics.median(times):9.4f} {ratio:6.2f} {peak:8.0f} {size:>10} {shown:>8}")
        lines += [f"  {reason}" for reason in row.get("gate", [])]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", default=AUTO, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.model, arguments.backend, arguments.precision, arguments.threads)))
        return
    result = compare(arguments.model, arguments.backend, arguments.threads)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
