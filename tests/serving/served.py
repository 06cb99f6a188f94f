"""The application with its worker in a thread of this process, whose networks a test controls, and its clients."""

import asyncio
import base64
import io
import json
import multiprocessing
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from safelight.runtime.backends import Array, Network
from safelight.runtime.serving.app import create_app
from safelight.runtime.serving.messages import Close
from safelight.runtime.serving.model_card import ModelCard
from safelight.runtime.serving.settings import ServerSettings
from safelight.runtime.serving.worker import Worker

LIMIT = 60.0  # seconds after which a test is stuck
PROMPT = "cat face on a blue background"
HOST = [(b"host", b"127.0.0.1:8000")]


def card(**changes: Any) -> ModelCard:
    """The card of a model that there is not."""
    fields: dict[str, Any] = {
        "id": "emoji",
        "created": 1,
        "pipeline": "StableDiffusionPipeline",
        "backend": "onnxruntime (CPU)",
        "width": 64,
        "height": 64,
        "factor": 8,
        "most_pixels": 128 * 128,
        "width_range": (8, 256),
        "height_range": (8, 512),
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "strength": 0.8,
        "scheduler": "PNDMScheduler",
        "schedulers": ("DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"),
        "generations": True,
        "edits": True,
        "masks": True,
    }
    return ModelCard(**(fields | changes))


@dataclass
class Control:
    """What happens in a network's runs: `before` is called in the networks' thread with the number of the run."""

    network: tuple[str, str] = ("unet", "network")  # component and attribute
    before: Callable[[int, Mapping[str, Array]], None] = lambda _number, _inputs: None
    after: Callable[[int, dict[str, Array]], dict[str, Array]] = lambda _number, found: found
    rows: list[int] = field(default_factory=list)  # of the runs that were begun
    held: threading.Event = field(default_factory=threading.Event)  # set when a run waits for `release`
    release: threading.Event = field(default_factory=threading.Event)

    def hold(self, number: int) -> None:
        """The run of that number, and none after it, waits until `release` is set."""

        def before(found: int, _: Mapping[str, Array]) -> None:
            if found == number:
                self.held.set()
                assert self.release.wait(LIMIT)

        self.before = before

    async def until_held(self) -> None:
        assert await asyncio.get_running_loop().run_in_executor(None, self.held.wait, LIMIT)


class ControlledNetwork:
    """A network, and what a test does to it."""

    def __init__(self, network: Network, control: Control) -> None:
        self._network, self._control = network, control
        self.inputs, self.outputs = network.inputs, network.outputs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        number = len(self._control.rows)
        self._control.rows.append(len(next(iter(inputs.values()))))
        self._control.before(number, inputs)
        return self._control.after(number, self._network(inputs, outputs))

    def close(self) -> None:
        self._network.close()


class ThreadWorker:
    """The worker in a thread."""

    pid = 0

    def __init__(self, control: Control, settings: ServerSettings, on_message: Any, on_end: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._ours, theirs = multiprocessing.Pipe()
        self._ended = asyncio.Event()

        def work() -> None:
            with theirs:
                worker = Worker(theirs, settings)
                component, attribute = control.network
                shared = getattr(getattr(worker.pipeline, component), attribute)
                shared.network = ControlledNetwork(shared.network, control)
                worker.run()
                worker.pipeline.close()

        def read() -> None:
            try:
                while True:
                    self._loop.call_soon_threadsafe(on_message, self._ours.recv())
            except (EOFError, OSError):
                self._loop.call_soon_threadsafe(self._finish, on_end)

        self._threads = [threading.Thread(target=work, daemon=True), threading.Thread(target=read, daemon=True)]
        for thread in self._threads:
            thread.start()

    def send(self, order: Any) -> None:
        self._ours.send(order)

    async def close(self) -> None:
        self.send(Close())
        await asyncio.wait_for(self._ended.wait(), LIMIT)
        for thread in self._threads:
            thread.join(LIMIT)

    def _finish(self, on_end: Any) -> None:
        self._ours.close()
        self._ended.set()
        on_end(0)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error of an answer that is one, whose form is checked."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def pictures(self) -> list[Array]:
        return [pixels(each["b64_json"]) for each in self.json["data"]]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if lines:
                found.append(json.loads(lines["data"]))
                assert found[-1]["type"] == lines["event"]
        return found


def pixels(b64_json: str) -> Array:
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as image:
        return np.asarray(image.convert("RGB"))


class Exchange:
    """A request that is under way."""

    def __init__(self, app: Any, scope: dict[str, Any], body: Sequence[bytes] | None) -> None:
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        chunks = [] if body is None else list(body)
        for index, chunk in enumerate(chunks):
            self._incoming.put_nowait({"type": "http.request", "body": chunk, "more_body": index + 1 < len(chunks)})
        self.sent: list[Any] = []
        self._something = asyncio.Condition()
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self._send))

    def disconnect(self) -> None:
        """The client goes away."""
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def until_sent(self, text: bytes) -> None:
        """Waits until the answer has a text in it."""
        async with asyncio.timeout(LIMIT), self._something:
            await self._something.wait_for(lambda: any(text in message.get("body", b"") for message in self.sent))

    async def answer(self) -> Answer:
        await asyncio.wait_for(self.task, LIMIT)
        start = self.sent[0]
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        assert headers["x-request-id"]
        return Answer(start["status"], headers, b"".join(message.get("body", b"") for message in self.sent[1:]))

    async def _send(self, message: Any) -> None:
        async with self._something:
            self.sent.append(message)
            self._something.notify_all()


