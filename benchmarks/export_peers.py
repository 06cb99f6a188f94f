"""The export of one checkpoint by safelight and by optimum-onnx: seconds, memory, bytes.

`python -m safelight.benchmarks.export_peers --shape sdxl-unet [--json FILE]`, after `make interchange-setup`.

Each export is a fresh process; of it and of all that it starts the memory is sampled (see `process_tree`). What each
wrote is run, and its UNet's output compared with the first one's, before the table is printed. An exporter that fails,
or needs more memory than the limit, is a row that says so, and the rest goes on.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from safelight.runtime.backends import Array

from .machine import machine, versions
from .process_tree import Usage, failure, run
from .published import SHAPES, count_parameters, write_checkpoint

ITEM_SIZES = {"fp32": 4, "fp16": 2}
#: relative difference of a UNet's output from the first exporter's, for its numbers to count
SAME = {"fp32": 1e-4, "fp16": 5e-2}
_OPTIMUM = Path(__file__).resolve().parent.parent / ".venv-optimum" / "bin"
_PEERS = ("optimum-onnx", "optimum", "torch", "onnx", "onnxruntime", "diffusers", "transformers")
_GIB = 2**30

_WITHOUT_VALIDATION = """
import sys
from optimum.exporters.onnx import main_export
main_export(sys.argv[1], sys.argv[2], task="text-to-image", dtype=sys.argv[3], do_validation=False)
"""


@dataclass(frozen=True)
class Exporter:
    """One way to export."""

    command: Callable[[str, str, str], list[str]]  # of checkpoint, destination, dtype
    program: Path  # without which it takes no part
    weights: str | None = None  # the dtype of what it stores, where that is not the arithmetic's


def _safelight(*options: str) -> Callable[[str, str, str], list[str]]:
    program = [sys.executable, "-m", "safelight.runtime", "export"]
    return lambda checkpoint, destination, dtype: [*program, checkpoint, destination, "--dtype", dtype, *options]


def _optimum_cli(checkpoint: str, destination: str, dtype: str) -> list[str]:
    program = [str(_OPTIMUM / "optimum-cli"), "export", "onnx"]
    return [*program, "--model", checkpoint, "--task", "text-to-image", "--dtype", dtype, destination]


def _optimum(checkpoint: str, destination: str, dtype: str) -> list[str]:
    return [str(_OPTIMUM / "python"), "-c", _WITHOUT_VALIDATION, checkpoint, destination, dtype]


EXPORTERS: Mapping[str, Exporter] = {
    "safelight, not validated": Exporter(_safelight("--no-validate"), Path(sys.executable)),
    "safelight, not validated, weights in fp16": Exporter(
        _safelight("--no-validate", "--weights-dtype", "fp16"), Path(sys.executable), "fp16"
    ),
    "safelight": Exporter(_safelight(), Path(sys.executable)),
    "safelight, weights in fp16": Exporter(_safelight("--weights-dtype", "fp16"), Path(sys.executable), "fp16"),
    "optimum, not validated": Exporter(_optimum, _OPTIMUM / "python"),
    "optimum-cli": Exporter(_optimum_cli, _OPTIMUM / "optimum-cli"),
}


@dataclass(kw_only=True)
class Row:
    """What is known of one exporter."""

    exporter: str
    missing: str | None = None  # why there are no numbers, or none that count
    unchecked: str | None = None  # why its UNet's output was not compared
    command: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each run
    process_memory: int | None = None  # resident bytes, the most of any process in any run
    tree_memory: int | None = None  # of all processes at one moment
    folder_bytes: int | None = None  # of what it left
    written_bytes: int | None = None  # given to the disk on the way, the most of any run
    ratio: float | None = None  # of `folder_bytes` to those of the checkpoint's parameters in the stored dtype
    difference: float | None = None  # of its UNet's output from the first exporter's, relative


def measure(
    checkpoint: Path,
    names: Sequence[str],
    *,
    dtype: str,
    parameters: int,
    runs: int,
    memory_limit: int,
    workspace: Path,
    progress: Callable[[str], None],
) -> list[Row]:
    """Runs each exporter, in turns.

    Args:
        checkpoint: what to export.
        names: of `EXPORTERS`.
        dtype: of the arithmetic: a key of `ITEM_SIZES`.
        parameters: how many the checkpoint has.
        runs: exports by each.
        memory_limit: resident bytes of an exporter's processes together; when they have more, they are killed.
        workspace: a folder for what the exporters write, which is deleted again.
        progress: told a line before each process.
    """
    rows = [Row(exporter=name) for name in names]
    outputs: dict[str, Array] = {}
    for turn in range(runs):
        for row in rows:
            if row.missing is not None:
                continue
            exporter = EXPORTERS[row.exporter]
            if not exporter.program.is_file():
                row.missing = f"{exporter.program} is not there: make interchange-setup"
                continue
            progress(f"{row.exporter}: export {turn + 1} of {runs}")
            destination, log = workspace / "exported", workspace / "log.txt"
            row.command = exporter.command(str(checkpoint), str(destination), dtype)
            os.sync()  # what the one before wrote is not to be this one's burden
            usage = run(row.command, log=log, memory_limit=memory_limit, environment=_environment())
            _add(row, usage)
            row.missing = failure(usage, log, memory_limit)
            if row.missing is None:
                row.folder_bytes = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
                row.ratio = row.folder_bytes / (parameters * ITEM_SIZES[exporter.weights or dtype])
                if turn == 0:
                    progress(f"{row.exporter}: the UNet's output")
                    _check(row, destination, workspace, memory_limit, outputs)
            shutil.rmtree(destination, ignore_errors=True)
    for row in rows:
        if row.exporter in outputs:
            first = next(iter(outputs.values()))
            row.difference = float(np.abs(outputs[row.exporter] - first).max() / np.abs(first).max())
            if not row.difference <= SAME[dtype]:
                row.missing = f"its UNet's output differs by {row.difference:.1e}"
    return rows


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def _add(row: Row, usage: Usage) -> None:
    """Takes a run's numbers into the row; those of a run that failed too, which say how far it came."""
    row.seconds.append(usage.seconds)
    row.process_memory = max(row.process_memory or 0, usage.process_memory)
    row.tree_memory = max(row.tree_memory or 0, usage.tree_memory)
    if usage.written_bytes is not None:
        row.written_bytes = max(row.written_bytes or 0, usage.written_bytes)


