"""The load and the soak of a server: small ones, and what they would find."""

import asyncio
import base64
import io
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safelight.benchmarks import serving_load, serving_server, serving_soak
from safelight.benchmarks.serving_client import Answer, Client
from safelight.benchmarks.serving_load import Answered, Load, check_counts, check_pictures, check_rejections
from safelight.benchmarks.serving_requests import Shape, alike, closest, difference, mixed, pictures_of
from safelight.benchmarks.serving_server import Counters, Server
from safelight.benchmarks.serving_soak import Sample, memory_growth
from safelight.benchmarks.serving_verdict import Verdict

SHAPE = Shape(sizes=((8, 8), (16, 8)), steps=(1, 3))
QUICK = Shape(sizes=((64, 64), (48, 64)), steps=(2, 3))


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def answer_of(*seeds: int, request_id: str = "", status: int = 200, output_format: str = "png") -> Answer:
    """An answer whose pictures are those of seeds."""
    data = []
    for seed in seeds:
        file = io.BytesIO()
        Image.fromarray(picture(seed)).save(file, format=output_format)
        data.append({"b64_json": base64.b64encode(file.getvalue()).decode(), "seed": seed})
    headers = {"x-request-id": request_id}
    return Answer(status=status, headers=headers, body=json.dumps({"data": data}).encode(), seconds=0.1)


def answered(number: int, answer: Answer) -> Answered:
    return Answered(number=number, answer=answer, rejections=0, waited=0.1, completed=0.1)


BODIES = [{"seed": 0}, {"seed": 10, "n": 2}]
ALONE = [[picture(0)], [picture(10), picture(11)]]
GOOD = [
    answered(0, answer_of(0, request_id="load-0-0")),
    answered(1, answer_of(10, 11, request_id="load-1-0")),
]


def failures(found: list[Answered], alone: list[Any] = ALONE) -> list[str]:
    verdict = Verdict()
    check_pictures(found, BODIES, alone, tolerance=2, name="load", verdict=verdict)
    return verdict.failures


def test_pictures_that_are_right() -> None:
    verdict = Verdict()
    found = check_pictures(GOOD, BODIES, ALONE, tolerance=2, name="load", verdict=verdict)
    assert verdict.failures == []
    assert (found["answers"], found["pictures"], found["equal"], found["largest_difference"]) == (2, 3, 2, 0)


def test_pictures_that_were_mixed_up_are_found() -> None:
    assert "differs" in failures(GOOD, [ALONE[0], ALONE[1][::-1]])[0]
    other = picture(0).astype(int)
    other[3, 3, 1] += 3 if other[3, 3, 1] < 128 else -3
    assert failures(GOOD, [[other.astype(np.uint8)], ALONE[1]]) == [
        "load-0: differs from the picture made alone by 3 of 255"
    ]
    swapped = [answered(0, answer_of(10, request_id="load-0-0")), GOOD[1]]
    assert "asked for the pictures of seeds [0]" in failures(swapped)[0]


def test_answers_that_are_missing_or_another_s_or_twice_are_found() -> None:
    assert failures(GOOD[:1]) == ["load: 1 answers to 2 requests"]
    assert failures([GOOD[0], GOOD[0]])
    assert "request id load-1-0" in failures([answered(0, answer_of(0, request_id="load-1-0")), GOOD[1]])[0]
    assert "status 500" in failures([answered(0, answer_of(0, request_id="load-0-0", status=500)), GOOD[1]])[0]
    twice = answered(1, answer_of(10, 10, request_id="load-1-0"))
    assert "asked for the pictures of seeds [10, 11]" in failures([GOOD[0], twice])[0]
    wrong_format = answered(0, answer_of(0, request_id="load-0-0", output_format="jpeg"))
    assert failures([wrong_format, GOOD[1]]) == ["load-0: asked for png, got JPEG"]