class Served:
    """The application, and a client of it."""

    def __init__(self, app: Any, control: Control) -> None:
        self.app, self.control = app, control
        self.dispatcher = app.state.dispatcher

    def open(
        self,
        method: str,
        path: str,
        *,
        fields: Any = None,
        body: Sequence[bytes] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        host: Sequence[tuple[bytes, bytes]] = HOST,
    ) -> Exchange:
        """Sends a request. Fields are sent as JSON; of a body of None no end is ever sent, but with fields or GET."""
        own = list(headers)
        if fields is not None:
            body = [json.dumps(fields).encode()]
            own.append((b"content-type", b"application/json"))
        if body is None and method == "GET":
            body = [b""]
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [*host, *own],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
        }
        return Exchange(self.app, scope, body)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.open("GET", path, **options).answer()

    async def post(self, path: str, **options: Any) -> Answer:
        return await self.open("POST", path, **options).answer()

    def generation(self, *, request_id: str | None = None, **fields: Any) -> Exchange:
        """Asks for a picture of four steps, if the fields do not say otherwise."""
        headers = [] if request_id is None else [(b"x-request-id", request_id.encode())]
        own = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 0, **fields}
        return self.open("POST", "/v1/images/generations", fields=own, headers=headers)

    async def generate(self, **fields: Any) -> Answer:
        return await self.generation(**fields).answer()

    async def until_idle(self) -> None:
        """Waits until nothing waits or runs: no slot is lost."""
        await asyncio.wait_for(self.dispatcher._idle.wait(), LIMIT)
        assert (self.dispatcher.waiting, self.dispatcher.running) == (0, 0)

    async def counted(self, name: str) -> float:
        """A value of /metrics, labels and all: `safelight_pictures_total{outcome="ok"}`."""
        lines = (await self.get("/metrics")).body.decode().splitlines()
        found = [line.rpartition(" ") for line in lines if line.rpartition(" ")[0] == name]
        return float(found[0][2]) if found else 0.0


@asynccontextmanager
async def serving(control: Control | None = None, **settings: Any) -> AsyncIterator[Served]:
    """The application with the bundled model, opened."""
    own = control or Control()
    options = {"engine": {"backend": "onnxruntime", "threads": 1}, **settings}
    app = create_app(ServerSettings(**options), start_worker=lambda *arguments: ThreadWorker(own, *arguments))
    async with app.router.lifespan_context(app):
        served = Served(app, own)
        async with asyncio.timeout(LIMIT):
            while not served.dispatcher.ready:
                await asyncio.sleep(0.005)
        yield served
        own.release.set()


def run(test: Callable[[Served], Any], control: Control | None = None, **settings: Any) -> None:
    """Runs a test's coroutine with the application."""

    async def work() -> None:
        async with serving(control, **settings) as served:
            await test(served)
            await served.until_idle()

    asyncio.run(work())
