"""The application under uvicorn, from the first request to the last."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from . import logs
from .app import create_app
from .settings import ServerSettings

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: seconds of silence after which a connection without a request is closed
_KEEP_ALIVE = 15
#: seconds that answers have to reach their clients, when everything else is done
_LAST_ANSWERS = 5
_BACKLOG = 1024


async def serve(settings: ServerSettings, *, on_listening: Callable[[str, ServerSettings], None]) -> int:
    """Serves until a signal comes: what was let in is finished, nothing new is let in. A second signal ends that too.

    Args:
        settings: the server's.
        on_listening: called with the address once clients can connect.

    Returns:
        The exit status: 0, or 1 when the model could not be opened or something had to be left.

    Raises:
        OSError: it cannot listen there.
    """
    logs.configure(settings.log_file)
    app = create_app(settings)
    dispatcher = app.state.dispatcher
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_LAST_ANSWERS,
        backlog=_BACKLOG,
    )
    server = _Server(config, lambda url: on_listening(url, settings))
    status = 0

    def give_up(_: str) -> None:
        nonlocal status
        status, server.should_exit = 1, True

    dispatcher.on_fatal = give_up
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        nonlocal status
        logs.event("draining", waiting=dispatcher.waiting, running=dispatcher.running)
        if not await dispatcher.drain(settings.drain_timeout):
            status = 1
        server.should_exit = True

    def on_signal() -> None:
        nonlocal status
        if ending:
            status = 1
            dispatcher.abandon()
        else:
            ending.append(loop.create_task(end()))

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        await server.serve()
    except SystemExit as error:  # uvicorn has logged why
        raise OSError(f"cannot listen on {settings.host}, port {settings.port}; the log says why") from error
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    logs.event("ended", status=status)
    return status if server.started else 1


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals alone."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[str], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn raises the signals again in the end, and the exit status would not be 0."""
        yield

    async def startup(self, sockets: Any = None) -> None:
        """Listens."""
        await super().startup(sockets=sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_listening(f"http://{f'[{host}]' if ':' in host else host}:{port}")
