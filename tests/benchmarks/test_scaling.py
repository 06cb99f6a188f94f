"""Time over work: powers that are known, points that cannot be, and a curve that is too steep."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from safelight.benchmarks import scaling
from safelight.benchmarks.cases import Case, cases, named_model
from safelight.benchmarks.contenders import CONTENDERS
from safelight.benchmarks.measure import Entrant, Plan
from safelight.benchmarks.scaling import Curve, Grid, curve, power
from safelight.benchmarks.workspace import Workspace

(CASE,) = cases([named_model("emoji")], steps=2)
PLAN = Plan(rounds=1, pictures=1, cold_runs=0, timeout=60)
GRID = Grid(batches=(1, 2, 8), sides=(64, 256), steps=(1, 4))


def test_the_power_of_a_power_law() -> None:
    amounts = [1, 2, 8, 50]
    assert power(amounts, [3 * amount**1.5 for amount in amounts]) == pytest.approx(1.5)
    assert power([1], [3.0]) is None
    assert power([1, 2], [0.0, 1.0]) is None


def test_a_grid_varies_one_thing() -> None:
    names = {axis: {amount: case.name for amount, case in GRID.cases(axis, CASE)} for axis in scaling.AXES}
    assert names["batch"][2] == "emoji 64x64, 2 at once, 2 steps"
    assert names["pixels"] == {64**2: "emoji 64x64, 2 steps", 256**2: "emoji 256x256, 2 steps"}
    assert names["steps"] == {1: "emoji 64x64, 1 steps", 4: "emoji 64x64, 4 steps"}
    assert [amount for amount, _ in Grid().cases("pixels", CASE)] == [64**2, 128**2, 256**2]


def measured(axis: str, exponent: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Curve:
    """A curve whose seconds are a power of the pictures' amount."""

    def measure(case: Case, entrants: Sequence[Entrant], *_: object) -> None:
        amount = {"batch": case.batch, "pixels": case.height * case.width, "steps": case.num_inference_steps}[axis]
        if amount == 8:
            entrants[0].failure = "failed after 1 s: of this"
        else:
            entrants[0].pictures.append({"total": amount**exponent})

    monkeypatch.setattr(scaling, "measure", measure)
    return curve(axis, CASE, CONTENDERS["safelight onnxruntime"], Workspace(folder=tmp_path), PLAN, GRID)


def test_seconds_beside_the_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured("batch", 1.0, tmp_path, monkeypatch)
    assert [point.amount for point in found.points] == [1, 2]
    assert found.points[1].seconds_each == found.points[0].seconds_each == 1.0
    assert found.slope == pytest.approx(1)
    assert found.work_slope == pytest.approx(1)
    assert not found.too_steep
    assert found.left_out == {8: "failed after 1 s: of this"}
    record = found.to_dict()
    assert (record["slope"], record["too_steep"], record["model"]) == (found.slope, False, "emoji")


def test_seconds_that_grow_faster_than_the_operations_are_too_steep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured("batch", 1.3, tmp_path, monkeypatch).too_steep
    pixels = measured("pixels", 1.05, tmp_path, monkeypatch)
    assert not pixels.too_steep
    assert pixels.work_slope is not None
    assert 1 < pixels.work_slope < 1.2, "attention goes with the square of the pixels"
    steps = measured("steps", 0.9, tmp_path, monkeypatch)
    assert steps.work_slope is not None
    assert steps.work_slope < 1, "the decoder runs once"


def test_a_point_that_cannot_be_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "why_not", lambda case, *_: "too large" if case.batch > 1 else None)
    found = measured("batch", 1.0, tmp_path, monkeypatch)
    assert found.left_out == {2: "too large", 8: "too large"}
    assert found.slope is None
    assert not found.too_steep
