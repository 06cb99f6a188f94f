"""A server for a long time, with clients that misbehave: `python -m safelight.benchmarks.serving_soak --minutes 20`.

A few clients ask `safelight serve` without pause; some leave in the middle, cancel, ask for what cannot be, give no
time, upload what is no picture, or send a body and stop. Every few minutes the worker is killed. In the end nothing
may wait or run, every count has to be the clients', the memory has to be flat, and every connection closed; what is
not so is named, with exit status 1. Linux only.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from safelight.runtime import bundled_model
from safelight.runtime.backends import Array

from .serving_client import Answer, Client
from .serving_load import SHAPE, percentiles
from .serving_requests import GENERATIONS, Alone, difference, mixed, pictures_of
from .serving_server import Counters, Server, connections, open_files, resident
from .serving_verdict import Verdict

EDITS = "/v1/images/edits"
CANCEL = "/v1/images/requests/{request_id}/cancel"
BODY_TIMEOUT = 2.0  # seconds, of the server
TOLERANCE = 1  # of 255
FLAT = 1.05  # times the memory after the warm-up
_GROWTH = 2**20  # bytes that are none: of a small process they are more than the part above
_WARM_UP = 60.0  # seconds of each process, of which the memory is not judged
_LEAST_SAMPLES = 10  # after that
_LEAST_ROUND = 120.0  # seconds until a server with nothing to do has to be at rest
_RECOVERY = 60.0  # seconds until a worker that was killed has to be replaced
_SIDE = 64
_BOUNDARY = "0123456789abcdef"

#: bodies that cannot be, and the codes that say so
_INVALID: tuple[tuple[bytes, int, str], ...] = (
    (b"{", 400, "invalid_json"),
    (b"[1, 2]", 400, "invalid_json"),
    (b"{}", 400, "missing_field"),
    (b'{"prompt": 1}', 400, "invalid_type"),
    (b'{"prompt": "a", "size": "63x64"}', 400, "invalid_size"),
    (b'{"prompt": "a", "size": "large"}', 400, "invalid_size"),
    (b'{"prompt": "a", "n": 0}', 400, "out_of_range"),
    (b'{"prompt": "a", "num_inference_steps": 100000}', 400, "out_of_range"),
    (b'{"prompt": "a", "sede": 1}', 400, "unknown_field"),
    (b'{"prompt": "a", "model": "another"}', 404, "model_not_found"),
    (b'{"prompt": "\xff"}', 400, "invalid_json"),
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The server at one moment."""

    seconds: float  # since it was ready
    server_bytes: int
    worker_bytes: int
    worker: int | None  # the process
    waiting: int
    running: int
    requests: int  # that the clients had sent


