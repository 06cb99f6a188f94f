"""A process of its own: its results, its errors, its end."""

import errno
import importlib
import logging
from pathlib import Path
from types import ModuleType

import pytest

from safelight.export.worker import WorkerError, run_apart
from safelight.runtime.fidelity import FidelityError

TASKS = """
import logging, os, signal

def echo(value, *, progress):
    progress("one")
    progress("two")
    return {**value, "apart": os.getpid() != os.getppid()}

def fail(kind, arguments, *, progress):
    raise kind(*arguments)

def crash(*, progress):
    return 1 / 0

def die(*, progress):
    os.kill(os.getpid(), signal.SIGKILL)

def hold(size, *, progress):
    held = b"1" * size
    return len(held)

def chatter(*, progress):
    print("a library says hello")
    logging.getLogger("safelight.chatter").warning("beware of %d", 3)
    logging.getLogger("safelight.chatter").info("nothing")
    return 7
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that both processes can import."""
    (tmp_path / "worker_tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "worker_tasks", raising=False)
    return importlib.import_module("worker_tasks")


def silent(_: str) -> None:
    pass


def test_results_progress_and_memory_come_back(tasks: ModuleType) -> None:
    lines: list[str] = []
    result, peak = run_apart(tasks.echo, {"a": (1, 2.5)}, name="echo", progress=lines.append)
    assert result == {"a": (1, 2.5), "apart": True}
    assert lines == ["one", "two"]
    assert 20e6 < peak < 500e6


def test_memory_is_the_process_s_own(tasks: ModuleType) -> None:
    # most resident at once, and given back since: a process that this one starts does not count it as its own
    held = b"1" * 600_000_000
    del held
    _, small = run_apart(tasks.echo, {}, name="echo", progress=silent)
    _, large = run_apart(tasks.hold, 300_000_000, name="hold", progress=silent)
    assert small < 500e6
    assert 250e6 < large - small < 400e6


@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        (ValueError, ("unet is broken",), "unet is broken"),
        (FidelityError, ("unet: too far",), "unet: too far"),
        (FileNotFoundError, ("there is no unet",), "there is no unet"),
        (OSError, (errno.ENOSPC, "No space left on device", "model.onnx_data"), "No space left on device"),
        (MemoryError, ("too large",), "too large"),
    ],
)
def test_errors_come_back_as_they_are(
    tasks: ModuleType, kind: type[Exception], arguments: tuple[object, ...], text: str
) -> None:
    with pytest.raises(kind, match=text) as error:
        run_apart(tasks.fail, kind, arguments, name="unet", progress=silent)
    assert type(error.value) is kind
    if isinstance(error.value, OSError) and len(arguments) == 3:
        assert (error.value.errno, error.value.strerror, error.value.filename) == arguments


def test_a_crash_is_told_with_its_last_line(tasks: ModuleType) -> None:
    with pytest.raises(WorkerError, match=r"^unet: the process crashed: ZeroDivisionError: division by zero$"):
        run_apart(tasks.crash, name="unet", progress=silent)


def test_a_killed_process_is_told(tasks: ModuleType) -> None:
    with pytest.raises(WorkerError, match=r"^unet: the process was killed \(SIGKILL, .*memory runs out\)"):
        run_apart(tasks.die, name="unet", progress=silent)


def test_warnings_and_stray_prints_do_not_disturb(tasks: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert run_apart(tasks.chatter, name="unet", progress=silent)[0] == 7
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("safelight.chatter", "beware of 3")]
