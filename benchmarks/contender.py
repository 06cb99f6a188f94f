"""Who takes part: a tool in one precision, in an environment of its own, started as a worker for each measurement."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case
from .rows import Row
from .workspace import Workspace

_PACKAGE = "safelight.benchmarks"


def _nothing_missing(_case: Case) -> str | None:
    return None


def the_export(case: Case, workspace: Workspace) -> Path:
    """The case's model folder, in float32; for `Contender.prepare`."""
    return workspace.export(case)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the table."""

    name: str
    tool: str  # whose rows have one colour
    precision: str  # of the arithmetic: fp32, bf16, fp16, int8
    module: str  # `safelight.benchmarks.peers.NAME`: a worker over `peers.job`
    python: Path | None = None  # of an environment that has no safelight; this process's when None
    missing: Callable[[Case], str | None] = _nothing_missing  # why it cannot take part here; None when it can
    prepare: Callable[[Case, Workspace], Path] = the_export  # makes what the worker opens, and says where it is
    options: Mapping[str, Any] = field(default_factory=dict)  # `Job.options`
    low_memory: bool = False  # whether one network at a time is in memory

    def row(self) -> Row:
        """Of which nothing is known yet."""
        partial = self.options.get("speed") is not None
        return Row(contender=self.name, tool=self.tool, precision=self.precision, partial=partial)

    def command(self, job: Path) -> list[str]:
        """What starts its worker."""
        if self.python is None:
            return [sys.executable, "-m", self.module, str(job)]
        return [str(self.python), "-m", self.module.replace(_PACKAGE, "benchmarks", 1), str(job)]

    def environment(self) -> dict[str, str]:
        """Of its worker: no downloads, and where there is no safelight the folder that holds `benchmarks`."""
        variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if self.python is not None:
            variables["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
            variables.pop("VIRTUAL_ENV", None)
        return variables
