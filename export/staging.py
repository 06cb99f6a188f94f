"""Where an export is written before it is whole: beside its destination, by one process at a time.

The folder `.NAME.partial` becomes NAME in one step when everything is in it. A process that is killed leaves it; the
next one of the same export keeps each component that was finished, which a receipt says, and writes the others anew.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safelight.runtime.folder_lock import locked_folder
from safelight.runtime.manifest import FileRecord, file_record

_RECEIPTS = ".finished"

Progress = Callable[[str], None]


class Staging:
    """The unfinished folder of one export."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._receipts = folder / _RECEIPTS
        self._key = key

    @property
    def holds_something(self) -> bool:
        """Whether a component of it is finished."""
        return self._receipts.is_dir() and any(self._receipts.glob("*.json"))

    def finished(self, component: str) -> tuple[dict[str, Any], dict[str, FileRecord]] | None:
        """What an earlier run of the same export noted of a component, and its files; None where it has to be written.

        Every file is read and must be the one that was written.
        """
        try:
            receipt = json.loads((self._receipts / f"{component}.json").read_text(encoding="utf-8"))
            files = {name: FileRecord(**record) for name, record in receipt["files"].items()}
            if receipt["key"] == self._key and all(file_record(self.folder / n) == r for n, r in files.items()):
                return dict(receipt["note"]), files
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def clear(self, done: Mapping[str, Iterable[str]]) -> None:
        """Removes whatever is no file of a finished component: left by another export, or by a run that was stopped.

        Args:
            done: the files of each finished component.
        """
        kept = {_RECEIPTS, *(name.split("/")[0] for files in done.values() for name in files)}
        receipts = {f"{component}.json" for component in done}
        stale = [path for path in self.folder.iterdir() if path.name not in kept]
        if self._receipts.is_dir():
            stale += [path for path in self._receipts.iterdir() if path.name not in receipts]
        for path in stale:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def discard(self, networks: Iterable[str]) -> None:
        """Removes what a run that did not finish has left of some networks."""
        for name in networks:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def finish(self, component: str, note: Mapping[str, Any], files: Mapping[str, FileRecord]) -> None:
        """Notes that a component is whole: its files were written before its receipt."""
        self._receipts.mkdir(exist_ok=True)
        receipt = {"key": self._key, "note": note, "files": {name: asdict(record) for name, record in files.items()}}
        partial = self._receipts / f"{component}.partial"
        partial.write_text(json.dumps(receipt), encoding="utf-8")
        partial.rename(partial.with_suffix(".json"))

    def publish(self, destination: Path) -> None:
        """Makes the folder the destination, which is not there or is empty."""
        shutil.rmtree(self._receipts, ignore_errors=True)
        self.folder.rename(destination)


@contextlib.contextmanager
def staging(destination: Path, key: object, progress: Progress) -> Iterator[Staging]:
    """The unfinished folder of a destination, which it takes the place of when the block ends well.

    When the block ends otherwise, what cannot be of use to the next run is removed: everything after an error of the
    export itself, and all but the finished components where the disk was full or the process was stopped or killed.

    Args:
        destination: a folder that is new or empty.
        key: what the export depends on, of plain values; what a run with another key left is removed.
        progress: told when another process has to be waited for.

    Raises:
        FileExistsError: the destination holds something, perhaps since another process was waited for.
        OSError: the folder cannot be written.
    """
    check_destination(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    folder = destination.parent / f".{destination.name}.partial"
    with locked_folder(folder, waits=lambda: progress(f"waiting for another export into {destination.parent}")):
        stage = Staging(folder, digest)
        try:
            check_destination(destination)
            yield stage
            stage.publish(destination)
        except (OSError, RuntimeError, MemoryError, KeyboardInterrupt) as error:
            if isinstance(error, FileExistsError) or not stage.holds_something:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def check_destination(destination: Path) -> None:
    """Refuses a destination that holds something.

    Raises:
        FileExistsError: names the destination.
    """
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if destination.exists():
        kind = "has other content" if destination.is_dir() else "is a file"
        raise FileExistsError(f"{destination} {kind}; name a folder that is new or empty")
