"""Files that nobody but this user, or root, can have written: an engine is code.

A folder is looked at, and every file of it; the folders above are not. Whoever can write one of those can put another
folder in the place of ours, but neither a folder nor a file that belongs to this user.
"""

import io
import os
import stat
import sys
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private_folder(folder: Path) -> None:
    """Makes a folder that only this user can enter, where there is none, and checks the one that is there.

    Raises:
        PermissionError: others can write it; see `check_private_folder`.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private_folder(folder)


def check_private_folder(folder: Path) -> None:
    """Refuses a folder that others can write.

    Raises:
        FileNotFoundError: there is none.
        NotADirectoryError: it is a file.
        PermissionError: it belongs to somebody else, or its group or everybody may write it; says what mends it.
    """
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{folder} is no folder")
    _check_private(folder, status)


def open_private(path: Path) -> io.FileIO:
    """Opens a file to read, unbuffered; whatever is then read is of the file that was checked.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: others can write it; see `check_private_folder`.
        ValueError: it is a link, or no regular file.
    """
    status = path.stat(follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is {'a link' if stat.S_ISLNK(status.st_mode) else 'no regular file'}")
    # what has taken its place since then: a link is not followed, and a pipe's writer is not waited for
    flags = os.O_RDONLY if sys.platform == "win32" else os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    file = io.FileIO(os.open(path, flags))
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file")
        _check_private(path, status)
    except BaseException:
        file.close()
        raise
    return file


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only this user can read, and waits until it is on the disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    if sys.platform == "win32":  # which opens no folders
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_private(path: Path, status: os.stat_result) -> None:
    if sys.platform == "win32":  # whose files have neither
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(
            f"{path} belongs to the user {status.st_uid}, who can put code into it that would be run here: "
            f"name a folder of your own, or: sudo chown -R {os.geteuid()} {path}"
        )
    if status.st_mode & _OTHERS_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(
            f"{path} can be written by others (its mode is {mode:04o}), who can put code into it that would be run "
            f"here; if what is in it is yours: chmod go-w {path}"
        )
