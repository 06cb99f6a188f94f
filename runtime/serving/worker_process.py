"""The worker process as the server sees it: started, spoken to, listened to, ended."""

import asyncio
import contextlib
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from .messages import Close, Message, Order
from .settings import ServerSettings

#: seconds that a worker has to end by itself, once it is told to
_PATIENCE = 10.0


class RunningWorker(Protocol):
    """A worker, wherever it runs."""

    pid: int

    def send(self, order: Order) -> None:
        """Tells the worker; one that is gone hears nothing."""
        ...

    async def close(self) -> None:
        """Ends it."""
        ...


#: (settings, called with each message, called once with the exit status) -> the worker
StartWorker = Callable[[ServerSettings, Callable[[Message], None], Callable[[int], None]], RunningWorker]


class WorkerProcess:
    """A process that makes pictures. It is started when this is made."""

    def __init__(
        self, settings: ServerSettings, on_message: Callable[[Message], None], on_end: Callable[[int], None]
    ) -> None:
        """Starts the process, from a coroutine.

        Args:
            settings: the server's.
            on_message: called in the event loop with whatever the worker says.
            on_end: called there once, with the exit status, after the last message.
        """
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_end = on_message, on_end
        self._connection, child = multiprocessing.Pipe()
        command = [sys.executable, "-m", "safelight.runtime.serving.worker", str(child.fileno())]
        with child:
            self._process = subprocess.Popen(command, pass_fds=[child.fileno()], stdin=subprocess.DEVNULL)
        self.pid = self._process.pid
        self._ended = asyncio.Event()
        self.send(settings)
        self._reader = threading.Thread(target=self._read, args=(self._connection,), name="worker's words", daemon=True)
        self._reader.start()

    def send(self, order: Order | ServerSettings) -> None:
        """Tells the worker; one that is gone hears nothing, and `on_end` is going to say so."""
        with contextlib.suppress(OSError):
            self._connection.send(order)

    async def close(self) -> None:
        """Ends the process: what it is at it may finish, within some seconds."""
        self.send(Close())
        try:
            await asyncio.wait_for(self._ended.wait(), _PATIENCE)
        except TimeoutError:
            self.kill()
            await self._ended.wait()

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()

    def _read(self, connection: Connection) -> None:
        """Listens until the connection ends; in a thread of its own."""
        with contextlib.suppress(EOFError, OSError), connection:
            while True:
                self._call(self._on_message, connection.recv())
        self._process.kill()  # one that has closed its connection is of no more use
        status = self._process.wait()
        self._call(self._finished, status)

    def _finished(self, status: int) -> None:
        self._ended.set()
        self._on_end(status)

    def _call(self, function: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(function, value)
