"""The files of a store, and who may change them: one process at a time, engine by engine.

An engine NAME is `NAME.plan`, and `NAME.json`, which is there last and goes first. While it is built it is in the
folder `.NAME.partial`, into which one process goes at a time. What the engine's runtime keeps of it is `NAME.cache`.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ..folder_lock import locked_folder
from .private_files import check_private_folder

_NAME = re.compile(r"[a-z][a-z0-9_]*-[0-9a-f]{16}")
_SUFFIXES = (".json", ".plan", ".cache")  # in the order in which they go


class EngineFiles:
    """The files of engines in a folder; others in it are left alone."""

    def __init__(self, folder: Path) -> None:
        """Nothing is looked at yet.

        Args:
            folder: that is there, or will be when an engine is built.
        """
        self.folder = folder

    def path(self, name: str, suffix: str) -> Path:
        """A file of an engine.

        Raises:
            ValueError: no engine has such a name.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an engine")
        return self.folder / f"{name}{suffix}"

    def names(self) -> list[str]:
        """The engines of which there is anything, whole or not.

        Raises:
            PermissionError: others can write the folder.
        """
        if not self.folder.exists():
            return []
        check_private_folder(self.folder)
        found = {_engine_of(path.name) for path in self.folder.iterdir()}
        return sorted(name for name in found if name is not None)

    @contextlib.contextmanager
    def alone(self, name: str, *, waits: Callable[[], object]) -> Iterator[Path]:
        """An empty folder for one process at a time, for changes of an engine; it is gone when the block ends.

        Args:
            name: of the engine.
            waits: called where another process has to be waited for; may raise.
        """
        folder = self.partial(name)
        with locked_folder(folder, waits=waits, mode=0o700):
            for left in folder.iterdir():  # by a process that was killed
                _delete(left)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def partial(self, name: str) -> Path:
        """The folder of an engine while it is built."""
        return self.path(name, ".partial").with_name(f".{name}.partial")

    def size(self, name: str) -> int:
        """The bytes of an engine's files."""
        size = 0
        for suffix in _SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                size += self.path(name, suffix).stat(follow_symlinks=False).st_size
        return size

    def discard(self, name: str) -> int:
        """Removes whatever there is of an engine, and returns its bytes; for a block that is `alone`."""
        size = self.size(name)
        for suffix in _SUFFIXES:  # without its record it is no engine
            if os.path.lexists(path := self.path(name, suffix)):
                _delete(path)
        return size


def refuse() -> None:
    """Does not wait for a lock.

    Raises:
        BlockingIOError: always.
    """
    raise BlockingIOError


def _engine_of(file: str) -> str | None:
    """The name of the engine that a file in a store is of; None for a file of something else."""
    stem, suffix = os.path.splitext(file)  # noqa: PTH122 - a name, not a path
    if suffix == ".partial" and stem.startswith("."):
        stem = stem[1:]
    elif suffix not in _SUFFIXES:
        return None
    return stem if _NAME.fullmatch(stem) else None


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
