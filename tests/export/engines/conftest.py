"""The model folders that engines are built of."""

from collections.abc import Callable
from pathlib import Path

import pytest

from safelight.runtime.source import bundled_model


@pytest.fixture
def model(tiny: Callable[[str], tuple[Path, Path]]) -> Callable[[str], Path]:
    """The bundled model, or the export of a tiny checkpoint, by its name in `checkpoints`."""
    return lambda name: bundled_model() if name == "EMOJI" else tiny(name)[0]
