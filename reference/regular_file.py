"""Opening a file that somebody else wrote: a file with contents of its own, and nothing that only looks like one."""

import os
import stat
from io import BufferedReader
from pathlib import Path

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def open_regular_file(path: Path) -> BufferedReader:
    """Opens a file for plain reads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a pipe or a device, or no more than a Git LFS pointer.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    # asked before it is opened: to open a pipe is to wait for its writer
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file, and is refused")
    file = path.open("rb")
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is not a regular file, and is refused")
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file itself; run: git lfs pull")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


__all__ = ["open_regular_file"]
