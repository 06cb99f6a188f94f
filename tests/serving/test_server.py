"""`safelight serve` as a process: started, killed in parts, ended."""

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from safelight.runtime.cli import main

LIMIT = 60.0
PROMPT = "cat face on a blue background"


class Server:
    """A server of the bundled model."""

    def __init__(self, *options: str, stderr: Any = subprocess.DEVNULL) -> None:
        command = [
            sys.executable,
            "-m",
            "safelight.runtime",
            "serve",
            "--port",
            "0",
            "--backend",
            "onnxruntime",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " at http://127.0.0.1:" in line, line
        self.port = int(line.split(":")[-1].split(";")[0])
        self.threads = ThreadPoolExecutor(16)

    def ask(self, method: str, path: str, fields: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            headers = {} if fields is None else {"content-type": "application/json"}
            connection.request(method, path, None if fields is None else json.dumps(fields), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def generate(self, **fields: Any) -> "Future[tuple[int, Any]]":
        own = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 0, **fields}
        return self.threads.submit(self.ask, "POST", "/v1/images/generations", own)

    def wait_until(self, state: Any) -> Any:
        """Asks for readiness until an answer is as wanted; asking takes its time, which is no other wait."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            found = self.ask("GET", "/health/ready")
            if state(*found):
                return found
        raise AssertionError(f"the server is not as wanted after {LIMIT} s: {found}")

    def until_ready(self) -> None:
        self.wait_until(lambda status, _: status == 200)

    def worker(self) -> int:
        """The process that makes the pictures: the server's only child."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.threads.shutdown()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    opened: list[Server] = []
    yield opened
    for server in opened:
        server.close()


def test_a_worker_that_is_killed_costs_what_it_was_at_and_no_more(servers: list[Server]) -> None:
    servers.append(server := Server("--max-batch", "1"))
    server.until_ready()
    first = server.worker()
    running = server.generate(num_inference_steps=250)
    server.wait_until(lambda _, found: found.get("running") == 1)
    waiting = server.generate()
    server.wait_until(lambda _, found: found.get("waiting") == 1)
    os.kill(first, signal.SIGKILL)
    status, body = running.result(LIMIT)
    assert (status, body["error"]["code"]) == (503, "engine_restarting")
    status, body = server.wait_until(lambda status, _: status == 503)  # while another one is opened
    assert body["error"]["code"] == "not_ready"
    assert waiting.result(LIMIT)[0] == 200
    server.until_ready()
    assert server.worker() != first
    assert server.end() == 0


def test_a_signal_ends_it_when_everything_is_answered(servers: list[Server]) -> None:
    servers.append(server := Server("--max-batch", "2"))
    server.until_ready()
    started = [server.generate(seed=seed, num_inference_steps=30) for seed in range(6)]
    server.wait_until(lambda _, found: found.get("running") == 2 and found.get("waiting") == 4)
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda _, found: found.get("error", {}).get("code") == "shutting_down")
    status, body = server.ask("POST", "/v1/images/generations", {"prompt": PROMPT})
    assert (status, body["error"]["code"]) == (503, "shutting_down")
    answers = [each.result(LIMIT) for each in started]
    assert [status for status, _ in answers] == [200] * 6
    assert len({body["data"][0]["b64_json"] for _, body in answers}) == 6
    assert server.process.wait(LIMIT) == 0


def test_a_second_signal_ends_what_is_running_too(servers: list[Server]) -> None:
    servers.append(server := Server())
    server.until_ready()
    running = server.generate(num_inference_steps=250, size="128x128")
    server.wait_until(lambda _, found: found.get("running") == 1)
    server.process.send_signal(signal.SIGINT)
    server.wait_until(lambda status, _: status == 503)
    server.process.send_signal(signal.SIGINT)
    status, body = running.result(LIMIT)
    assert (status, body["error"]["code"]) == (503, "shutting_down")
    assert server.process.wait(LIMIT) == 1


def test_a_worker_outlives_no_server(servers: list[Server]) -> None:
    servers.append(server := Server())
    server.until_ready()
    worker = server.worker()
    ended = threading.Event()

    def wait() -> None:
        descriptor = os.pidfd_open(worker)
        select.select([descriptor], [], [], LIMIT)
        os.close(descriptor)
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    server.process.kill()
    thread.join(LIMIT)
    assert ended.is_set()
    status = Path(f"/proc/{worker}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_disk_that_is_full_for_the_log_keeps_nobody_from_his_picture(servers: list[Server]) -> None:
    servers.append(server := Server("--log-file", "/dev/full"))
    server.until_ready()
    assert server.generate().result(LIMIT)[0] == 200
    assert server.end() == 0


def test_what_cannot_be_served_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = (
        (["--model", str(tmp_path / "nothing")], "nothing"),
        (["--host", "0.0.0.0"], "--api-key"),
        (["--max-batch", "0"], "max_batch must be at least 1"),
        (["--port", "70000"], "port must lie between"),
        (["--api-key", " "], "API key"),
        (["--api-key-file", str(tmp_path / "keys")], "No such file"),
    )
    for options, words in cases:
        assert main(["serve", *options]) == 1
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1


def test_a_port_that_is_taken_or_a_model_that_cannot_be_opened_ends_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "safelight.runtime", "serve", "--port", str(taken.getsockname()[1])]
        found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert found.returncode == 1
        assert "address already in use" in found.stderr
        assert f"cannot listen on 127.0.0.1, port {taken.getsockname()[1]}" in found.stderr
    command = [sys.executable, "-m", "safelight.runtime", "serve", "--port", "0", "--engine-option", "nonsense=1"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert found.returncode == 1
    assert "nonsense" in found.stderr
