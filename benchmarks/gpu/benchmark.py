"""The whole of it, in the order of its value: what is there, the ceiling, the preparation, then row after row."""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..process_tree import failure, run
from .budget import Budget
from .cases import CASES
from .contenders import CONTENDERS, Task
from .findings import Findings, Options
from .inventory import Inventory
from .jobs import Job, Tests, perform, run_tests
from .memory import PeakMemory, gpu_memory_reader
from .preparation import Preparation, task, worker_command
from .rows import GpuRow, collect
from .table import ceiling_line
from .workspace import Workspace, build_command

_PREPARATION, _EXPORT = 0.45, 0.65  # of the budget, at most
_TESTS = 0.25  # likewise, beside the preparation
_RESERVE = 3.0  # seconds, for the table
_LEAST = 8.0  # seconds, below which no contender is begun
_MOST, _MOST_COMPILING = 75.0, 150.0  # seconds of one contender on one case
_CEILING = 60.0  # seconds
_SIDES = {"cpu": 256}  # of the matrices that are multiplied
_SIDE = 8192


class Benchmark:
    """A run of it."""

    def __init__(self, options: Options, progress: Callable[[str], None]) -> None:
        self._options, self._say = options, progress
        self._budget = Budget(options.seconds)
        options.work.mkdir(parents=True, exist_ok=True)
        self._environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(options.work / "inductor"),
            "TRITON_CACHE_DIR": str(options.work / "triton"),
        }
        self._workspaces = {
            name: Workspace(options.work / name, CASES[name], options.steps, max(options.batches))
            for name in options.cases
        }

    def run(self) -> Findings:
        """Measures until everything is, or the budget is used up."""
        found = Findings(options=self._options, inventory=Inventory.take())
        for line in found.inventory.lines():
            self._say(line)
        found.save()
        able = tuple(name for name in self._options.contenders if self._missing(found.inventory, name) is None)
        if able:
            found.ceiling = self._ceiling()
            self._say(ceiling_line(found.ceiling))
            self._prepare(found, able)
            found.save()
        for name in self._options.contenders:
            for case in self._options.cases:
                row = self._row(found, case, name)
                found.rows.append(row)
                self._say(f"{case}, {name}: {_summary(row)}")
                found.save()
        return found

    def _missing(self, inventory: Inventory, name: str) -> str | None:
        if self._options.device != "cpu" and inventory.gpu_missing is not None:
            return f"no GPU: {inventory.gpu_missing}"
        return CONTENDERS[name].missing(inventory, self._options.device)

    def _ceiling(self) -> dict[str, Any]:
        file, side = self._options.work / "ceiling.json", _SIDES.get(self._options.device, _SIDE)
        file.unlink(missing_ok=True)
        job = perform(
            "ceiling",
            [sys.executable, "-m", "safelight.benchmarks.gpu.ceiling", self._options.device, str(side), str(file)],
            log=self._options.work / "ceiling.log",
            seconds=min(_CEILING, self._budget.until(_TESTS)),
            environment=self._environment,
        )
        if not file.is_file():
            self._say(f"the ceiling was not measured: {job.failure}")
            return {}
        measured: dict[str, Any] = json.loads(file.read_text())
        return measured

    def _prepare(self, found: Findings, able: tuple[str, ...]) -> None:
        preparation = Preparation(
            device=self._options.device,
            torch_device="cpu" if found.inventory.torch_cuda is None else self._options.device,
            contenders=able,
            budget=self._budget,
            share=_PREPARATION,
            export_share=_EXPORT,
            environment=self._environment,
            progress=self._say,
        )
        with ThreadPoolExecutor() as pool:
            tests = pool.submit(self._tests) if self._options.tests else None
            started = {case: pool.submit(preparation.prepare, space) for case, space in self._workspaces.items()}
            found.jobs = {case: future.result() for case, future in started.items()}
            found.tests = None if tests is None else tests.result()
        for case, workspace in self._workspaces.items():
            found.flops[case] = _flops(workspace)

    def _tests(self) -> Tests:
        root = Path(__file__).resolve().parents[2]
        tests = run_tests(root, self._options.work, seconds=self._budget.until(_TESTS), environment=self._environment)
        self._say(tests.line())
        return tests

    def _row(self, found: Findings, case: str, name: str) -> GpuRow:
        row = GpuRow(case=case, contender=name, missing=self._missing(found.inventory, name))
        contender, workspace, jobs = CONTENDERS[name], self._workspaces[case], found.jobs.get(case, {})
        if row.missing is not None:
            return row
        needed = "export" if contender.exported and "export" in jobs else "checkpoint"
        if (reason := jobs[needed].failure) is not None:
            row.missing = f"there is no {needed}: {reason}"
            return row
        row.prepared = {job: jobs[job].seconds for job in (needed, name) if job in jobs}
        engines = None
        if contender.engines is not None:
            build = self._built(found.inventory, workspace, contender.engines)
            row.prepared["build"], row.missing = build.seconds, build.failure
            if row.missing is not None:
                return row
            engines = str(workspace.engines(contender.engines))
        seconds = min(self._budget.left - _RESERVE, _MOST_COMPILING if contender.compiles else _MOST)
        if seconds < _LEAST:
            row.missing = f"the budget of {self._options.seconds:.0f} s was used up"
            return row
        folder = workspace.results(name)
        work = task(
            workspace,
            name,
            self._options.device,
            folder,
            seconds=seconds,
            started=time.time(),
            engines=engines,
            batches=self._options.batches,
        )
        self._measured(row, work)
        collect(row, folder, workspace.answers, self._options.steps)
        return row

    def _built(self, inventory: Inventory, workspace: Workspace, flavour: str) -> Job:
        capability = inventory.gpu.get("compute_cap")
        gpu = None if capability is None else f"sm{capability.replace('.', '')}"
        job = perform(
            f"{workspace.case.shape}: {flavour} engines",
            build_command(workspace, flavour, gpu),
            log=workspace.folder / f"build-{flavour}.log",
            seconds=self._budget.left - _RESERVE - _LEAST,
            environment=self._environment,
        )
        self._say(f"{job.name}: {job.failure or f'{job.seconds:.1f} s'}")
        return job

    def _measured(self, row: GpuRow, work: Task) -> None:
        log = Path(work.folder, "log.txt")
        used = (lambda: None) if work.device == "cpu" else gpu_memory_reader(int(work.device.partition(":")[2] or 0))
        with PeakMemory(used) as memory:
            usage = run(worker_command("worker", work), log=log, time_limit=work.seconds, environment=self._environment)
        row.missing, row.gpu_memory = failure(usage, log), memory.peak


def _flops(workspace: Workspace) -> dict[str, int]:
    """Operations of a guided step: from the exported graph, and as PyTorch counts them."""
    counted = {}
    graph, halves = workspace.export / "unet" / "model.onnx", workspace.answers / "halves.json"
    if graph.is_file():
        from ..flops import graph_flops

        with np.load(workspace.inputs) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files if name != "latents"}
        counted["graph"] = graph_flops(graph, shapes)
    if halves.is_file():
        counted["torch"] = int(json.loads(halves.read_text())["flops"])
    return counted


def _summary(row: GpuRow) -> str:
    if row.step is None:
        return f"not measured: {row.missing}"
    compared = "" if row.unet_error is None else f", UNet error {row.unet_error:.1e}"
    return f"{row.step.median * 1000:.2f} ms a step{compared}" + (f"; {row.missing}" if row.missing else "")
