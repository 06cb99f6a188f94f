"""What is known of one contender on one case, and what that means."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..rows import Spread
from .compare import picture_limit, picture_psnr, relative_error, unet_limit


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Some pictures at once: seconds of all of them together, by stage."""

    steps: int  # that were run
    total: Spread  # for the case's number of steps: see `of`
    text: float
    denoise: float  # for the case's number of steps
    decode: float

    @classmethod
    def of(cls, measured: dict[str, Any], wanted: int) -> "Pictures":
        """From several runs of so many steps; where they were fewer than are wanted, each more takes as long."""
        steps, runs = measured["steps"], measured["seconds"]
        more = [run["denoise"] * (wanted - steps) / steps for run in runs]
        return cls(
            steps=steps,
            total=Spread.of([run["total"] + extra for run, extra in zip(runs, more, strict=True)]),
            text=statistics.median(run["text"] for run in runs),
            denoise=statistics.median(run["denoise"] + extra for run, extra in zip(runs, more, strict=True)),
            decode=statistics.median(run["decode"] for run in runs),
        )


@dataclass(kw_only=True)
class GpuRow:
    """One row of the table."""

    case: str
    contender: str
    missing: str | None = None  # why there are no numbers, or not all
    unet_error: float | None = None  # relative, of the output for a guided pair, to the float32 reference's
    unet_limit: float | None = None
    psnr: float | None = None  # of the picture, in dB
    psnr_limit: float | None = None
    step: Spread | None = None  # seconds of the UNet on a guided pair
    pictures: dict[int, Pictures] = field(default_factory=dict)  # by how many at once
    cold_seconds: float | None = None  # from the start of the process to its first picture
    gpu_memory: int | None = None  # bytes, the most
    prepared: dict[str, float] = field(default_factory=dict)  # seconds of what has to be done once
    notes: list[str] = field(default_factory=list)

    @property
    def differs(self) -> str | None:
        """In what its results are not the reference's; None where they are, or there is nothing to compare."""
        if self.unet_error is not None and self.unet_limit is not None and not self.unet_error <= self.unet_limit:
            return f"the UNet's output differs by {self.unet_error:.1e}, the limit is {self.unet_limit:.1e}"
        if self.psnr is not None and self.psnr_limit is not None and not self.psnr >= self.psnr_limit:
            return f"the picture has a PSNR of {self.psnr:.1f} dB, the limit is {self.psnr_limit:.1f} dB"
        return None

    @property
    def counts(self) -> bool:
        """Whether its times may stand beside others': there are some, and its results are the reference's."""
        return self.step is not None and self.differs is None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "differs": self.differs}


def collect(row: GpuRow, folder: Path, answers: Path, steps: int) -> None:
    """Takes what a process left into its row, and compares it with the reference.

    Args:
        row: to complete.
        folder: of the process.
        answers: the reference's folder, which may not be there.
        steps: of a picture.
    """
    file = folder / "measured.json"
    if not file.is_file():
        return
    measured = json.loads(file.read_text())
    row.cold_seconds = measured["cold_seconds"]
    row.notes += measured["notes"]
    if "step" in measured:
        row.step = Spread.of(measured["step"])
    row.pictures = {int(batch): Pictures.of(found, steps) for batch, found in measured["pictures"].items()}
    unet, picture = np.load(folder / "unet.npy"), np.load(folder / "picture.npy")
    if not (answers / "answers.npz").is_file():
        if not (np.isfinite(unet).all() and np.isfinite(picture).all()):
            row.unet_error, row.unet_limit = float("inf"), 0.0
        row.notes.append("not compared: the reference gave no answers")
        return
    halves = json.loads((answers / "halves.json").read_text()) if (answers / "halves.json").is_file() else {}
    with np.load(answers / "answers.npz") as expected:
        row.unet_error = relative_error(unet, expected["unet"])
        if "picture" in expected:
            row.psnr = picture_psnr(picture[0], expected["picture"][0])
    row.unet_limit = unet_limit(halves.get("unet_error"))
    row.psnr_limit = picture_limit(halves.get("psnr"))
