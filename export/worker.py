"""Work in a process of its own, whose memory is the machine's again when it is done.

The process reads one pickled (function, arguments) from its standard input, which only `run_apart` writes, and
answers in lines of JSON: progress, warnings, and at the end the result, or the error that the caller is to see.
"""

import base64
import contextlib
import importlib
import io
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

from safelight.runtime.fidelity import FidelityError

from .peak_memory import peak_memory

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

#: errors that a caller sees as they are; others are a crash of the process
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        FidelityError,
        FileExistsError,
        FileNotFoundError,
        MemoryError,
        ModuleNotFoundError,
        OSError,
        ValueError,
    )
}


class WorkerError(RuntimeError):
    """A process ended without a result; the message says how."""


def run_apart(function: Callable[..., Any], *arguments: Any, name: str, progress: Progress) -> tuple[Any, int]:
    """Calls a function in a new process.

    Args:
        function: of a module, called with the arguments and `progress=`.
        arguments: that can be pickled.
        name: of the work, for errors.
        progress: told the lines that the process reports.

    Returns:
        What the function returned, and the largest resident memory of the process in bytes.

    Raises:
        WorkerError: the process crashed or was killed, as the system does when memory runs out.
        Exception: what the function raised, where it is one of the errors that an export may end with.
    """
    task = pickle.dumps((function.__module__, function.__qualname__, arguments))
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", __name__]
        # threads that wait are not to keep a processor busy: two of torch's took 15 times what the work itself takes
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        ) as process:
            try:
                outcome = _outcome(process, task, progress)
            except BaseException:
                process.kill()
                raise
        if outcome is None:
            raise WorkerError(f"{name}: {_how_it_ended(process.returncode, errors)}")
    if kind := outcome.get("error"):
        raise _ERRORS[kind](*outcome["arguments"])
    return pickle.loads(base64.b64decode(outcome["result"])), outcome["peak"]


def _outcome(process: "subprocess.Popen[bytes]", task: bytes, progress: Progress) -> dict[str, Any] | None:
    """The last line of a process; those before it are passed on."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(task)
    for line in process.stdout:
        message: dict[str, Any] = json.loads(line)
        if "progress" in message:
            progress(message["progress"])
        elif "log" in message:
            logging.getLogger(message["log"]).log(message["level"], "%s", message["message"])
        else:
            return message
    return None


def _how_it_ended(status: int, errors: Any) -> str:
    if status < 0:
        cause = signal.Signals(-status).name
        if -status == signal.SIGKILL:
            cause += ", which is what the system does when memory runs out"
        return f"the process was killed ({cause}); what was finished is kept, the same command goes on from there"
    errors.seek(0)
    last = (errors.read().decode(errors="replace").strip().splitlines() or [f"exit status {status}"])[-1]
    return f"the process crashed: {last}"


def give_up(error: Exception) -> NoReturn:
    """Ends this process, from any of its threads, with an error that whoever called `run_apart` sees.

    Args:
        error: of a kind that an export may end with.
    """
    _say(error=type(error).__name__, arguments=_arguments(error))
    os._exit(1)


class _Lines(logging.Handler):
    """Warnings as lines for the process that waits."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(log=record.name, level=record.levelno, message=record.getMessage())


def _say(**message: Any) -> None:
    _ANSWERS.write(json.dumps(message) + "\n")
    _ANSWERS.flush()


_ANSWERS: io.TextIOBase = sys.__stdout__  # type: ignore[assignment]


def _main() -> None:
    """Does what standard input asks for."""
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print must not pass for an answer
        module, function, arguments = pickle.load(sys.stdin.buffer)
        logging.getLogger().addHandler(_Lines(logging.WARNING))
        try:
            result = getattr(importlib.import_module(module), function)(*arguments, progress=lambda x: _say(progress=x))
        except tuple(_ERRORS.values()) as error:
            kind = next(name for name in (type(error).__name__, *_ERRORS) if isinstance(error, _ERRORS.get(name, ())))
            _say(error=kind, arguments=_arguments(error))
            return
    _say(result=base64.b64encode(pickle.dumps(result)).decode(), peak=peak_memory())


def _arguments(error: BaseException) -> list[Any]:
    """What an error is made of again, in the process that waits."""
    if isinstance(error, OSError) and error.strerror:
        return [error.errno, error.strerror, error.filename]
    return [str(error)]


if __name__ == "__main__":
    _main()
