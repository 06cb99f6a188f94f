"""One contender in a process of its own: `python -m safelight.benchmarks.gpu.worker TASK.json`.

What is found goes into the task's folder as soon as it is found, so that a process that is stopped leaves what it had:
`measured.json`, `unet.npy`, `picture.npy`.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from safelight.runtime.backends import Array

from .contenders import CONTENDERS, Opened, Task

_STEP_SECONDS = 1.5  # of measuring the UNet alone
_LEAST, _MOST = 5, 50  # times
_PICTURES = 2  # of each batch, after the first
_ALLOWED = 0.3  # of the time that is left, for the pictures of one batch
_COMPILING = 90.0  # seconds that torch.compile may take for another batch
_INPUTS = ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids")


def main(task_file: Path) -> None:
    """Does the task."""
    task = Task.from_json(json.loads(task_file.read_text()))
    contender = CONTENDERS[task.contender]
    with np.load(task.inputs) as arrays:
        inputs = {name: arrays[name] for name in _INPUTS if name in arrays}
        latents = arrays["latents"]
    opened = contender.open(task)
    if task.warm_only:
        opened.step(inputs)()
        opened.pictures(latents[:1], 2)
        return
    measure(task, opened, inputs, latents, recompiles=contender.compiles)


def measure(
    task: Task, opened: Opened, inputs: dict[str, Array], latents: Array, *, recompiles: bool
) -> dict[str, Any]:
    """Measures what there is time for, the most important first.

    Args:
        task: where it goes, and how much time there is.
        opened: the contender.
        inputs: of its UNet.
        latents: (pictures, channels, height, width).
        recompiles: whether another batch takes minutes at first.

    Returns:
        What `measured.json` holds.
    """
    folder, steps = Path(task.folder), task.case.num_inference_steps
    found: dict[str, Any] = {"pictures": {}, "notes": []}

    def note() -> None:
        partial = folder / "measured.json.partial"
        partial.write_text(json.dumps(found))
        partial.replace(folder / "measured.json")

    first = opened.pictures(latents[:1], steps)
    found["cold_seconds"] = time.time() - task.started
    np.save(folder / "picture.npy", first.image)
    np.save(folder / "unet.npy", opened.unet(inputs))
    note()
    found["step"] = repeated(opened.step(inputs))
    note()
    for batch in task.batches:
        left = task.started + task.seconds - time.time()
        if recompiles and batch != 1 and left < _COMPILING:
            found["notes"].append(f"no time to compile for {batch} pictures at once")
            continue
        count = affordable_steps(left, found["step"], batch, steps)
        if batch != 1:
            opened.pictures(latents[:batch], 2)  # whatever a shape takes at first
        runs = [opened.pictures(latents[:batch], count).seconds for _ in range(_PICTURES)]
        found["pictures"][str(batch)] = {"steps": count, "seconds": runs}
        if count < steps:
            found["notes"].append(f"{batch} at once: {count} steps were run, the time of {steps} follows from them")
        note()
    note()
    return found


def repeated(call: Callable[[], object]) -> list[float]:
    """Seconds of each of several calls, after three for warmth."""
    for _ in range(3):
        call()
    times: list[float] = []
    while len(times) < _LEAST or (sum(times) < _STEP_SECONDS and len(times) < _MOST):
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
    return times


def affordable_steps(left: float, step: list[float], batch: int, wanted: int) -> int:
    """How many steps a picture may have, if the pictures of one batch are to take no more than their share.

    Args:
        left: seconds.
        step: seconds of each of several steps of one picture.
        batch: pictures at once, which take so many times as long at most.
        wanted: the steps that a picture should have.
    """
    affordable = int(left * _ALLOWED / (_PICTURES * batch * float(np.median(step))))
    return max(min(wanted, 2), min(wanted, affordable))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