def test_a_stream_s_pictures() -> None:
    (content,) = answer_of(0).json()["data"]
    events = [
        ("image_generation.progress", {"step": 1}),
        ("image_generation.partial_image", answer_of(5).json()["data"][0]),
        ("image_generation.completed", content),
    ]
    body = ": still here\n\n" + "".join(f"event: {name}\ndata: {json.dumps(found)}\n\n" for name, found in events)
    (found,) = pictures_of(Answer(status=200, headers={}, body=body.encode(), seconds=0), {"seed": 0, "stream": True})
    assert difference([found], [picture(0)]) == 0
    body += 'event: error\ndata: {"error": {"code": "engine_restarting"}}\n\n'
    with pytest.raises(ValueError, match="engine_restarting"):
        pictures_of(Answer(status=200, headers={}, body=body.encode(), seconds=0), {"seed": 0, "stream": True})


def test_differences_and_the_two_most_alike() -> None:
    assert difference([picture(0)], [picture(0)]) == 0
    assert difference([picture(0)], [picture(0), picture(1)]) == 255
    assert difference([picture(0)], [picture(0)[:4]]) == 255
    one = np.zeros((2, 2, 3), np.uint8)
    assert difference([one], [one + 200]) == 200
    assert closest([one, one + 200, one + 203, np.zeros((4, 2, 3), np.uint8)]) == pytest.approx(3)
    assert closest([one, one]) == 0


def test_requests_are_mixed_and_the_same_ones_again() -> None:
    bodies = mixed(500, SHAPE, seed=3)
    assert bodies == mixed(500, SHAPE, seed=3) != mixed(500, SHAPE, seed=4)
    for name, least in (
        ("prompt", 40),
        ("size", 2),
        ("num_inference_steps", 3),
        ("guidance_scale", 3),
        ("output_format", 3),
    ):
        assert len({body[name] for body in bodies}) >= least
    assert len({body.get("scheduler") for body in bodies}) == 8
    seeds = Counter(body["seed"] + index for body in bodies for index in range(body["n"]))
    assert set(seeds.values()) == {1}
    assert {body.get("stream", False) for body in bodies} == {True, False}
    assert len({(body["size"], body["num_inference_steps"]) for body in alike(20, SHAPE, seed=1)}) == 1


def test_a_rejection_has_to_say_when_to_come_again() -> None:
    load = Load(1, [], name="load")
    good = Answer(status=429, headers={"retry-after": "1"}, body=b'{"error": {"code": "queue_full"}}', seconds=0)
    load.rejected = [good]
    verdict = Verdict()
    check_rejections(load, verdict)
    assert verdict.failures == []
    load.rejected = [Answer(status=429, headers={}, body=b'{"error": {"code": "other"}}', seconds=0)]
    check_rejections(load, verdict)
    assert len(verdict.failures) == 2


METRICS = """\
# TYPE safelight_http_requests_total counter
safelight_http_requests_total{{route="/v1/images/generations",status="200"}} {answered}
safelight_http_requests_total{{route="/v1/images/generations",status="429"}} 2.0
# TYPE safelight_pictures_total counter
safelight_pictures_total{{outcome="ok"}} {pictures}
# TYPE safelight_pictures_waiting gauge
safelight_pictures_waiting {waiting}
"""


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({}, []),
        ({"answered": 6}, ["answered", "all"]),
        ({"pictures": 5}, ["pictures"]),
        ({"waiting": 1}, ["waiting"]),
    ],
)
def test_counts_that_do_not_agree_are_found(wrong: dict[str, int], expected: list[str]) -> None:
    before = Counters(METRICS.format(answered=2, pictures=3, waiting=0))
    after = Counters(METRICS.format(**{"answered": 7, "pictures": 9, "waiting": 0} | wrong))
    verdict = Verdict()
    check_counts(before, after, requests=5, rejections=0, pictures=6, verdict=verdict)
    assert [failure.split(": ")[1] for failure in verdict.failures] == expected


def timeline(server: list[int], worker: list[int]) -> list[Sample]:
    return [
        Sample(seconds=n * 15.0, server_bytes=s, worker_bytes=w, worker=1, waiting=0, running=0, requests=0)
        for n, (s, w) in enumerate(zip(server, worker, strict=True))
    ]


