"""A command in a process of its own, and what it and all the processes that it starts take: time, memory, disk.

Linux only: the processes are those of a session, as `/proc` lists them.
"""

import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

INTERVAL = 0.05  # seconds between two looks at the memory
_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a command took."""

    seconds: float
    exit_status: int  # below 0: the signal that ended it
    process_memory: int  # the most resident bytes that any one process had; mapped files count
    tree_memory: int  # the most that all of them had at one moment; what two share counts twice
    written_bytes: int | None  # given to the disk, deleted files too; None where the system does not say
    over_limit: bool  # it was killed because of its memory
    over_time: bool = False  # it was killed because of its time


def run(
    command: Sequence[str],
    *,
    log: Path,
    memory_limit: int | None = None,
    time_limit: float | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    interval: float = INTERVAL,
) -> Usage:
    """Runs a command to its end, and leaves none of its processes behind.

    Args:
        command: the program and its arguments.
        log: a file for all that it prints.
        memory_limit: resident bytes of all its processes together; when they have more, they are killed.
        time_limit: seconds, after which they are killed.
        environment: this process's when None.
        folder: where it works; this process's when None.
        interval: seconds between two looks at it, which take a processor's time from what is measured.

    Raises:
        OSError: the program cannot be started.
    """
    with log.open("wb") as output:
        started = perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
            cwd=folder,
        )
        handle = os.pidfd_open(process.pid)
        largest = tree = 0
        over_limit = over_time = False
        try:
            while not select.select([handle], [], [], interval)[0]:
                if time_limit is not None and perf_counter() - started > time_limit:
                    over_time = True
                    _kill(process.pid)
                members = [_memory(member) for member in _session(process.pid)]
                largest = max([largest, *(peak for _, peak in members)])
                tree = max(tree, sum(resident for resident, _ in members))
                if memory_limit is not None and tree > memory_limit:
                    over_limit = True
                    _kill(process.pid)
        finally:
            _kill(process.pid)
            os.close(handle)
        seconds = perf_counter() - started
        written = _written(process.pid)  # of those that it waited for, too: the kernel adds them up
        _, status, resources = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    # What the looks missed: `ru_maxrss` is of the largest process too, but never less than this process had
    # when it started the command.
    if (most := resources.ru_maxrss * 1024) > _memory(os.getpid())[1]:
        largest = max(largest, most)
    return Usage(
        seconds=seconds,
        exit_status=process.returncode,
        process_memory=largest,
        tree_memory=max(tree, largest),
        written_bytes=written,
        over_limit=over_limit,
        over_time=over_time,
    )


def failure(usage: Usage, log: Path, memory_limit: int | None = None) -> str | None:
    """What went wrong with a command, in one line; None when nothing did.

    Args:
        usage: what it took.
        log: what it printed.
        memory_limit: that it was given, in bytes.
    """
    if usage.over_limit and memory_limit is not None:
        return f"killed at {memory_limit / 2**30:.1f} GiB of memory, after {usage.seconds:.0f} s"
    if usage.over_time:
        return f"stopped after {usage.seconds:.0f} s, which was its limit"
    if usage.exit_status < 0:
        return f"killed by signal {-usage.exit_status} after {usage.seconds:.0f} s"
    if usage.exit_status:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        return f"failed after {usage.seconds:.0f} s: {lines[-1]}"
    return None


def _session(leader: int) -> Iterator[int]:
    """The processes of a session, its leader among them."""
    for entry in os.listdir(_PROC):  # noqa: PTH208  # every 50 ms: names are enough
        if entry.isdigit() and _session_of(entry) == leader:
            yield int(entry)


def _session_of(pid: str) -> int | None:
    try:
        text = (_PROC / pid / "stat").read_text()
    except OSError:  # it has ended meanwhile
        return None
    return int(text.rpartition(")")[2].split()[3])


def _memory(pid: int) -> tuple[int, int]:
    """The resident bytes that a process has, and the most that it had."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    resident, peak = (int(sizes.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, peak


def _written(pid: int) -> int | None:
    """The bytes that a process which has ended, and those that it waited for, had written to the disk."""
    try:
        lines = (_PROC / str(pid) / "io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes:")), None)


def _kill(leader: int) -> None:
    """Ends every process of a session that has not ended."""
    for member in list(_session(leader)):
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue
