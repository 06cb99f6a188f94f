"""What has to be there before anything is timed: checkpoint, export, the reference's answers, compiled kernels.

All of it at once, because nothing of it is measured but its own seconds, and because a GPU has many processors beside
it; then one contender at a time.
"""

import json
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .budget import Budget
from .case import Case
from .cases import GUIDANCE_SCALE, PROMPT
from .contenders import CONTENDERS, Task
from .jobs import Job, make
from .workspace import Workspace, checkpoint_command, export_command


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is prepared, and how."""

    device: str
    torch_device: str  # where PyTorch gives its answers: "cpu" where it cannot use the GPU
    contenders: tuple[str, ...]  # that can take part
    budget: Budget
    share: float  # of the budget, after which what is not ready is given up
    export_share: float  # the same of the export, without which there is nothing of ours to measure
    environment: Mapping[str, str]
    progress: Callable[[str], None]

    def prepare(self, workspace: Workspace) -> dict[str, Job]:
        """Makes everything for one case; the jobs by their names, those that failed too."""
        jobs = {"checkpoint": self._made(workspace, "checkpoint", workspace.checkpoint, checkpoint_command)}
        if jobs["checkpoint"].failure is not None:
            return jobs
        if not workspace.inputs.is_file():
            workspace.write_inputs()
        with ThreadPoolExecutor() as pool:
            chains = [pool.submit(self._answers_and_kernels, workspace)]
            if any(CONTENDERS[name].exported for name in self.contenders):
                export = pool.submit(self._made, workspace, "export", workspace.export, export_command)
                jobs["export"] = export.result()
            for chain in chains:
                jobs |= chain.result()
        return jobs

    def _made(
        self,
        workspace: Workspace,
        what: str,
        target: Path,
        command: Callable[[Workspace, Path], list[str]],
    ) -> Job:
        share = self.export_share if what == "export" else self.share
        job = make(
            f"{workspace.case.shape}: {what}",
            target,
            partial(command, workspace),
            seconds=self.budget.until(share),
            environment=dict(self.environment),
        )
        ended = job.failure or (f"{job.seconds:.1f} s" if job.seconds else "was there")
        self.progress(f"{job.name}: {ended}")
        return job

    def _answers_and_kernels(self, workspace: Workspace) -> dict[str, Job]:
        """In this order: both need the GPU's memory."""
        jobs = {"answers": self._made(workspace, "answers", workspace.answers, self._answers_command)}
        for name in self.contenders:
            if CONTENDERS[name].compiles:
                target = workspace.folder / f"compiled-{name}-{workspace.checkpoint.name}"
                jobs[name] = self._made(workspace, name, target, partial(self._compile_command, name))
        return jobs

    def _answers_command(self, workspace: Workspace, folder: Path) -> list[str]:
        folder.mkdir()
        batches = (1,) if self.torch_device == self.device else ()
        work = task(workspace, "reference", self.torch_device, folder, seconds=0.0, batches=batches)
        return worker_command("answers", work)

    def _compile_command(self, name: str, workspace: Workspace, folder: Path) -> list[str]:
        folder.mkdir()
        return worker_command("worker", task(workspace, name, self.device, folder, seconds=0.0, warm_only=True))


def task(workspace: Workspace, contender: str, device: str, folder: Path, *, seconds: float, **options: object) -> Task:
    """What a process is told.

    Args:
        workspace: of the case.
        contender: its name.
        device: where it runs.
        folder: for what it finds.
        seconds: that it has.
        **options: more fields of `Task`.
    """
    height, width = workspace.size()
    case = Case(
        model=str(workspace.export),
        checkpoint=str(workspace.checkpoint),
        prompt=PROMPT,
        height=height,
        width=width,
        num_inference_steps=workspace.steps,
        guidance_scale=GUIDANCE_SCALE,
        seed=0,
    )
    fields = {"inputs": str(workspace.inputs), "folder": str(folder), "started": 0.0, "seconds": seconds, **options}
    return Task(contender=contender, case=case, device=device, **fields)  # type: ignore[arg-type]


def worker_command(module: str, work: Task) -> list[str]:
    """Writes the task into its folder; the command that does it."""
    file = Path(work.folder, "task.json")
    file.write_text(json.dumps(work.to_json()))
    return [sys.executable, "-m", f"safelight.benchmarks.gpu.{module}", str(file)]
