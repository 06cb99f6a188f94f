"""A fixture for every way in which an export can be refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from safelight.runtime import cli


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Exports, and gives the one sentence that the command ends with; the destination must be as it was."""

    def export(checkpoint: Path, destination: Path, *options: str) -> str:
        before = sorted(destination.rglob("*")) if destination.exists() else None
        status = cli.main(["export", str(checkpoint), str(destination), *options])
        printed = capsys.readouterr()
        assert status == 1, printed.out
        assert (sorted(destination.rglob("*")) if destination.exists() else None) == before
        assert not list(destination.parent.glob(f".{destination.name}*")), "something was left behind"
        (sentence,) = printed.err.splitlines()
        return sentence.removeprefix("safelight: ")

    return export


@pytest.fixture
def exported(request: pytest.FixtureRequest, tiny: Callable[[str], tuple[Path, Path]]) -> Callable[[str], Path]:
    """The export of a tiny checkpoint by its name in `checkpoints`."""

    def folder(name: str) -> Path:
        if name == "UNCONDITIONAL":
            unconditional: Path = request.getfixturevalue("unconditional_export")
            return unconditional
        return tiny(name)[0]

    return folder
