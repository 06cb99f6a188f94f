"""Time over work: how the seconds of a picture grow with the batch, the size and the steps.

What a picture's operations do is known from the graphs: proportional to batch and steps, and more than proportional to
the pixels, because attention goes with their square. Seconds that grow faster than the operations are a fault.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .cases import Case
from .contender import Contender
from .measure import Entrant, Plan, Progress, measure
from .rows import Spread
from .suite import why_not
from .work import case_work, picture_flops
from .workspace import Workspace

AXES = ("batch", "pixels", "steps")
#: of the power that seconds go with above that of the operations: what measurements of one curve vary by
TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the curves are measured; what an axis does not vary is the case's own."""

    batches: tuple[int, ...] = (1, 2, 4, 8)
    sides: tuple[int, ...] = ()  # of square pictures, in pixels; the case's own times 1, 2 and 4 when empty
    steps: tuple[int, ...] = (1, 5, 20, 50)

    def cases(self, axis: str, case: Case) -> Iterator[tuple[int, Case]]:
        """The amounts of an axis, and their cases."""
        if axis == "batch":
            yield from ((batch, replace(case, batch=batch)) for batch in self.batches)
        elif axis == "steps":
            yield from ((steps, replace(case, num_inference_steps=steps)) for steps in self.steps)
        else:
            for side in self.sides or tuple(case.model.side * times for times in (1, 2, 4)):
                yield side * side, replace(case, height=side, width=side)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Pictures of one case."""

    amount: int
    seconds: Spread  # of the whole batch
    seconds_each: float  # of one picture
    flops: int  # of the whole batch


@dataclass(kw_only=True)
class Curve:
    """A contender's seconds over one amount."""

    axis: str
    contender: str
    model: str
    case: str  # that the others are variants of
    points: list[Point] = field(default_factory=list)
    left_out: dict[int, str] = field(default_factory=dict)  # amount -> why

    @property
    def slope(self) -> float | None:
        """The power of the amount that the seconds go with: a line through the points on log-log axes."""
        return power([point.amount for point in self.points], [point.seconds.median for point in self.points])

    @property
    def work_slope(self) -> float | None:
        """The same of the operations."""
        return power([point.amount for point in self.points], [point.flops for point in self.points])

    @property
    def too_steep(self) -> bool:
        """Whether the seconds grow faster than the operations."""
        return (
            self.slope is not None and self.work_slope is not None and self.slope > max(1, self.work_slope) + TOLERANCE
        )

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        derived = {"slope": self.slope, "work_slope": self.work_slope, "too_steep": self.too_steep}
        return {**asdict(self), **derived}


def power(amounts: Sequence[float], values: Sequence[float]) -> float | None:
    """The exponent of a power law by least squares of the logarithms; None with fewer than two points."""
    if len(amounts) < 2 or min(*amounts, *values) <= 0:
        return None
    slope, _ = np.polyfit([math.log(each) for each in amounts], [math.log(each) for each in values], 1)
    return float(slope)


def curve(
    axis: str,
    case: Case,
    contender: Contender,
    workspace: Workspace,
    plan: Plan,
    grid: Grid,
    progress: Progress = lambda _: None,
) -> Curve:
    """Measures a contender along an axis.

    Args:
        axis: one of `AXES`.
        case: what is varied.
        contender: who makes the pictures; it has to be able to.
        workspace: what is made once.
        plan: how often each point is measured.
        grid: the points.
        progress: told a line before each process.
    """
    found = Curve(axis=axis, contender=contender.name, model=case.model.name, case=case.name)
    for amount, variant in grid.cases(axis, case):
        if reason := why_not(variant, contender, workspace):
            found.left_out[amount] = reason
            continue
        model, export = contender.prepare(variant, workspace), workspace.export(variant)
        entrant = Entrant(contender=contender, model=model)
        measure(variant, [entrant], workspace, plan, progress)
        if not entrant.pictures:
            found.left_out[amount] = entrant.failure or "the time was used up"
            continue
        seconds = Spread.of([picture["total"] for picture in entrant.pictures])
        found.points.append(
            Point(
                amount=amount,
                seconds=seconds,
                seconds_each=seconds.median / variant.batch,
                flops=picture_flops(case_work(variant, export), variant.num_inference_steps),
            )
        )
    return found
