"""Runs the contenders and collects what they did; the pictures are compared before any time is looked at."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .case import Case
from .contenders import CONTENDERS, REFERENCE

#: largest difference of a float image from the reference's, in 1/255, for a time to count
SAME_PICTURE = 1.0


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, least and most of several measurements."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


@dataclass(kw_only=True)
class Row:
    """What is known of one contender."""

    contender: str
    missing: str | None = None  # why it took no part
    difference: float | None = None  # of its float image from the reference's, largest, in 1/255
    cold_seconds: Spread | None = None  # from the start of the process to its end, with the picture saved
    peak_memory: int | None = None  # resident bytes of such a process
    warm_seconds: dict[str, Spread] = field(default_factory=dict)  # by stage

    @property
    def comparable(self) -> bool:
        """Whether its times may stand beside the reference's: the picture is the same, or there is no reference."""
        return self.missing is None and (self.difference is None or self.difference <= SAME_PICTURE)


def measure(
    case: Case, *, runs: int, cold_runs: int, names: Sequence[str] = (), progress: Callable[[str], None]
) -> list[Row]:
    """Measures each contender in processes of its own, cold starts in turns.

    Args:
        case: the picture.
        runs: warm pictures of each, after one warm-up.
        cold_runs: processes of each that make one picture and end.
        names: of the contenders; all of them when empty.
        progress: told a line before each process.
    """
    rows = {name: Row(contender=name, missing=CONTENDERS[name].missing(case)) for name in names or CONTENDERS}
    images: dict[str, Any] = {}
    taking_part = [name for name, row in rows.items() if row.missing is None]
    with tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder:
        for name in taking_part:
            progress(f"{name}: {runs} pictures after a warm-up")
            seconds, images[name] = _warm(name, case, runs, Path(folder))
            rows[name].warm_seconds = {stage: Spread.of([run[stage] for run in seconds]) for stage in seconds[0]}
        cold: dict[str, list[tuple[float, int | None]]] = {name: [] for name in taking_part}
        for turn in range(cold_runs):
            for name in taking_part:
                progress(f"{name}: cold start {turn + 1} of {cold_runs}")
                cold[name].append(_cold(name, case, Path(folder)))
    for name, starts in cold.items():
        if starts:
            rows[name].cold_seconds = Spread.of([seconds for seconds, _ in starts])
            peaks = [memory for _, memory in starts if memory is not None]
            rows[name].peak_memory = int(statistics.median(peaks)) if peaks else None
    for name, image in images.items():
        if REFERENCE in images:
            rows[name].difference = float(np.abs(image - images[REFERENCE]).max() * 255)
    return list(rows.values())


def _command(name: str, case: Case, runs: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "safelight.benchmarks.worker", name, case.to_json(), str(runs), str(folder)]


def _warm(name: str, case: Case, runs: int, folder: Path) -> tuple[list[dict[str, float]], Any]:
    """The seconds of each run, and the float image."""
    result = subprocess.run(_command(name, case, runs, folder), stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name} failed:\n{result.stderr.strip()}")
    return json.loads((folder / "seconds.json").read_text()), np.load(folder / "image.npy")


def _cold(name: str, case: Case, folder: Path) -> tuple[float, int | None]:
    """Seconds from start to end of a process that makes one picture, and its peak of resident bytes if known."""
    picture = folder / "picture.png"
    picture.unlink(missing_ok=True)
    started = perf_counter()
    result = subprocess.run(_command(name, case, 0, folder), stderr=subprocess.PIPE, text=True, check=False)
    seconds = perf_counter() - started
    if result.returncode or not picture.is_file():
        raise RuntimeError(f"{name} failed at a cold start:\n{result.stderr.strip()}")
    return seconds, json.loads((folder / "memory.json").read_text())
