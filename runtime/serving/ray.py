"""The same application on a Ray cluster: replicas behind Ray Serve's proxies, and more of them while requests wait.

`serve deploy deploy/serve.yaml`, or in Python `serve.run(deployed({"model": "/models/sd", "allow_anyone": True}))`.
Each replica is `app.create_app` with a worker process of its own. Replicas know nothing of one another, but for what
needs them all: a cancellation reaches the one that has the request, and /metrics has the counters of each.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from ray import serve
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Ray Serve needs: pip install 'safelight[ray]'") from error
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..folder_lock import locked_folder
from ..source import SOURCE_OPTIONS, cache_folder, local_model
from . import logs
from .app import create_app
from .errors import ApiError
from .metrics import Metrics
from .settings import ServerSettings

if TYPE_CHECKING:
    from .dispatch import Dispatcher

#: how a deployment is set up where a configuration does not say; times are in seconds
DEFAULTS: Mapping[str, Any] = {
    "name": "safelight",
    # what a replica's own queue takes (64 wait, 8 are made), and room for what is no picture, such as a cancellation
    "max_ongoing_requests": 96,
    "max_queued_requests": 256,
    "autoscaling_config": {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 8,
        "upscale_delay_s": 15,
        "downscale_delay_s": 600,
    },
    "health_check_period_s": 30,
    "health_check_timeout_s": 120,
    "graceful_shutdown_wait_loop_s": 1,
    "graceful_shutdown_timeout_s": 150,  # longer than `drain_timeout`
    "ray_actor_options": {"num_cpus": 1},
}
#: seconds that the other replicas have to answer
_PATIENCE = 5.0
#: seconds between looks at a replica that is opened, or at work
_PAUSE = 0.02
_CANCEL = re.compile(r"/v1/images/requests/([A-Za-z0-9._-]{1,128})/cancel", re.ASCII)
_METRICS = "/metrics"
#: what a replica has no use for: the proxies listen
_OF_THE_PROXIES = ("port",)
_KEY_FILE = "api_key_file"
_TRUTHS = ("allow_anyone", "page", "safety_checker")
_LISTS = ("allowed_hosts", "api_keys")


def application(arguments: Mapping[str, Any]) -> Any:
    """What `import_path` names: `deployed`, from the `args` of a configuration, which has options of its own."""
    return deployed(arguments)


def deployed(arguments: Mapping[str, Any], **options: Any) -> Any:
    """The application that `serve.run` takes; Any, because ray is not always there.

    Args:
        arguments: fields of `ServerSettings`, and `api_key_file`: a file with a key a line, on each node.
        options: of the deployment, in place of `DEFAULTS`; with `num_replicas` there is no autoscaling.

    Raises:
        TypeError: an unknown argument.
        ValueError: a value that no server can have.
    """
    given = dict(arguments)
    checked = {name: value for name, value in given.items() if name != _KEY_FILE}
    settings_of(checked | ({"allow_anyone": True} if _KEY_FILE in given else {}))  # the file is the nodes'

    def build() -> ASGIApp:
        return Gateway(on_this_node(settings_of(given)))

    chosen = {**DEFAULTS, **options}
    if "num_replicas" in options:
        del chosen["autoscaling_config"]
    return serve.deployment(serve.ingress(build)(Replica)).options(**chosen).bind()


def settings_of(arguments: Mapping[str, Any]) -> ServerSettings:
    """The settings of a replica.

    Args:
        arguments: as of `deployed`. Without `host`, others reach the server, as they do in a cluster.

    Raises:
        FileNotFoundError: there is no such file of keys.
        TypeError: an unknown argument.
        ValueError: a value that no server can have, a server without a key for one.
    """
    given = {"host": "0.0.0.0", **arguments}
    known = [field.name for field in fields(ServerSettings) if field.name not in _OF_THE_PROXIES]
    if unknown := [name for name in given if name not in (*known, _KEY_FILE)]:
        where = "; the address is Ray Serve's: http_options" if unknown[0] in _OF_THE_PROXIES else ""
        raise TypeError(f"there is no argument {unknown[0]}{where}; known are {', '.join((*known, _KEY_FILE))}")
    for name, value in given.items():
        if name in _TRUTHS and not isinstance(value, bool):  # the text "false" is true
            raise TypeError(f"{name} must be true or false, got {value!r}")
        if name in _LISTS and not isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a list, got a {type(value).__name__}")
    keys = [*given.pop("api_keys", ())]
    if (file := given.pop(_KEY_FILE, None)) is not None:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        keys += [line.strip() for line in lines if line.strip()]
    hosts = tuple(given.pop("allowed_hosts", ()))
    return ServerSettings(**given, api_keys=tuple(keys), allowed_hosts=hosts)


def on_this_node(settings: ServerSettings) -> ServerSettings:
    """The same settings with the model's folder: fetched, or exported, by one replica of a node while others wait.

    Raises:
        Exception: whatever keeps the model from being fetched; see `local_model`.
    """
    if settings.model is None:
        return settings
    source = {name: settings.engine[name] for name in SOURCE_OPTIONS if name in settings.engine}
    engine = {name: value for name, value in settings.engine.items() if name not in source}
    key = hashlib.sha256(repr((settings.model, sorted(source.items()))).encode()).hexdigest()[:32]
    locks = cache_folder() / "fetching"
    locks.mkdir(parents=True, exist_ok=True)
    with locked_folder(locks / key, waits=lambda: logs.event("waiting_for_the_model")):
        path = local_model(settings.model, **source)
    return replace(settings, model=str(path), name=settings.model_name, engine=engine)


class WatchedMetrics(Metrics):
    """Knows how many calls of networks have ended: the engine is at work while they do."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def network_ran(self, network: str, calls: int, rows: int, seconds: float) -> None:
        """Adds a run of a network."""
        super().network_ran(network, calls, rows, seconds)
        self.runs += 1


