"""Simulated machines, on which nothing may be left when a test ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_gpu import SimulatedCuda
from simulated_machine import Machine, make_machine


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """A machine of each flavour, on which nothing may be left."""
    made = make_machine(request.param, monkeypatch, tmp_path)
    yield made
    made.check_nothing_is_left()


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """A machine with TensorRT for RTX, on which nothing may be left."""
    made = make_machine("tensorrt-rtx", monkeypatch, tmp_path)
    yield made
    made.check_nothing_is_left()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """A machine with two GPUs, and TensorRT for RTX."""
    made = make_machine("tensorrt-rtx", monkeypatch, tmp_path, SimulatedCuda([(9, 0), (9, 0)]))
    yield made
    made.check_nothing_is_left()
