"""How much memory one picture takes, stage by stage: `python -m safelight.benchmarks.memory MODEL`.

Each row is a process of its own, which looks at its memory while it opens the model and makes the picture. The pages
of a process are its own (anonymous: what it allocated) or those of files that it maps, weights among them, which the
system can drop and read again. Linux only.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from safelight.runtime.engine_arguments import add_engine_arguments, engine_of
from safelight.runtime.model_folder import open_model_folder

from .machine import machine, versions

INTERVAL = 0.01  # seconds between two looks
_STATUS = Path("/proc/self/status")
_MIB = 2**20
DIFFUSERS = "diffusers"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row: who makes which picture."""

    tool: str  # "safelight" or `DIFFUSERS`
    model: str
    height: int | None
    width: int | None
    steps: int
    engine: dict[str, Any] = field(default_factory=dict)  # of `DiffusionPipeline.from_pretrained`
    pictures: int = 2  # the second one shows what an engine keeps


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Resident bytes."""

    total: int
    anonymous: int
    file: int

    @classmethod
    def now(cls) -> Self:
        """Of this process."""
        fields = _status("VmRSS", "RssAnon", "RssFile")
        return cls(total=fields[0], anonymous=fields[1], file=fields[2])


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a row's process found."""

    peak: int  # the most resident bytes that it had
    stages: dict[str, Memory]  # in order: when each stage had most
    after: Memory  # when the pictures were made


class Watch:
    """Looks at the memory of this process until it is left, and notes the most of each stage."""

    def __init__(self) -> None:
        self.stage = "import"
        self.most: dict[str, Memory] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def enter(self, stage: str) -> None:
        """Notes what the stage before has come to, and begins another."""
        self._look()
        self.stage = stage

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        stage, memory = self.stage, Memory.now()
        if stage not in self.most or memory.total > self.most[stage].total:
            self.most[stage] = memory


def measure(task: Task) -> Found:
    """Makes the pictures of a task in this process."""
    with Watch() as watch:
        generate = (_open_diffusers if task.tool == DIFFUSERS else _open_safelight)(task, watch)
        size = {name: side for name, side in (("height", task.height), ("width", task.width)) if side is not None}
        for number in range(task.pictures):
            watch.enter(f"picture {number + 1}: text, denoise")
            generate(num_inference_steps=task.steps, callback_on_step_end=_decode_after(task, watch, number), **size)
        watch.enter("end")
        after = Memory.now()
    stages = {stage: memory for stage, memory in watch.most.items() if stage != "end"}
    # the kernel adds up each thread's pages now and then: a look may see some that its own peak lacks
    peak = max(_status("VmHWM")[0], *(memory.total for memory in stages.values()))
    return Found(peak=peak, stages=stages, after=after)


def _open_safelight(task: Task, watch: Watch) -> Callable[..., Any]:
    from safelight.runtime import DiffusionPipeline

    watch.enter("open")
    pipeline: Any = DiffusionPipeline.from_pretrained(task.model, requires_safety_checker=False, **task.engine)
    pipeline.set_progress_bar_config(disable=True)
    return lambda **options: pipeline("a photograph", seed=0, **options)


def _open_diffusers(task: Task, watch: Watch) -> Callable[..., Any]:
    import torch
    from diffusers import DiffusionPipeline

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    watch.enter("open")
    pipeline: Any = DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        task.model, dtype=dtypes[task.engine.get("precision") or "fp32"], requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return lambda **options: pipeline("a photograph", generator=torch.Generator().manual_seed(0), **options)


def _decode_after(task: Task, watch: Watch, number: int) -> Callable[..., dict[str, Any]]:
    """A callback, which diffusers and the runtime call alike: after the last step begins another stage."""
    seen = 0

    def on_step_end(_pipeline: object, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal seen
        seen += 1
        if seen == task.steps:
            watch.enter(f"picture {number + 1}: decode")
        return tensors

    return on_step_end


def measured_apart(task: Task) -> Found:
    """What a process of its own finds.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    command = [sys.executable, "-m", "safelight.benchmarks.memory", "--task", json.dumps(asdict(task))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"ended with {result.returncode}"])[-1]
        raise RuntimeError(last)
    fields = json.loads(result.stdout.splitlines()[-1])
    stages = {stage: Memory(**memory) for stage, memory in fields["stages"].items()}
    return Found(peak=fields["peak"], stages=stages, after=Memory(**fields["after"]))


def table(rows: dict[str, Found], weights: int) -> str:
    """The rows as Markdown, in MiB; a ratio is to diffusers, where that was measured."""
    lines = [
        f"Weights: {weights / _MIB:.0f} MiB. Resident MiB: the process's own + of mapped files.",
        "",
        "| | stage | own | files | together |",
        "|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        for stage, memory in (*found.stages.items(), ("after the pictures", found.after)):
            numbers = (memory.anonymous, memory.file, memory.total)
            lines.append(f"| {name} | {stage} | {' | '.join(f'{number / _MIB:.0f}' for number in numbers)} |")
        ratio = f", x {found.peak / rows[DIFFUSERS].peak:.2f}" if DIFFUSERS in rows and name != DIFFUSERS else ""
        lines.append(f"| {name} | **largest** | | | {found.peak / _MIB:.0f}{ratio} |")
    return "\n".join(lines)


def _status(*names: str) -> list[int]:
    fields = {name: value for name, _, value in (line.partition(":") for line in _STATUS.read_text().splitlines())}
    return [int(fields[name].split()[0]) * 1024 for name in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table, and writes JSON if asked to; 1 where a row failed."""
    parser = argparse.ArgumentParser(prog="python -m safelight.benchmarks.memory", description=__doc__)
    parser.add_argument("model", nargs="?", help="a model folder")
    parser.add_argument("--checkpoint", help="of the model, for a row of diffusers")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--steps", type=int, default=2, help="of each picture (default: %(default)s)")
    parser.add_argument("--low-memory", action="store_true", help="a row with low_memory=True, too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    add_engine_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.task is not None:
        print(json.dumps(asdict(measure(Task(**json.loads(arguments.task))))))
        return 0
    if arguments.model is None:
        parser.error("give a model folder")
    weights = open_model_folder(arguments.model).weight_bytes
    rows, failures = {}, {}
    for name, task in _tasks(arguments).items():
        try:
            rows[name] = measured_apart(task)
        except RuntimeError as error:
            failures[name] = str(error)
    print(table(rows, weights))
    for name, failure in failures.items():
        print(f"\n{name} failed: {failure}")
    if arguments.json is not None:
        found = {name: asdict(row) for name, row in rows.items()}
        record = {"machine": machine(), "versions": versions(), "weights": weights, "rows": found, "failures": failures}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 1 if failures else 0


def _tasks(arguments: argparse.Namespace) -> dict[str, Task]:
    engine = engine_of(arguments)
    picture: dict[str, Any] = {"height": arguments.height, "width": arguments.width, "steps": arguments.steps}
    tasks = {}
    if arguments.checkpoint is not None:
        precision = {"precision": engine["precision"]}
        tasks[DIFFUSERS] = Task(tool=DIFFUSERS, model=arguments.checkpoint, engine=precision, **picture)
    tasks[f"safelight, {arguments.backend}"] = Task(tool="safelight", model=arguments.model, engine=engine, **picture)
    if arguments.low_memory:
        low = {**engine, "low_memory": True}
        tasks["the same, low memory"] = Task(tool="safelight", model=arguments.model, engine=low, **picture)
    return tasks


if __name__ == "__main__":
    sys.exit(main())
