"""How far a build is: TensorRT tells of phases within phases, each of some steps."""

import threading
import time
from collections.abc import Callable
from typing import Any

from safelight.runtime.engines.flavours import Flavour

Progress = Callable[[str], None]

_TELL_EVERY = 2.0  # seconds between lines of progress


class Phases:
    """The phases that have begun and not ended."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[int, int]] = {}  # done, and all
        self._parents: dict[str, str | None] = {}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins, as part of a step of another."""
        self._steps[phase] = 0, max(steps, 1)
        self._parents[phase] = parent

    def step(self, phase: str, step: int) -> None:
        """One step of a phase is done, counted from 0."""
        _, steps = self._steps.get(phase, (0, 1))
        self._steps[phase] = min(step + 1, steps), steps

    def finish(self, phase: str) -> None:
        """A phase is over."""
        self._steps.pop(phase, None)
        self._parents.pop(phase, None)

    def fraction(self) -> float:
        """Of the whole, between 0 and 1."""
        return max((self._done(phase) for phase, parent in self._parents.items() if parent is None), default=0.0)

    def _done(self, phase: str) -> float:
        done, steps = self._steps[phase]
        within = [self._done(child) for child, parent in self._parents.items() if parent == phase]
        return min(1.0, (done + min(1.0, max(within, default=0.0))) / steps)


def monitor_of(trt: Flavour, tell: Progress) -> Any:
    """A monitor that tells every few seconds how far the build is, in percent."""

    class Monitor(trt.module.IProgressMonitor):  # type: ignore[misc, name-defined]  # Any
        def __init__(self) -> None:
            super().__init__()
            self.phases = Phases()
            self.told, self.furthest = time.monotonic(), 0.0
            self.lock = threading.Lock()  # the builder has threads of its own

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self.lock:
                self.phases.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            with self.lock:
                self.phases.step(phase, step)
                # phases that follow each other within one step would take it back
                self.furthest = max(self.furthest, self.phases.fraction())
                if time.monotonic() - self.told > _TELL_EVERY:
                    self.told = time.monotonic()
                    tell(f"building, {self.furthest:.0%}")
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            with self.lock:
                self.phases.finish(phase)

    return Monitor()
