"""The measurements as a table, and as JSON with the machine and the versions that they were made on."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .case import Case
from .measure import Row, Spread

PACKAGES = ("safelight", "numpy", "onnxruntime", "torch", "diffusers", "transformers")
COLUMNS = ("contender", "picture: max |difference|", "warm", "x", "cold", "x", "memory", "x")


def table(rows: Sequence[Row], against: str) -> str:
    """A row a contender; the columns x are ratios to one of them, where less is better."""
    base = next((row for row in rows if row.contender == against and row.comparable), None)
    lines = [COLUMNS, *(_cells(row, base) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    stages = [f"{row.contender}: {_stages(row)}" for row in rows if row.comparable and row.warm_seconds]
    missing = [f"{row.contender}: not measured: {row.missing}" for row in rows if row.missing]
    note = f"x: ratio to {against}" if base else f"x: no ratios, because {against} took no part or differs"
    return "\n".join([*text, "", "stages, warm:", *stages, *missing, "", note])


def report(case: Case, rows: Sequence[Row], runs: int, cold_runs: int) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "case": asdict(case) | {"model": Path(case.model).name, "checkpoint": case.checkpoint is not None},
        "runs": {"warm": runs, "cold": cold_runs},
        "rows": [asdict(row) for row in rows],
    }


def _cells(row: Row, base: Row | None) -> tuple[str, ...]:
    if row.missing is not None:
        return (row.contender, "-", "-", "", "-", "", "-", "")
    difference = "-" if row.difference is None else f"{row.difference:.4f} / 255"
    if not row.comparable:
        return (row.contender, f"{difference} DIFFERS", "-", "", "-", "", "-", "")
    warm, cold, memory = row.warm_seconds.get("total"), row.cold_seconds, row.peak_memory
    return (
        row.contender,
        difference,
        _seconds(warm),
        _ratio(warm, base.warm_seconds.get("total") if base else None),
        _seconds(cold),
        _ratio(cold, base.cold_seconds if base else None),
        "-" if memory is None else f"{memory / 2**20:.0f} MiB",
        f"{memory / base.peak_memory:.2f}" if memory and base and base.peak_memory else "",
    )


def _seconds(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.3f} s ({spread.least:.3f}..{spread.most:.3f})"


def _ratio(spread: Spread | None, base: Spread | None) -> str:
    return f"{spread.median / base.median:.2f}" if spread and base else ""


def _stages(row: Row) -> str:
    return ", ".join(f"{stage} {_seconds(spread)}" for stage, spread in row.warm_seconds.items() if stage != "total")


def machine() -> dict[str, Any]:
    """What the measurements were made on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return {
        "processor": model or platform.processor(),
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str | None]:
    """Of the packages that took part; None for those that are not installed."""
    return {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
