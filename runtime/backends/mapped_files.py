"""Memory of files that an engine has mapped: it reads weights there once, into copies in an order of its own."""

import ctypes
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: seconds between two times that pages are given back
_INTERVAL = 0.05
_DONTNEED = 4  # MADV_DONTNEED of Linux
#: of a line of /proc/self/maps: first address, first one after it, permissions, path
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ +(.+)")


def give_back(file: Path) -> None:
    """Gives back the memory of a file's pages that this process has mapped to read; elsewhere than on Linux, nothing.

    The mapping stays: a page that is read again comes out of the system's cache, or from the disk.
    """
    if sys.platform != "linux":
        return
    path = str(file.resolve())
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        match = _MAPPING.fullmatch(line)
        if match and match[4] == path and "w" not in match[3]:  # what was written to would be lost
            first, end = int(match[1], 16), int(match[2], 16)
            madvise(first, end - first, _DONTNEED)  # advice: what it cannot do is no error


@contextmanager
def given_back(file: Path | None) -> Iterator[None]:
    """Gives back the memory of a mapped file all the time, and once more at the end; of none when None.

    What reads a file of gigabytes once, from beginning to end, then has only some of it in memory.
    """
    if file is None:
        yield
        return
    done = threading.Event()

    def work() -> None:
        while not done.wait(_INTERVAL):
            give_back(file)

    thread = threading.Thread(target=work, name=f"pages of {file.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        give_back(file)