def _check(row: Row, folder: Path, workspace: Path, memory_limit: int, outputs: dict[str, Array]) -> None:
    """Adds the output of the folder's UNet to the others, or says in the row why there is none."""
    file, log = workspace / "output.npy", workspace / "log.txt"
    command = [sys.executable, "-m", "safelight.benchmarks.unet_output", str(folder), str(file)]
    usage = run(command, log=log, memory_limit=memory_limit)
    reason = failure(usage, log, memory_limit)
    if usage.over_limit:  # the engine's need, not the exporter's fault
        row.unchecked = f"its UNet was not run: {reason}"
    elif reason is not None:
        row.missing = f"what it wrote does not run: {reason}"
    else:
        outputs[row.exporter] = np.load(file)


def table(rows: Sequence[Row]) -> str:
    """A row an exporter."""
    heads = ("exporter", "UNet: difference", "time", "largest process", "all processes", "folder", "x", "written")
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    missing = [f"{row.exporter}: {reason}" for row in rows if (reason := row.missing or row.unchecked) is not None]
    note = "x: the folder's bytes to the parameters' in the dtype that is stored; written: deleted files too"
    return "\n".join([*text, "", *missing, note])


def _cells(row: Row) -> tuple[str, ...]:
    if row.missing is not None:
        return (row.exporter, "-", "-", _gib(row.process_memory), _gib(row.tree_memory), "-", "-", "-")
    return (
        row.exporter,
        "-" if row.difference is None else f"{row.difference:.1e}",
        f"{statistics.median(row.seconds):.1f} s",
        _gib(row.process_memory),
        _gib(row.tree_memory),
        _gib(row.folder_bytes),
        f"{row.ratio:.3f}",
        _gib(row.written_bytes),
    )


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / _GIB:.2f} GiB"


def _peer_versions() -> dict[str, str]:
    """Of the packages in the other tool's environment; none when it is not there."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {_PEERS}}}))"
    if not (_OPTIMUM / "python").is_file():
        return {}
    result = subprocess.run([str(_OPTIMUM / "python"), "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, str] = json.loads(result.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, writes the JSON, prints the table; the exit status is 1 when outputs differ or there are none."""
    parser = argparse.ArgumentParser(description="The export of one checkpoint by safelight and by optimum-onnx.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shape", choices=list(SHAPES), help="a published one, with random weights in fp16")
    source.add_argument("--checkpoint", type=Path, help="one that is there")
    parser.add_argument("--exporter", action="append", choices=list(EXPORTERS), help="only these (default: all)")
    parser.add_argument("--dtype", choices=list(ITEM_SIZES), default="fp32", help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=1, help="exports by each, in turns (default: %(default)s)")
    parser.add_argument("--memory-limit", type=float, default=21.0, metavar="GIB", help="(default: %(default)s)")
    parser.add_argument("--workspace", type=Path, default=Path(".cache"), help="on a disk (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1 or not arguments.memory_limit > 0:
        parser.error(f"--runs and --memory-limit must be above 0, got {arguments.runs} and {arguments.memory_limit}")
    names = arguments.exporter or list(EXPORTERS)
    if arguments.dtype == "fp16":  # which it stores anyway
        names = [name for name in names if EXPORTERS[name].weights is None]
    arguments.workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export-peers-", dir=arguments.workspace) as folder:
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = Path(folder, arguments.shape)
            _say(f"{arguments.shape}: writing a checkpoint")
            write_checkpoint(checkpoint, SHAPES[arguments.shape])
        parameters = count_parameters(checkpoint)
        rows = measure(
            checkpoint,
            names,
            dtype=arguments.dtype,
            parameters=parameters,
            runs=arguments.runs,
            memory_limit=int(arguments.memory_limit * _GIB),
            workspace=Path(folder),
            progress=_say,
        )
    if arguments.json is not None:
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "versions": {"safelight": versions(), "optimum": _peer_versions()},
            "checkpoint": {"name": arguments.shape or checkpoint.resolve().name, "parameters": parameters},
            "dtype": arguments.dtype,
            "memory_limit": int(arguments.memory_limit * _GIB),
            "rows": [asdict(row) | {"command": _portable(row.command, Path(folder))} for row in rows],
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    differs = any(row.difference is not None and not row.difference <= SAME[arguments.dtype] for row in rows)
    return 1 if differs or all(row.missing is not None for row in rows) else 0


def _portable(command: Sequence[str], workspace: Path) -> str:
    """A command as one types it in the repository."""
    names = {sys.executable: "python", str(_OPTIMUM): ".venv-optimum/bin", str(workspace): "."}
    words = list(command)
    for path, name in names.items():
        words = [word.replace(path, name) for word in words]
    return shlex.join(words)


def _say(line: str) -> None:
    print(f"... {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
