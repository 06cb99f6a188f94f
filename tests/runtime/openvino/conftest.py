"""What the tests of OpenVINO share: the bundled UNet, and inputs for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.runtime import bundled_model
from safelight.runtime.backends import Array, Tuning, open_network


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of compiled networks, which all tests of a worker share; it need not be there."""
    folder = tmp_path_factory.getbasetemp() / "openvino-cache"
    monkeypatch.setenv("SAFELIGHT_CACHE", str(folder))
    return folder / "openvino"


@pytest.fixture(scope="session")
def graph() -> Path:
    return bundled_model() / "unet" / "model.onnx"


@pytest.fixture(scope="session")
def inputs() -> Callable[..., dict[str, Array]]:
    """Random inputs of the bundled UNet, of a batch and a size."""

    def made(batch: int = 2, size: int = 8) -> dict[str, Array]:
        rng = np.random.default_rng(batch * size)
        return {
            "sample": rng.standard_normal((batch, 4, size, size), dtype=np.float32),
            "timestep": np.full(batch, 500.0, np.float32),
            "encoder_hidden_states": rng.standard_normal((batch, 32, 96), dtype=np.float32),
        }

    return made


@pytest.fixture
def opened(graph: Path) -> Callable[..., Any]:
    """Opens the bundled UNet, with options by name."""

    def made(device: str = "cpu", precision: str | None = None, threads: int | None = None, **options: Any) -> Any:
        tuning = Tuning(precision=precision, threads=threads, options=options)
        return open_network(graph, backend="openvino", device=device, tuning=tuning)

    return made
