"""The server's log: one line of JSON for each thing that happened, to standard error or a file.

`{"time": "2026-01-31T12:00:00.123Z", "level": "info", "event": "request", "request_id": "...", ...}`. No prompt and no
image is passed to it, and what other modules say of prompts is shown without the prompts. What a client chose (a
request id, a path) cannot break a line: everything but printable ASCII is escaped. A disk that is full ends nothing:
lines that cannot be written are counted, and the next that can be written says how many there were.
"""

import json
import logging
import math
import os
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

#: of the request that is being answered
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

MOST_CHARACTERS = 8_192  # of one value
_STANDARD_ERROR = 2
#: the least that is shown of a logger, where that is not what the root shows
_LEVELS = {
    "safelight": logging.INFO,
    "uvicorn": logging.INFO,
    "uvicorn.access": logging.CRITICAL + 1,  # the server has an event for each request
    "python_multipart": logging.CRITICAL + 1,  # it shows bytes of uploads
}
#: loggers whose messages quote prompts: shown without what they quote
_QUOTING = ("safelight.runtime.conditioning", "safelight.runtime.long_prompts", "safelight.runtime.pipelines")
#: exceptions that may quote what a client sent: shown without their message
_QUOTING_ERRORS = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
#: of a record, that say where it comes from
_FIELDS = "safelight_fields"


def configure(file: str | None) -> None:
    """Sends what this process logs to a file, or to standard error when None; `reset` undoes it.

    Raises:
        OSError: the file cannot be opened.
    """
    handler = _Handler(file)
    reset()
    root = logging.getLogger()
    _state.before = _Before(
        handlers={name: list(logging.getLogger(name).handlers) for name in (None, *_LEVELS)},
        levels={name: logging.getLogger(name).level for name in (None, *_LEVELS)},
        propagate={name: logging.getLogger(name).propagate for name in _LEVELS},
    )
    _state.handler = handler
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name, level in _LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level)
    logging.captureWarnings(True)


def reset() -> None:
    """Puts back how this process logged before `configure`; nothing where it was not called."""
    if _state.before is None or _state.handler is None:
        return
    logging.captureWarnings(False)
    for name, handlers in _state.before.handlers.items():
        logging.getLogger(name).handlers[:] = handlers
        logging.getLogger(name).setLevel(_state.before.levels[name])
    for name, propagate in _state.before.propagate.items():
        logging.getLogger(name).propagate = propagate
    _state.handler.close()
    _state.before = _state.handler = None


def event(name: str, /, *, level: int = logging.INFO, **fields: Any) -> None:
    """Logs that something happened.

    Args:
        name: a word or two, such as "worker_started".
        level: of the module `logging`.
        fields: what else there is to know; never a prompt or an image. Of an exception the type is shown, where it was
            raised, and what it says unless that may quote a client.
    """
    logging.getLogger(__name__).log(level, name, extra={_FIELDS: fields})


def lost() -> int:
    """How many lines could not be written since this process began."""
    return _state.lost


@dataclass(frozen=True, kw_only=True)
class _Before:
    """How logging was set up; the root logger's name is None."""

    handlers: dict[str | None, list[logging.Handler]]
    levels: dict[str | None, int]
    propagate: dict[str, bool]


class _State:
    """Of this process, as that of `logging` is."""

    def __init__(self) -> None:
        self.before: _Before | None = None
        self.handler: _Handler | None = None
        self.lost = 0


_state = _State()


class _Handler(logging.Handler):
    """Writes a record as a line of JSON, in one write: several processes may write to one file."""

    def __init__(self, file: str | None) -> None:
        super().__init__()
        self._owned = file is not None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._descriptor = _STANDARD_ERROR if file is None else os.open(file, flags, 0o640)
        self._unsaid = 0  # lines that were lost, of which no line tells yet
        self._torn = False  # whether the last line was written in part

    def emit(self, record: logging.LogRecord) -> None:
        """Writes it, or counts it as lost."""
        try:
            line = _line(record)
            if self._unsaid:
                line = _lost_line(self._unsaid) + line
            self._write(line)
        except Exception:  # a log is never the reason why a request fails
            self._unsaid += 1
            _state.lost += 1
        else:
            self._unsaid = 0

    def close(self) -> None:
        """Closes the file, where it is one that it opened."""
        self.acquire()
        try:
            if self._owned:
                self._owned = False
                os.close(self._descriptor)
        finally:
            self.release()
        super().close()

    def _write(self, line: str) -> None:
        data = (("\n" if self._torn else "") + line).encode("ascii")
        written = os.write(self._descriptor, data)
        while 0 < written < len(data):  # a pipe, or the last bytes of a disk
            self._torn = True
            data = data[written:]
            written = os.write(self._descriptor, data)
        self._torn = False


def _line(record: logging.LogRecord) -> str:
    """A record as JSON, with its newline."""
    fields: Mapping[str, Any] | None = getattr(record, _FIELDS, None)
    found: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": "log" if fields is None else record.getMessage(),
        "request_id": request_id.get(),
    }
    if fields is None:
        fields = {"logger": record.name, "message": _message(record)}
    for name, value in fields.items():
        found[f"{name}_" if name in ("time", "level", "event") else name] = value
    if record.exc_info and record.exc_info[1] is not None:
        found |= _described(record.exc_info[1])
    return _json(found)


def _lost_line(count: int) -> str:
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return _json({"time": time, "level": "warning", "event": "log_lines_lost", "request_id": None, "lines": count})


def _json(fields: Mapping[str, Any]) -> str:
    return json.dumps(_plain(fields), allow_nan=False) + "\n"  # in ASCII: what is not printable is escaped


def _message(record: logging.LogRecord) -> str:
    if record.name == "asyncio":  # what follows is the representation of whatever was in a task
        return str(record.msg).partition("\n")[0]
    quotes = any(record.name == name or record.name.startswith(f"{name}.") for name in _QUOTING)
    return str(record.msg) if quotes and record.args else record.getMessage()


def _described(error: BaseException) -> dict[str, Any]:
    """An exception's type, where it was raised, and what it says if that cannot quote a client."""
    kind = type(error)
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "exception": kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
        "says": None if isinstance(error, _QUOTING_ERRORS) else str(error),
        "raised_in": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def _plain(value: Any) -> Any:
    """What JSON can say of a value; of bytes and arrays, which may be an image, no more than the type."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return value if len(value) <= MOST_CHARACTERS else f"{value[:MOST_CHARACTERS]}... ({len(value)} characters)"
        case Mapping():
            return {str(name): _plain(part) for name, part in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(part) for part in value]
        case BaseException():
            return _described(value)
        case os.PathLike():
            return _plain(os.fspath(value))
        case _:
            return f"<{type(value).__name__}>"
