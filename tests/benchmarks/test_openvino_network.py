"""The script that measures one network on OpenVINO."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from safelight.benchmarks.openvino_network import CALLS, ROWS, _row, measured
from safelight.runtime import bundled_model


def test_a_row_has_seconds_bytes_and_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    answer = tmp_path / "answer.npy"
    asked = argparse.Namespace(folder=bundled_model(), network="vae_decoder", latent=4, row="fp32", answer=answer)
    found = measured(asked)
    assert np.load(answer).shape == (2, 3, 16, 16)
    assert min(found["open"], found["first"], found["next"], found["on_disk"]) > 0
    assert found["next"] < found["first"]
    assert CALLS > 0
    assert "fp32" in ROWS


def test_rows_are_medians_with_the_distance_from_float32() -> None:
    runs = [{"open": 3.0}, {"open": 1.0}, {"open": 2.0}]
    row = _row("bf16", runs, np.array([3.0, 4.5]), np.array([3.0, 4.0]))
    assert row == {"row": "bf16", "open": 2.0, "relative_error": 0.1}
