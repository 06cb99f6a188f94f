"""`safelight serve` as a process of its own, which ends when it is left, and what it takes. Linux only."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from .serving_client import HOST

_PROC = Path("/proc")
_WORKER = b"safelight.runtime.serving.worker"
#: ends with the process that started it, also where that is killed
_COMMAND = """\
import ctypes, sys
ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
from safelight.runtime.cli import main
sys.exit(main())
"""
_ESTABLISHED = "01"  # in /proc/net/tcp


class Server:
    """A server on a free port, ready when it is entered."""

    def __init__(self, options: Sequence[str], *, log: Path, start_timeout: float = 120.0) -> None:
        """Describes it.

        Args:
            options: of `safelight serve`, besides host and port.
            log: a file for all that it says.
            start_timeout: seconds until it has to be ready.
        """
        self._options, self._log, self._start_timeout = list(options), log, start_timeout
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False

    def __enter__(self) -> Self:
        self.port = _free_port()
        command = [sys.executable, "-c", _COMMAND, "serve", "--host", HOST, "--port", str(self.port), *self._options]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Of the server, whose child the worker is."""
        assert self._process is not None
        return self._process.pid

    def errors(self) -> list[str]:
        """The lines of its log that are errors: ends of workers are, too."""
        return [line for line in self._log.read_text(errors="replace").splitlines() if '"level": "error"' in line]

    @property
    def worker(self) -> int | None:
        """The worker's process; None where there is none now."""
        return next((pid for pid in children(self.pid) if _WORKER in _command_line(pid)), None)

    def is_ready(self) -> bool:
        """Whether it makes pictures."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def end(self, timeout: float = 30.0) -> int | None:
        """Asks it to end, waits, and ends what is left of it by force; its exit status."""
        process = self._process
        if process is None or self._ended:
            return None if process is None else process.returncode
        self._ended = True
        process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # of the session that was started for it
            process.wait()
        return process.returncode

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        end = time.monotonic() + self._start_timeout
        while not self.is_ready():
            if self._process.poll() is not None:
                said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
                raise RuntimeError(f"the server ended with status {self._process.returncode}; it said: {said[-1]}")
            if time.monotonic() > end:
                raise RuntimeError(f"the server was not ready after {self._start_timeout:g} s")
            time.sleep(0.1)


class Counters:
    """What /metrics said at one moment."""

    def __init__(self, text: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels, whatever else they have."""
        return sum(sample.value for sample in self._samples if _fits(sample, name, labels))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The sums for each value of a label."""
        found: dict[str, float] = {}
        for sample in self._samples:
            if _fits(sample, name, labels) and label in sample.labels:
                found[sample.labels[label]] = found.get(sample.labels[label], 0.0) + sample.value
        return found


def children(pid: int) -> Iterator[int]:
    """The processes that a process started, and that have not ended."""
    try:
        for task in sorted((_PROC / str(pid) / "task").iterdir()):
            yield from map(int, (task / "children").read_text().split())
    except OSError:
        return  # it has ended


def resident(pid: int) -> int:
    """The resident bytes of a process; 0 where it has ended."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def processor_seconds(pid: int) -> float:
    """The seconds that a process had of the processors; 0 where it has ended."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(_PROC / str(pid) / "fd"))  # noqa: PTH208  # names are enough


def connections(port: int) -> int:
    """How many connections to a port of this machine are open, on the server's side."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(int(row[1].partition(":")[2], 16) == port and row[3] == _ESTABLISHED for row in fields)


def _fits(sample: Any, name: str, labels: dict[str, str]) -> bool:
    return sample.name == name and all(sample.labels.get(label) == value for label, value in labels.items())


def _command_line(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
