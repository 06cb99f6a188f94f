"""Runs contenders in turns, each time in a process of its own, and collects what they did."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from safelight.runtime.backends import Array

from .cases import Case
from .contender import Contender
from .peers.job import Job
from .process_tree import failure, run
from .rows import Row, Spread
from .workspace import Workspace

#: of the picture before those that are measured
WARM_UP_STEPS = 2
_INTERVAL = 0.5  # seconds between two looks at a process

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How often each contender is measured, and how long that may take."""

    rounds: int  # processes of each, in turns: A B C A B C
    pictures: int  # that each of them makes, after a warm-up
    cold_runs: int  # processes of each that make one picture and no more, in turns too
    timeout: float  # seconds of one process
    deadline: float | None = None  # of `perf_counter`, after which nothing starts
    threads: int | None = None  # of the CPU; each tool's own choice when None

    def left(self) -> float:
        """The seconds that a process may take now; 0 and less: none."""
        return self.timeout if self.deadline is None else min(self.timeout, self.deadline - perf_counter())


@dataclass(kw_only=True)
class Entrant:
    """A contender that takes part, and what its processes found."""

    contender: Contender
    model: Path  # what its workers open
    failure: str | None = None
    images: Array | None = None  # of the first round, (batch, height, width, 3)
    pictures: list[dict[str, float]] = field(default_factory=list)  # seconds by stage
    opens: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    rounds: int = 0  # that it came to the end of
    memory: list[int] = field(default_factory=list)  # of the rounds' processes
    cold_memory: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    eight_bits: bool = False  # of its pictures
    note: str | None = None  # of the worker, on how it makes the pictures
    longest: float = 0.0  # of its processes

    def row(self, plan: Plan) -> Row:
        """What is known of it."""
        row = self.contender.row()
        row.failure = self.failure
        stages = [stage for stage in STAGES if all(stage in picture for picture in self.pictures)]
        if self.pictures:
            row.warm_seconds = {stage: Spread.of([each[stage] for each in self.pictures]) for stage in stages}
        row.open_seconds = Spread.of(self.opens) if self.opens else None
        row.cold_seconds = Spread.of(self.cold) if self.cold else None
        memory = self.memory or self.cold_memory
        row.peak_memory = int(statistics.median(memory)) if memory else None
        row.versions, row.eight_bits, row.note = self.versions, self.eight_bits, self.note
        missed = [
            f"{done} of {wanted} {what}"
            for done, wanted, what in (
                (self.rounds, plan.rounds, "rounds"),
                (len(self.cold), plan.cold_runs, "cold starts"),
            )
            if done < wanted
        ]
        if missed and self.failure is None:
            row.left_out = f"the time was used up after {' and '.join(missed)}"
        return row


#: of a picture; "denoise" is the sum of the steps and "step" their median
STAGES = ("total", "text", "denoise", "decode", "step")


def measure(
    case: Case, entrants: Sequence[Entrant], workspace: Workspace, plan: Plan, progress: Progress = lambda _: None
) -> None:
    """Runs everybody's processes in turns; what each found is in the entrants.

    One that crashes, or takes too long, says so in `Entrant.failure`, and the others go on.

    Args:
        case: the pictures.
        entrants: who takes part.
        workspace: where the starting noise lies.
        plan: how often.
        progress: told a line before each process.
    """
    latents = workspace.latents(case).absolute()
    with tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder:
        for pictures, turns in ((plan.pictures, plan.rounds), (0, plan.cold_runs)):
            for turn in range(turns):
                for entrant in entrants:
                    if entrant.failure is None and plan.left() > entrant.longest:
                        what = f"round {turn + 1} of {turns}" if pictures else f"cold start {turn + 1} of {turns}"
                        progress(f"{case.name}: {entrant.contender.name}: {what}")
                        job = _job(case, entrant, latents, plan, pictures, Path(folder))
                        _run(entrant, job, plan)


def _job(case: Case, entrant: Entrant, latents: Path, plan: Plan, pictures: int, folder: Path) -> Job:
    return Job(
        model=str(entrant.model.absolute()),
        prompts=[case.prompt] * case.batch,
        height=case.height,
        width=case.width,
        num_inference_steps=case.num_inference_steps,
        guidance_scale=case.guidance_scale,
        seed=case.seed,
        latents=str(latents),
        precision=entrant.contender.precision,
        threads=plan.threads,
        pictures=pictures,
        warm_up_steps=min(WARM_UP_STEPS, case.num_inference_steps),
        options=dict(entrant.contender.options),
        output=tempfile.mkdtemp(dir=folder),
    )


def _run(entrant: Entrant, job: Job, plan: Plan) -> None:
    """One process, and what it leaves in the entrant."""
    folder = Path(job.output)
    file, log = folder / "job.json", folder / "log.txt"
    job.write(file)
    limit = plan.left()
    started, start = perf_counter(), time.time()
    try:
        usage = run(
            entrant.contender.command(file),
            log=log,
            time_limit=limit,
            environment=entrant.contender.environment(),
            folder=folder,
            interval=min(_INTERVAL, limit),
        )
    except OSError as error:
        entrant.failure = f"cannot be started: {error}"
        return
    entrant.longest = max(entrant.longest, perf_counter() - started)
    if usage.over_time and limit < plan.timeout:
        return  # the time of all of them is used up, which is not its failure
    entrant.failure = failure(usage, log)
    if entrant.failure is None:
        try:
            _collect(entrant, job, start, usage.process_memory)
        except (OSError, ValueError, KeyError, TypeError) as error:
            entrant.failure = f"left no result that can be read: {error}"


def _collect(entrant: Entrant, job: Job, start: float, memory: int) -> None:
    folder = Path(job.output)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    peak = max(memory, result["peak_memory"] or 0)
    entrant.versions, entrant.note = dict(result["versions"]), result.get("note")
    entrant.eight_bits = bool(result.get("eight_bits"))
    if job.pictures:
        pictures = [_stages(picture) for picture in result["pictures"]]
        images = np.load(folder / "image.npy")
        entrant.pictures += pictures
        entrant.opens.append(float(result["open"]))
        entrant.memory.append(peak)
        entrant.images = images if entrant.images is None else entrant.images
        entrant.rounds += 1
    else:  # by the clock of the files, which is the system's
        entrant.cold.append((folder / "picture.png").stat().st_mtime - start)
        entrant.cold_memory.append(peak)


def _stages(picture: dict[str, Any]) -> dict[str, float]:
    """The seconds of those stages that the tool tells apart."""
    seconds = {"total": picture["total"], "text": picture["text"], "decode": picture["decode"]}
    if picture["steps"]:
        seconds |= {"denoise": sum(picture["steps"]), "step": statistics.median(picture["steps"])}
    return {stage: float(value) for stage, value in seconds.items() if value is not None}
