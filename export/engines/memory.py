"""A limit for the memory of a worker's process, which neither a builder nor the system keeps for us.

A limit of the address space (RLIMIT_AS) would count tens of gigabytes that CUDA reserves and nobody uses, and files
that are mapped. What counts here is what the process holds and the system cannot drop.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from ..worker import give_up

_STATUS = Path("/proc/self/status")
_HELD = ("RssAnon:", "RssShmem:")
_EVERY = 0.05  # seconds


@contextlib.contextmanager
def memory_limit(limit: int | None, doing: str) -> Iterator[None]:
    """Ends this process, a worker, with a `MemoryError` for its caller once it holds more than a limit.

    Args:
        limit: in bytes; None for none. Where the system does not say what a process holds, there is none either.
        doing: what the memory is for, to begin the message with.
    """
    if limit is None or held_memory() is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY):
            if (held_memory() or 0) > limit:
                give_up(MemoryError(f"{doing} takes more than the {limit / 1e9:g} GB of --memory-limit"))

    watcher = threading.Thread(target=watch, name="memory limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def held_memory() -> int | None:
    """The bytes that this process holds, files that are mapped apart; None where the system does not say."""
    if not _STATUS.is_file():
        return None
    fields = [line.split() for line in _STATUS.read_text(encoding="ascii").splitlines()]
    found = [1024 * int(field[1]) for field in fields if field[0] in _HELD]
    return sum(found) if found else None
