"""The table of scheduler steps: results first, times after."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.benchmarks import scheduler_steps
from safelight.benchmarks.scheduler_steps import FixedNoise, Timing, main, measure, table
from safelight.runtime import EulerDiscreteScheduler
from safelight.runtime.random import randn

SMALL = (1, 4, 4, 4)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"])
def test_both_walk_to_the_same_sample(name: str) -> None:
    timing = measure(name, SMALL, runs=1)
    assert timing.difference < 1e-5
    assert timing.diffusers > 0
    assert timing.ratio == timing.safelight / timing.diffusers


def test_a_wrong_step_gets_no_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = EulerDiscreteScheduler.step

    def wrong(self: Any, model_output: Any, *arguments: Any, **options: Any) -> Any:
        return right(self, model_output * 1.01, *arguments, **options)

    wrong.__annotations__ = right.__annotations__
    monkeypatch.setattr(EulerDiscreteScheduler, "step", wrong)
    monkeypatch.setattr(scheduler_steps, "SHAPES", (SMALL,))
    assert main(["--scheduler", "EulerDiscreteScheduler", "--runs", "1"]) == 1
    assert "| EulerDiscreteScheduler | DIFFERS by " in capsys.readouterr().out


def test_fixed_noise_is_not_drawn() -> None:
    noise = np.arange(64, dtype=np.float32).reshape(SMALL)
    generator = FixedNoise(noise)
    generator.prepare()
    for _ in range(2):
        drawn = randn(SMALL, generator)
        np.testing.assert_array_equal(drawn, noise)
        drawn *= 0


def test_the_table_has_microseconds_and_ratios() -> None:
    timings = [
        Timing(scheduler="A", shape=SMALL, difference=0.0, diffusers=100.0, safelight=25.0),
        Timing(scheduler="B", shape=SMALL, difference=float("nan"), diffusers=100.0, safelight=75.0),
    ]
    text = table(timings)
    assert "| A | 100 us, 25 us, 0.25 |" in text
    assert "| B | DIFFERS by nan |" in text
    assert "1x4x4x4: median x 0.50, largest 0.75" in text


def test_the_json_has_machine_versions_and_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_steps, "SHAPES", (SMALL,))
    file = tmp_path / "results" / "steps.json"
    assert main(["--scheduler", "DDIMScheduler", "--runs", "1", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["versions"]["diffusers"]
    assert content["machine"]["processors"]
    (row,) = content["microseconds"]
    assert row["scheduler"] == "DDIMScheduler"
    assert row["shape"] == list(SMALL)
    assert row["ratio"] == pytest.approx(row["safelight"] / row["diffusers"])
    (noise,) = content["noise"]
    assert noise["difference"] <= 1e-6
    assert noise["safelight"] > 0