class Gateway:
    """An ASGI application around a replica's: asks the other replicas where one is not enough."""

    def __init__(self, settings: ServerSettings, others: Callable[..., Any] | None = None) -> None:
        """Makes the application; its lifespan starts the worker.

        Args:
            settings: of the replica, whose model is on this machine.
            others: a coroutine function: the answers of all replicas to one of their methods; `ask_all` when None.
        """
        logs.configure(settings.log_file)
        self.metrics = WatchedMetrics()
        self.app = create_app(settings, metrics=self.metrics)
        self.dispatcher: Dispatcher = self.app.state.dispatcher
        self.failure: str | None = None  # why the model cannot be opened
        self.dispatcher.on_fatal = self._give_up
        self._ask = others or ask_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers. Where the application refuses, as without a key, no other replica is asked."""
        send, path = _without_id(send), scope.get("path", "")
        if scope["type"] == "http" and scope["method"] == "POST" and (match := _CANCEL.fullmatch(path)):
            kept = _Kept()
            await self.app(scope, receive, kept)
            if kept.status == 404 and any(await self._ask("cancel_here", match[1])):
                content = {"id": match[1], "cancelled": True}
                await JSONResponse(content)(scope, receive, send)
            else:
                await kept.sent(send)
        elif scope["type"] == "http" and scope["method"] == "GET" and path == _METRICS:
            kept = _Kept()
            await self.app(scope, receive, kept)
            if kept.status == 200:
                counted = joined(dict(await self._ask("counted_here")))
                await Response(counted, media_type=kept.header(b"content-type"))(scope, receive, send)
            else:
                await kept.sent(send)
        else:
            await self.app(scope, receive, send)

    async def until_open(self) -> None:
        """Waits until the model is open.

        Raises:
            RuntimeError: it cannot be.
        """
        while self.dispatcher.card is None:
            if self.failure is not None:
                raise RuntimeError(f"the model cannot be opened: {self.failure}")
            await asyncio.sleep(_PAUSE)

    async def check(self) -> None:
        """Sees an inference end: one of the pictures that are being made, or a picture of one step where none is.

        A replica with much to do is not taken for one that hangs because a picture more would have to wait; one that
        hangs does not come back from this.

        Raises:
            RuntimeError: no picture can be made.
        """
        before = self.metrics.runs
        while self.dispatcher.running:
            if self.metrics.runs != before:
                return
            await asyncio.sleep(_PAUSE)
        if self.dispatcher.draining:
            return
        try:
            await self.dispatcher.probe()
        except ApiError as error:
            if error.code not in ("queue_full", "shutting_down"):  # pictures have come since
                raise RuntimeError(f"no picture can be made: {error.message}") from error

    def _give_up(self, message: str) -> None:
        self.failure = message


class Replica:
    """A replica, as Ray Serve knows it; it is mixed with the class of Ray's that has `app`."""

    app: Gateway

    async def check_health(self) -> None:
        """Called by Ray when the model is to be open, and from time to time.

        Raises:
            RuntimeError: the replica is of no use; after three times another one takes its place.
        """
        await self.app.until_open()
        await self.app.check()

    async def cancel_here(self, request_id: str) -> bool:
        """Ends a request if this replica has it."""
        return self.app.dispatcher.cancel(request_id)

    async def counted_here(self) -> tuple[str, str]:
        """The replica's name, and what it has counted."""
        return _name(), self.app.metrics.exposition()[0].decode()

    async def describe(self) -> dict[str, Any]:
        """What the replica is at."""
        found = self.app.dispatcher
        return {
            "replica": _name(),
            "ready": found.ready,
            "waiting": found.waiting,
            "running": found.running,
            "pid": os.getpid(),
            "worker_pid": found.worker_pid,
        }


def _name() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


async def ask_all(method: str, *arguments: object) -> list[Any]:
    """The answers of this deployment's replicas, this one among them; one that has none in time is left out."""
    context = serve.get_replica_context()
    handle = serve.get_deployment_handle(context.deployment, context.app_name)
    answers = await handle.broadcast(method, *arguments).results_async(timeout_s=_PATIENCE, return_exceptions=True)
    return [answer for answer in answers if not isinstance(answer, BaseException)]


def joined(expositions: Mapping[str, str]) -> bytes:
    """What several replicas have counted, as one exposition: each sample has a label with its replica.

    Args:
        expositions: by the replica's name, in Prometheus' text format.
    """
    families: dict[str, Metric] = {}
    for name, text in sorted(expositions.items()):
        for family in text_string_to_metric_families(text):
            own = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            own.samples += [sample._replace(labels={**sample.labels, "replica": name}) for sample in family.samples]
    return generate_latest(_Collected(list(families.values())))


class _Collected:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def _without_id(send: Send) -> Send:
    """Where an answer goes without its x-request-id: Ray's proxy, which gives every request one, adds it once more."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message.get("headers", ()) if name != b"x-request-id"]
            message = {**message, "headers": headers}
        await send(message)

    return sent


class _Kept:
    """An answer that is not sent yet."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self._messages.append(message)

    @property
    def status(self) -> int:
        return int(self._messages[0]["status"]) if self._messages else 0

    def header(self, name: bytes) -> str | None:
        found = [value.decode("latin-1") for key, value in self._messages[0]["headers"] if key == name]
        return found[0] if found else None

    async def sent(self, send: Send) -> None:
        for message in self._messages:
            await send(message)
