"""One process at a time in a folder that is made for it; the system opens the lock when a process dies."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform != "win32":  # there, two processes in one folder are not kept apart
    import fcntl


@contextlib.contextmanager
def locked_folder(folder: Path, *, waits: Callable[[], object], mode: int = 0o777) -> Iterator[None]:
    """Makes a folder, and lets one process at a time into it. Whoever is in it may remove it or give it another name.

    Args:
        folder: whose parent is there.
        waits: called once where another process is in the folder, before it is waited for; may raise.
        mode: of the folder, where it is not there yet.
    """
    waited = False
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=mode)
        if sys.platform == "win32":
            yield
            return
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # removed just now, by the process that was in it
            continue
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    waits()
                waited = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_still(folder, handle):
                yield
                return
        finally:
            os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process is in the folder."""
    if sys.platform == "win32":
        return False
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _is_still(folder: Path, handle: int) -> bool:
    """Whether the folder is the one that was opened: whoever was in it may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), folder.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
