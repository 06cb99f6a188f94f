"""A measured command: its time, the memory and the writes of all its processes, and its end."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from safelight.benchmarks.process_tree import Usage, failure, run

MIB = 2**20

HOLD = "import time; memory = b'x' * ({size} * 2**20); time.sleep({seconds})"


def measure(tmp_path: Path, code: str, **options: int) -> Usage:
    return run([sys.executable, "-c", code], log=tmp_path / "log.txt", **options)


def parent(*children: str, then: str = "") -> str:
    """Code that starts other code, waits for it, and goes on."""
    starts = f"[subprocess.Popen([sys.executable, '-c', code]) for code in {children!r}]"
    return f"import subprocess, sys\nfor child in {starts}:\n    child.wait()\n{then}"


def test_seconds_exit_status_and_what_it_says(tmp_path: Path) -> None:
    usage = measure(
        tmp_path, "import sys, time; time.sleep(0.3); print('out'); print('err', file=sys.stderr); sys.exit(3)"
    )
    assert 0.3 < usage.seconds < 5
    assert usage.exit_status == 3
    assert not usage.over_limit
    assert sorted((tmp_path / "log.txt").read_text().split()) == ["err", "out"]


def test_memory_of_the_largest_process_and_of_all_together(tmp_path: Path) -> None:
    usage = measure(tmp_path, parent(HOLD.format(size=150, seconds=1), HOLD.format(size=250, seconds=1)))
    assert 250 * MIB < usage.process_memory < 300 * MIB
    assert 400 * MIB < usage.tree_memory < 500 * MIB


def test_a_processs_peak_counts_after_it_gave_the_memory_back(tmp_path: Path) -> None:
    usage = measure(tmp_path, "memory = b'x' * (200 * 2**20); del memory; import time; time.sleep(0.3)")
    assert usage.process_memory > 200 * MIB


def test_bytes_that_were_written_though_the_file_is_gone(tmp_path: Path) -> None:
    """By a process that its parent waits for; on a file system that keeps nothing on a disk the kernel counts 0."""
    file = tmp_path / "file"
    code = f"import os, pathlib; p = pathlib.Path({str(file)!r}); p.write_bytes(b'x' * (20 * 2**20)); os.sync()"
    usage = measure(tmp_path, parent(f"{code}; p.unlink()"))
    if usage.written_bytes is None or usage.written_bytes == 0:
        pytest.skip("the system does not count what is written here")
    assert 20 * MIB <= usage.written_bytes < 25 * MIB


def test_too_much_memory_ends_all_its_processes(tmp_path: Path) -> None:
    """Also one in a process group of its own, which the parent does not wait for."""
    pid = tmp_path / "pid"
    child = f"import os, pathlib; os.setpgrp(); pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
    usage = measure(tmp_path, parent(child + HOLD.format(size=200, seconds=60)), memory_limit=100 * MIB)
    assert usage.over_limit
    assert usage.exit_status == -signal.SIGKILL
    assert usage.seconds < 30
    assert ended(int(pid.read_text()))


def test_too_much_time_ends_it(tmp_path: Path) -> None:
    usage = run(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        log=tmp_path / "log.txt",
        time_limit=0.5,
        folder=tmp_path,
    )
    assert usage.over_time
    assert usage.exit_status == -signal.SIGKILL
    assert 0.5 <= usage.seconds < 30
    assert failure(usage, tmp_path / "log.txt") == f"stopped after {usage.seconds:.0f} s, which was its limit"


def test_it_works_in_a_folder_and_its_last_line_is_why_it_failed(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd()); raise ValueError('of this and that')"
    usage = run([sys.executable, "-c", code], log=tmp_path / "log.txt", folder=tmp_path)
    assert str(tmp_path) in (tmp_path / "log.txt").read_text()
    assert failure(usage, tmp_path / "log.txt") == f"failed after {usage.seconds:.0f} s: ValueError: of this and that"
    assert failure(measure(tmp_path, ""), tmp_path / "log.txt") is None


def test_a_process_that_is_left_behind_is_ended(tmp_path: Path) -> None:
    child = HOLD.format(size=1, seconds=60)
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
    usage = measure(tmp_path, code)
    assert usage.exit_status == 0
    assert usage.seconds < 30
    assert ended(int((tmp_path / "log.txt").read_text()))


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run([str(tmp_path / "no-such-program")], log=tmp_path / "log.txt")


def ended(pid: int) -> bool:
    """Whether a process is gone, or is gone soon: whoever is to wait for it may be slow."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
