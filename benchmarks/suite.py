"""A case from the contenders to their rows: who can take part, what they open, what they did, and how it compares."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .cases import Case
from .contender import Contender
from .contenders import BASELINES
from .flops import Work
from .measure import Entrant, Plan, Progress, measure
from .room import too_little_disk, too_little_memory
from .rows import Row, image_psnr, largest_difference, wrong_images
from .work import add_rates, case_work
from .workspace import Workspace


@dataclass(kw_only=True)
class Measured:
    """A case, and what is known of everybody in it."""

    case: Case
    rows: list[Row]
    compared_with: str | None  # whose picture the others' are compared with
    work: dict[str, Work] = field(default_factory=dict)  # by stage

    def add_rates(self, ceiling: Mapping[str, float]) -> None:
        """Adds to the rows how many operations they did a second.

        Args:
            ceiling: what the machine's matrix products reach, in operations a second, by precision.
        """
        for row in self.rows:
            if row.comparable and not row.partial:
                add_rates(row, self.work, self.case, ceiling.get(row.precision))

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return {
            "case": self.case.to_dict(),
            "compared_with": self.compared_with,
            "work": {stage: asdict(work) for stage, work in self.work.items()},
            "rows": [asdict(row) for row in self.rows],
        }


def run_case(
    case: Case,
    contenders: Sequence[Contender],
    workspace: Workspace,
    plan: Plan,
    progress: Progress = lambda _: None,
) -> Measured:
    """Measures a case.

    Args:
        case: the pictures.
        contenders: who would take part; those that cannot are rows that say why.
        workspace: what is made once.
        plan: how often everybody is measured.
        progress: told a line before each process.
    """
    rows = {contender.name: contender.row() for contender in contenders}
    entrants = []
    for contender in contenders:
        row = rows[contender.name]
        row.missing = why_not(case, contender, workspace)
        if row.missing is None and plan.left() <= 0:
            row.missing = "the time was used up before its turn"
        if row.missing is None:
            try:
                entrants.append(Entrant(contender=contender, model=contender.prepare(case, workspace)))
            except (OSError, RuntimeError, ValueError) as error:
                row.failure = f"its model cannot be made: {error}"
    measure(case, entrants, workspace, plan, progress)
    rows |= {entrant.contender.name: entrant.row(plan) for entrant in entrants}
    baseline = _compare(case, rows, entrants)
    return Measured(case=case, rows=list(rows.values()), compared_with=baseline, work=_work(case, entrants))


def why_not(case: Case, contender: Contender, workspace: Workspace) -> str | None:
    """Why a contender cannot take part in a case here, seen before anything starts; None where it can."""
    return contender.missing(case) or too_little_disk(case, workspace) or too_little_memory(case, contender)


def _compare(case: Case, rows: Mapping[str, Row], entrants: Sequence[Entrant]) -> str | None:
    """Adds everybody's drift to the rows; whose picture it is from."""
    images = {entrant.contender.name: entrant.images for entrant in entrants if entrant.images is not None}
    for name, found in images.items():
        rows[name].wrong = wrong_images(found, (case.batch, case.height, case.width, 3))
    right = {name: found for name, found in images.items() if rows[name].wrong is None}
    baseline = next((name for name in BASELINES if name in right), None)
    for name, found in right.items():
        if baseline is not None:
            rows[name].difference = largest_difference(found, right[baseline])
            rows[name].psnr = image_psnr(found, right[baseline])
    return baseline


def _work(case: Case, entrants: Sequence[Entrant]) -> dict[str, Work]:
    """The operations of the case, counted in the graphs of the model folder if safelight opened that."""
    folders = [entrant.model for entrant in entrants if entrant.contender.tool == "safelight"]
    opened = [folder for folder in folders if (folder / "unet" / "model.onnx").is_file()]
    return case_work(case, opened[0]) if opened and importlib.util.find_spec("onnx") is not None else {}
