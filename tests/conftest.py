"""Fixtures that several tests share."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# before torch is there: its threads are not to keep a processor busy that another test's process waits for
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# what networks leave in the cache stays in the clone
os.environ.setdefault("SAFELIGHT_CACHE", str(Path(__file__).resolve().parents[1] / ".cache" / "safelight"))


def _load(name: str) -> ModuleType:
    """A module of this folder, which is no package: pytest's importlib mode leaves `sys.path` alone."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


checkpoints = _load("checkpoints")
_load("engine_graphs")
_load("engine_records")
_load("graphs")
_load("cuda_operators")
_load("deep_cached")
_load("pairs")
_load("recorded")
hub_server = _load("hub_server")
_load("original_layout")
_load("simulated_gpu")
_load("simulated_machine")
_load("single_files")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A hub on this machine that the real client of this process talks to, with a cache that is empty."""
    with hub_server.HubServer() as server:
        server.serve_client(monkeypatch, tmp_path / "hub-home")
        yield server


@pytest.fixture(scope="session")
def odd_checkpoint() -> Path:
    """Latents of 11x22 on a UNet that halves twice, made by diffusers."""
    return checkpoints.make_checkpoint(checkpoints.ODD)


@pytest.fixture(scope="session")
def linear_checkpoint() -> Path:
    """Linear projections, gelu, two layers a block, made by diffusers."""
    return checkpoints.make_checkpoint(checkpoints.LINEAR)


@pytest.fixture(scope="session")
def odd_export(odd_checkpoint: Path) -> Path:
    """The export of `odd_checkpoint`, for every engine."""
    return checkpoints.export_checkpoint(odd_checkpoint, targets=None)


@pytest.fixture(scope="session")
def linear_export(linear_checkpoint: Path) -> Path:
    """The export of `linear_checkpoint`."""
    return checkpoints.export_checkpoint(linear_checkpoint)


@pytest.fixture(scope="session")
def emoji_checkpoint() -> Path:
    """The bundled checkpoint."""
    return checkpoints.EMOJI_CHECKPOINT


@pytest.fixture(scope="session")
def inpainting_checkpoint() -> Path:
    """A UNet of 9 channels: latents, mask, masked image."""
    return checkpoints.make_checkpoint(checkpoints.INPAINTING)


@pytest.fixture(scope="session")
def inpainting_export(inpainting_checkpoint: Path) -> Path:
    """The export of `inpainting_checkpoint`."""
    return checkpoints.export_checkpoint(inpainting_checkpoint)


@pytest.fixture(scope="session")
def depth_checkpoint() -> Path:
    """A UNet of 5 channels, and a depth estimator."""
    return checkpoints.make_checkpoint(checkpoints.DEPTH)


@pytest.fixture(scope="session")
def depth_export(depth_checkpoint: Path) -> Path:
    """The export of `depth_checkpoint`."""
    return checkpoints.export_checkpoint(depth_checkpoint)


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], tuple[Path, Path]]:
    """The export and the checkpoint of a `TinyCheckpoint` of `checkpoints`, by its name there."""

    def made(name: str) -> tuple[Path, Path]:
        checkpoint = checkpoints.make_checkpoint(getattr(checkpoints, name))
        return checkpoints.export_checkpoint(checkpoint, **checkpoints.EXPORT_OPTIONS.get(name, {})), checkpoint

    return made


@pytest.fixture(scope="session")
def unconditional_export() -> Path:
    """The export of a UNet of pixels, and a DDPM scheduler."""
    return checkpoints.export_checkpoint(
        checkpoints.make_unconditional_checkpoint("unconditional", checkpoints.UNCONDITIONAL)
    )


@pytest.fixture(scope="session")
def checked_checkpoint() -> Path:
    """A safety checker that finds some pictures and others not."""
    return checkpoints.make_checkpoint(checkpoints.CHECKED)


@pytest.fixture(scope="session")
def checked_export(checked_checkpoint: Path) -> Path:
    """The export of `checked_checkpoint`."""
    return checkpoints.export_checkpoint(checked_checkpoint)