class Soak:
    """The clients, and what they have seen."""

    def __init__(self, server: Server, alone: Alone, verdict: Verdict, *, pictures: int, seed: int) -> None:
        """Makes the pictures that answers are compared with.

        Args:
            server: which is ready.
            alone: the pipeline.
            verdict: told of what is wrong.
            pictures: different ones that are asked for.
            seed: of who asks for what, when.
        """
        self._server, self._verdict = server, verdict
        self._chance = random.Random(seed)
        self._bodies = [{**body, "n": 1} for body in mixed(pictures, SHAPE, seed=seed)]
        self._pictures = [alone.pictures(body) for body in self._bodies]
        self._numbers = count()
        self.sent: Counter[str] = Counter()  # requests by route
        self.seen: dict[str, Counter[str]] = {}  # statuses, and what else there was, by kind of client
        self.answers: Counter[tuple[str, int]] = Counter()  # by route and status
        self.latencies: list[float] = []
        self.differences: Counter[int] = Counter()
        self.kills: list[dict[str, float | None]] = []
        self._kinds: tuple[tuple[str, int, Callable[[Client], Awaitable[None]]], ...] = (
            ("picture", 30, self._picture),
            ("edit", 6, self._edit),
            ("leaves at once", 5, self._leaves),
            ("leaves a stream", 5, self._leaves_stream),
            ("cancels", 5, self._cancels),
            ("invalid", 8, self._invalid),
            ("no time", 5, self._no_time),
            ("malformed upload", 6, self._malformed_upload),
            ("slow body", 1, self._slow_body),
        )
        self._not_seen = iter(self._kinds)  # each kind comes once before chance decides

    async def client(self, until: float) -> None:
        """Asks until a moment of `perf_counter`."""
        kinds, weights = list(self._kinds), [weight for _, weight, _ in self._kinds]
        while perf_counter() < until:
            name, _, act = next(self._not_seen, None) or self._chance.choices(kinds, weights)[0]
            async with Client(self._server.port, timeout=_LEAST_ROUND) as client:
                try:
                    await act(client)
                except (OSError, TimeoutError, ValueError, KeyError) as error:
                    self._see(name, type(error).__name__)
                    self._verdict.check(False, f"{name}: {type(error).__name__}: {error}")

    async def kill_workers(self, until: float, every: float) -> None:
        """Kills the worker now and then, and waits for the next one."""
        while (left := until - perf_counter()) > every:
            await asyncio.sleep(every)
            if left - every < every / 4:
                return
            worker = self._server.worker
            if worker is None:
                self._verdict.check(False, "there is no worker to kill")
                continue
            os.kill(worker, signal.SIGKILL)
            killed = perf_counter()
            recovered = await self._recovered(worker, killed)
            self.kills.append({"worker": worker, "seconds_until_ready": recovered})
            self._verdict.check(recovered is not None, f"not ready {_RECOVERY:g} s after its worker was killed")

    async def _recovered(self, old: int, killed: float) -> float | None:
        """Seconds until there is another worker, and pictures are made."""
        async with Client(self._server.port) as client:
            while perf_counter() - killed < _RECOVERY:
                is_another = self._server.worker not in (None, old)  # asked first: the server knows of the death then
                self._send("/health/ready")
                if (await client.ask("GET", "/health/ready")).status == 200 and is_another:
                    return perf_counter() - killed
                await asyncio.sleep(0.1)
        return None

    # the clients

    async def _picture(self, client: Client) -> None:
        number = self._chance.randrange(len(self._bodies))
        body = self._bodies[number]
        answer = await self._ask("picture", client, body)
        if answer.status != 200:
            self._allow("picture", answer, 429, 503)
            return
        if body.get("stream") and any(name == "error" for name, _ in answer.events()):
            codes = [content["error"]["code"] for name, content in answer.events() if name == "error"]
            self._see("picture", f"stream ended: {codes[0]}")
            self._verdict.check(codes == ["engine_restarting"], f"a stream ended with {codes}")
            return
        self.latencies.append(answer.seconds)
        largest = difference(pictures_of(answer, body), self._pictures[number])
        self.differences[largest] += 1
        self._verdict.check(largest <= TOLERANCE, f"a picture differs from the one made alone by {largest} of 255")

    async def _edit(self, client: Client) -> None:
        image = _png(np.full((_SIDE, _SIDE, 3), 200, np.uint8))
        mask = np.zeros((_SIDE, _SIDE), np.uint8)
        mask[: _SIDE // 2] = 255
        parts = [("image", "a.png", image), ("prompt", None, b"red apple"), ("num_inference_steps", None, b"8")]
        if self._chance.random() < 0.5:
            parts.append(("mask", "m.png", _png(mask)))
        answer = await self._post_form("edit", client, _form(parts))
        if answer.status == 200:
            (found,) = answer.json()["data"]
            with Image.open(io.BytesIO(base64.b64decode(found["b64_json"]))) as picture:
                self._verdict.check(picture.size == (_SIDE, _SIDE), f"an edit has the size {picture.size}")
        else:
            self._allow("edit", answer, 429, 503)

    async def _leaves(self, client: Client) -> None:
        await self._send_picture(client, self._chance.choice(self._bodies))
        await asyncio.sleep(self._chance.uniform(0.02, 0.3))
        self._see("leaves at once", "left")

    async def _leaves_stream(self, client: Client) -> None:
        body = {**self._chance.choice(self._bodies), "stream": True, "progress": True, "num_inference_steps": 60}
        await self._send_picture(client, body)
        for _ in range(self._chance.randint(1, 6)):
            await client.received()
        self._see("leaves a stream", "left")

    async def _cancels(self, client: Client) -> None:
        request_id = f"soak-cancel-{next(self._numbers)}"
        body = {**self._chance.choice(self._bodies), "num_inference_steps": 60, "stream": False}
        for name in ("partial_images", "progress"):
            body.pop(name, None)
        asked = asyncio.create_task(self._ask("cancels", client, body, request_id))
        await asyncio.sleep(self._chance.uniform(0.02, 0.3))
        async with Client(self._server.port) as other:
            self._send(CANCEL)
            answer = await other.ask("POST", CANCEL.replace("{request_id}", request_id))
        self.answers[CANCEL, answer.status] += 1
        found = await asked
        if found.status == 200 or found.status in (429, 503):  # it was done, or never let in, or its worker was killed
            self._verdict.check(answer.status in (200, 404), f"a cancel of what is over got {answer.status}")
            self._verdict.check(found.status != 200 or answer.status == 404, "a request was cancelled, and answered")
        else:
            self._verdict.check(
                (answer.status, found.status) == (200, 409),
                f"cancelled: {answer.status}, {found.status} {found.body[:99]!r}",
            )

    async def _invalid(self, client: Client) -> None:
        content, status, code = self._chance.choice(_INVALID)
        self._send(GENERATIONS)
        answer = await client.ask("POST", GENERATIONS, content, headers={"content-type": "application/json"})
        self._count("invalid", GENERATIONS, answer)
        said = answer.json()["error"]["code"]
        self._verdict.check((answer.status, said) == (status, code), f"{content!r} got {answer.status} {said}")

    async def _no_time(self, client: Client) -> None:
        body = {**self._chance.choice(self._bodies), "timeout": 0.01, "num_inference_steps": 60, "stream": False}
        for name in ("partial_images", "progress"):
            body.pop(name, None)
        answer = await self._ask("no time", client, body)
        self._allow("no time", answer, 504, 429, 503)

    async def _malformed_upload(self, client: Client) -> None:
        good = _form([("image", "a.png", _png(np.zeros((_SIDE, _SIDE, 3), np.uint8))), ("prompt", None, b"a")])
        form = self._chance.choice(
            (
                _form([("image", "a.png", b"no picture"), ("prompt", None, b"a")]),
                _form([("image", "a.png", b"\x89PNG\r\n\x1a\n" + bytes(100)), ("prompt", None, b"a")]),
                _form([("prompt", None, b"a")]),
                good[: len(good) // 2],
                b"--" + _BOUNDARY.encode() + b"\r\nno headers at all",
                b"",
            )
        )
        answer = await self._post_form("malformed upload", client, form)
        self._verdict.check(answer.status == 400, f"a malformed upload got {answer.status}: {answer.body[:99]!r}")

    async def _slow_body(self, client: Client) -> None:
        began = perf_counter()
        self._send(GENERATIONS)
        await client.send("POST", GENERATIONS, b'{"prompt"', headers={"content-type": "application/json"}, length=1000)
        answer = await client.answer(began)
        self._count("slow body", GENERATIONS, answer)
        self._verdict.check(answer.status == 408, f"a body that never ends got {answer.status}")

    # what they have in common

    async def _ask(self, kind: str, client: Client, body: dict[str, Any], request_id: str | None = None) -> Answer:
        self._send(GENERATIONS)
        headers = {} if request_id is None else {"x-request-id": request_id}
        answer = await client.ask_json(GENERATIONS, body, headers=headers)
        self._count(kind, GENERATIONS, answer)
        return answer

    async def _send_picture(self, client: Client, body: dict[str, Any]) -> None:
        self._send(GENERATIONS)
        content = json.dumps(body).encode()
        await client.send("POST", GENERATIONS, content, headers={"content-type": "application/json"})

    async def _post_form(self, kind: str, client: Client, form: bytes) -> Answer:
        self._send(EDITS)
        kind_of_body = f"multipart/form-data; boundary={_BOUNDARY}"
        answer = await client.ask("POST", EDITS, form, headers={"content-type": kind_of_body})
        self._count(kind, EDITS, answer)
        return answer

    def _send(self, route: str) -> None:
        self.sent[route] += 1

    def _count(self, kind: str, route: str, answer: Answer) -> None:
        self.answers[route, answer.status] += 1
        self._see(kind, str(answer.status))

    def _see(self, kind: str, what: str) -> None:
        self.seen.setdefault(kind, Counter())[what] += 1

    def _allow(self, kind: str, answer: Answer, *statuses: int) -> None:
        self._verdict.check(answer.status in statuses, f"{kind}: {answer.status}: {answer.body[:150]!r}")
        if answer.status in (429, 503):
            self._verdict.check("retry-after" in answer.headers, f"{kind}: {answer.status} without Retry-After")


async def watch(server: Server, soak: Soak, timeline: list[Sample], every: float) -> None:
    """Looks at the server again and again, until it is cancelled."""
    began = perf_counter()
    async with Client(server.port) as client:
        while True:
            found = Counters((await client.ask("GET", "/metrics")).body.decode())
            worker = server.worker
            timeline.append(
                Sample(
                    seconds=round(perf_counter() - began, 1),
                    server_bytes=resident(server.pid),
                    worker_bytes=0 if worker is None else resident(worker),
                    worker=worker,
                    waiting=int(found.sum("safelight_pictures_waiting")),
                    running=int(found.sum("safelight_pictures_running")),
                    requests=sum(soak.sent.values()),
                )
            )
            await asyncio.sleep(every)


def memory_growth(timeline: Sequence[Sample], verdict: Verdict) -> dict[str, Any]:
    """How much more the server, and each worker, has at the end than after its warm-up; who ended early is left out."""
    found: dict[str, Any] = {
        "server": _growth([(sample.seconds, sample.server_bytes) for sample in timeline], "the server", verdict),
        "workers": [],
    }
    for worker in dict.fromkeys(sample.worker for sample in timeline if sample.worker is not None):
        life = [(sample.seconds, sample.worker_bytes) for sample in timeline if sample.worker == worker]
        if (growth := _growth(life, f"the worker {worker}", verdict)) is not None:
            found["workers"].append(growth)
    return found


def _growth(life: Sequence[tuple[float, int]], who: str, verdict: Verdict) -> dict[str, float] | None:
    """Medians of what comes first after the warm-up, and last; None of a process that has ended before."""
    began = life[0][0]
    warm = [memory for seconds, memory in life if seconds - began >= _WARM_UP and memory]
    if len(warm) < _LEAST_SAMPLES:
        return None
    part = len(warm) // 5
    first, last = statistics.median(warm[:part]), statistics.median(warm[-part:])
    verdict.check(
        last <= max(first * FLAT, first + _GROWTH),
        f"{who} had {first / 2**20:.1f} MiB after the warm-up, and {last / 2**20:.1f} MiB at the end",
    )
    return {"after_warm_up": first, "at_the_end": last, "ratio": last / first}


async def at_rest(server: Server) -> Counters:
    """What the server has counted once nothing waits or runs, or all the time for that is over."""
    end = perf_counter() + _LEAST_ROUND
    async with Client(server.port) as client:
        while True:
            found = Counters((await client.ask("GET", "/metrics")).body.decode())
            busy = found.sum("safelight_pictures_waiting") + found.sum("safelight_pictures_running")
            if not busy or perf_counter() > end:
                return found
            await asyncio.sleep(0.2)


def check_counts(soak: Soak, found: Counters, verdict: Verdict) -> dict[str, Any]:
    """Whether the server's counts are those of its clients, who do not know what they left."""
    for name in ("waiting", "running"):
        left = found.sum(f"safelight_pictures_{name}")
        verdict.check(left == 0, f"in the end {left:g} pictures are {name}")
    counts: dict[str, Any] = {}
    for route, sent in soak.sent.items():
        if route == "/health/ready":
            continue  # the start asked, too
        by_status = found.by("safelight_http_requests_total", "status", route=route)
        counts[route] = {"sent": sent, "answered": {status: int(value) for status, value in by_status.items()}}
        verdict.check(sum(by_status.values()) == sent, f"{route}: {sent} requests were sent, {by_status} answered")
        unknown = sent - sum(value for (own, _), value in soak.answers.items() if own == route)
        more = 0.0
        for status in {*by_status, *(str(status) for own, status in soak.answers if own == route)}:
            seen = soak.answers[route, int(status)] if status.isdigit() else 0
            verdict.check(by_status.get(status, 0) >= seen, f"{route}: {seen} answers of {status} are not counted")
            more += by_status.get(status, 0) - seen
        verdict.check(more == unknown, f"{route}: {more:g} answers nobody saw, and {unknown} clients that left")
    counts["pictures"] = {name: int(value) for name, value in found.by("safelight_pictures_total", "outcome").items()}
    restarts = int(found.sum("safelight_worker_restarts_total"))
    verdict.check(restarts == len(soak.kills), f"{len(soak.kills)} workers were killed, {restarts} restarts counted")
    failed = found.by("safelight_http_requests_total", "status").get("500", 0)
    verdict.check(failed == 0, f"{failed:g} answers of status 500")
    return counts | {"worker_restarts": restarts}


async def run(
    server: Server,
    alone: Alone,
    verdict: Verdict,
    *,
    minutes: float,
    clients: int,
    pictures: int,
    kill_every: float,
    sample: float,
    seed: int,
) -> dict[str, Any]:
    """All of it; what is wrong is in the verdict.

    Args:
        server: which is ready.
        alone: the pipeline.
        verdict: told of what is wrong.
        minutes: that clients ask.
        clients: how many.
        pictures: different ones that they ask for.
        kill_every: seconds between two ends of a worker.
        sample: seconds between two looks at the memory.
        seed: of who asks for what, when.
    """
    soak = Soak(server, alone, verdict, pictures=pictures, seed=seed)
    await at_rest(server)
    files, pid = open_files(server.pid), server.pid
    timeline: list[Sample] = []
    until = perf_counter() + minutes * 60
    watching = asyncio.create_task(watch(server, soak, timeline, sample))
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(soak.client(until))
        group.create_task(soak.kill_workers(until, kill_every))
    watching.cancel()
    await asyncio.wait([watching])
    verdict.check(watching.cancelled(), "the looks at the memory ended before their time")
    found = await at_rest(server)
    result: dict[str, Any] = {
        "counts": check_counts(soak, found, verdict),
        "clients": {kind: dict(sorted(seen.items())) for kind, seen in sorted(soak.seen.items())},
        "kills": soak.kills,
        "memory": memory_growth(timeline, verdict),
        "pictures_compared": sum(soak.differences.values()),
        "largest_difference": max(soak.differences, default=None),
        "latency_seconds": percentiles(soak.latencies),
        "timeline": [asdict(moment) for moment in timeline],
    }
    if minutes * 60 > 4 * _WARM_UP:
        verdict.check(bool(result["memory"]["workers"]), "no worker has lived long enough to judge its memory")
    for kind in (name for name, _, _ in soak._kinds):
        verdict.check(kind in soak.seen, f"no client of the kind {kind!r} has come to an end")
    await _check_closed(server, files, verdict, result)
    verdict.check(server.pid == pid and server.is_ready(), "the server is not ready in the end")
    return result


async def _check_closed(server: Server, files: int, verdict: Verdict, result: dict[str, Any]) -> None:
    """Whether every connection is closed, and no more files are open than before."""
    for _ in range(50):
        left, open_now = connections(server.port), open_files(server.pid)
        if left == 0 and open_now <= files:
            break
        await asyncio.sleep(0.1)
    result["open"] = {"connections": left, "files": open_now, "files_before": files}
    verdict.check(left == 0, f"{left} connections are open in the end")
    verdict.check(open_now <= files, f"{open_now} files are open in the end, {files} were before")


def _form(parts: Sequence[tuple[str, str | None, bytes]]) -> bytes:
    """A form's bytes: names, names of files, contents."""
    found = b""
    for name, file, content in parts:
        about = f'; filename="{file}"' if file else ""
        found += f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{about}\r\n\r\n'.encode()
        found += content + b"\r\n"
    return found + f"--{_BOUNDARY}--\r\n".encode()


def _png(array: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="png")
    return file.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, prints, writes the JSON; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description="A server for a long time, with clients that misbehave.")
    parser.add_argument("--minutes", type=float, default=20.0, help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=48, help="different ones (default: %(default)s)")
    parser.add_argument("--kill-every", type=float, default=240.0, help="seconds, the worker (default: %(default)s)")
    parser.add_argument("--sample", type=float, default=5.0, help="seconds between two looks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--backend", default="onnxruntime", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was seen")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends, too
    verdict = Verdict()
    alone = Alone(bundled_model(), backend=arguments.backend)
    options = ["--backend", arguments.backend, "--body-timeout", str(BODY_TIMEOUT), "--max-queue", "8"]
    names = ("minutes", "clients", "pictures", "kill_every", "sample", "seed")
    plan = {name: getattr(arguments, name) for name in names}
    with tempfile.TemporaryDirectory() as folder, Server(options, log=Path(folder) / "server.log") as server:
        result = asyncio.run(run(server, alone, verdict, **plan))
        status = server.end()
        verdict.check(status == 0, f"the server ended with status {status}")
        result["server_errors"] = server.errors()
        ends = len(result["server_errors"])  # of workers: nothing else is an error
        verdict.check(ends == len(result["kills"]), f"the server's log has {ends} errors, {len(result['kills'])} kills")
    for name in (
        "counts",
        "clients",
        "kills",
        "memory",
        "pictures_compared",
        "largest_difference",
        "latency_seconds",
        "open",
    ):
        print(f"{name}: {json.dumps(result[name])}")
    return verdict.concluded(arguments.json, backend=arguments.backend, plan=plan, result=result)


if __name__ == "__main__":
    sys.exit(main())
