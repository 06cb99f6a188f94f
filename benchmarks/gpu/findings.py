"""All that is known so far: as JSON after each row, and as text at the end."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..machine import machine, versions
from .cases import CASES
from .contenders import CONTENDERS
from .inventory import Inventory
from .jobs import Job, Tests
from .rows import GpuRow
from .table import ceiling_line, legend, table, targets


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is to be measured."""

    device: str = "cuda"
    cases: tuple[str, ...] = ("sd15", "sdxl")
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    seconds: float = 460.0  # for everything
    steps: int = 50  # of a picture
    batches: tuple[int, ...] = (1, 4)
    work: Path  # for what is kept
    json: Path | None = None  # for what is found
    tests: bool = True  # those that need a GPU


@dataclass(kw_only=True)
class Findings:
    """What is known so far."""

    options: Options
    inventory: Inventory
    tests: Tests | None = None
    ceiling: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, dict[str, Job]] = field(default_factory=dict)  # by case
    flops: dict[str, dict[str, int]] = field(default_factory=dict)  # by case: of a guided step, by who counted
    rows: list[GpuRow] = field(default_factory=list)

    def save(self) -> None:
        """Writes the JSON, if one is wanted; a reader finds the old one or the new one."""
        if (file := self.options.json) is None:
            return
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "versions": versions() | self.inventory.versions,
            "inventory": asdict(self.inventory),
            "options": {
                "device": self.options.device,
                "cases": self.options.cases,
                "steps": self.options.steps,
                "budget": self.options.seconds,
            },
            "tests": None if self.tests is None else asdict(self.tests),
            "ceiling": self.ceiling,
            "jobs": {case: {name: asdict(job) for name, job in jobs.items()} for case, jobs in self.jobs.items()},
            "flops": self.flops,
            "rows": [row.to_json() for row in self.rows],
        }
        partial = file.with_name(f"{file.name}.partial")
        partial.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")
        partial.replace(file)

    @property
    def succeeded(self) -> bool:
        """Whether something was measured, and nothing was found wrong."""
        failed = self.tests is not None and self.tests.failed > 0
        return any(row.counts for row in self.rows) and not any(row.differs for row in self.rows) and not failed

    def lines(self) -> list[str]:
        """The tables, and what stands around them."""
        steps = self.options.steps
        text = [*legend(self.options.contenders), "", *self.inventory.lines(), ceiling_line(self.ceiling)]
        text.append("GPU tests: not wanted" if self.tests is None else self.tests.line())
        for case in self.options.cases:
            rows = [row for row in self.rows if row.case == case]
            jobs = [f"{name} {job.failure or f'{job.seconds:.1f} s'}" for name, job in self.jobs.get(case, {}).items()]
            counted = self.flops.get(case, {})
            peak = self.ceiling.get("teraflops", {}).get("fp16")
            flops = next(iter(counted.values()), None)
            text += ["", *table(case, rows, steps=steps, flops=flops, teraflops=peak)]
            text.append(f"prepared once, side by side (0.0 s: was there): {', '.join(jobs)}")
            if len(set(counted.values())) > 1:
                text.append(f"the operations of a step were counted differently: {counted}")
            text += targets(case, rows, CASES[case].target, steps=steps)
        return text


def _finite(value: Any) -> Any:
    """The value for JSON, which has no infinity: None."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