def test_memory_that_grows_is_found_and_a_warm_up_is_not() -> None:
    mib = 2**20
    warm = [10 * mib, 50 * mib, 100 * mib, 100 * mib] + [100 * mib] * 16
    grows = [(100 + n) * mib for n in range(20)]
    early = timeline(warm[:10], grows[:10])
    verdict = Verdict()
    found = memory_growth(timeline(warm, warm), verdict)
    assert verdict.failures == []
    assert found["server"]["ratio"] == found["workers"][0]["ratio"] == 1
    assert memory_growth(early, verdict) == {"server": None, "workers": []}
    memory_growth(timeline(warm, grows), verdict)
    assert len(verdict.failures) == 1
    assert "the worker 1" in verdict.failures[0]
    memory_growth(timeline(grows, warm), verdict)
    assert "the server" in verdict.failures[1]


def test_a_small_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it with small numbers, against the real server; the ratio that is asked for cannot be."""
    monkeypatch.setattr(serving_load, "SHAPE", QUICK)
    file = tmp_path / "load.json"
    sizes = {"requests": 12, "clients": 6, "max-queue": 2, "max-batch": 2, "in-flight": 2, "rounds": 1}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    status = serving_load.main([*options, "--round-requests=2", "--least-ratio=1000", "--json", str(file)])
    result = json.loads(file.read_text())
    (failure,) = result["failures"]
    assert failure.startswith("2 at a time give")
    assert status == 1
    assert result["pictures"]["answers"] == 12
    assert result["rejections"] > 0
    assert result["counts"]["answered"] == 12
    assert result["counts"]["rejected"] == result["rejections"]
    assert result["pictures"]["closest_two_alone"] > 10
    assert set(result["profile"]["networks"]) >= {"unet", "text_encoder", "vae_decoder"}
    assert result["rounds"]["alike"]["ratio"] > 0
    out = capsys.readouterr().out
    assert "| alike | ratio |" in out
    assert f"FAILED: {failure}" in out


@pytest.mark.soak
def test_a_small_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of client once or more, and a worker that is killed."""
    monkeypatch.setattr(serving_soak, "SHAPE", QUICK)
    file = tmp_path / "soak.json"
    sizes = {"minutes": 0.12, "clients": 4, "pictures": 8, "kill-every": 3, "sample": 1}
    status = serving_soak.main([*(f"--{name}={value}" for name, value in sizes.items()), "--json", str(file)])
    result = json.loads(file.read_text())
    assert result["failures"] == []
    assert status == 0
    assert len(result["kills"]) == result["counts"]["worker_restarts"] == 1
    assert len(result["clients"]) == 9
    assert result["pictures_compared"] > 0
    assert result["open"]["connections"] == 0
    assert len(result["timeline"]) >= 4


def test_the_server_ends_when_what_it_is_for_fails(tmp_path: Path) -> None:
    pids: list[int | None] = []

    def fail() -> None:
        with Server(["--backend", "onnxruntime"], log=tmp_path / "log") as server:
            pids.extend([server.pid, server.worker])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(pids) == 2
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no-such-folder"),
        Server(["--model", "/no-such-folder"], log=tmp_path / "log"),
    ):
        pass


def test_a_server_that_hangs_is_ended_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    monkeypatch.setattr(serving_server, "_COMMAND", hangs)
    monkeypatch.setattr(Server, "is_ready", lambda self: b"x" in self._log.read_bytes())
    with Server([], log=tmp_path / "log") as server:
        assert server.end(timeout=0.2) == -signal.SIGKILL


def test_the_client_keeps_its_connection_and_makes_it_anew() -> None:
    """A server that closes after every second answer."""
    made = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()
        await writer.wait_closed()

    async def ask() -> list[bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Client(server.sockets[0].getsockname()[1]) as client:
            found = []
            for _ in range(4):
                found.append((await client.ask("GET", "/")).body)
                await asyncio.sleep(0.05)
        return found

    assert asyncio.run(ask()) == [b"ok"] * 4
    assert made == 2


def test_a_connection_that_ends_in_the_middle_is_an_error() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf")
        writer.close()
        await writer.wait_closed()

    async def ask() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Client(server.sockets[0].getsockname()[1]) as client:
            await client.ask("GET", "/")

    with pytest.raises(ConnectionError, match="before its answer did"):
        asyncio.run(ask())


def test_modules_run_as_commands() -> None:
    import subprocess

    for module in ("serving_load", "serving_soak"):
        found = subprocess.run(
            [sys.executable, "-m", f"safelight.benchmarks.{module}", "--help"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert found.returncode == 0
        assert "--json" in found.stdout
