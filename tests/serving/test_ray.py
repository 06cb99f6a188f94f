"""Ray Serve on this machine: two replicas, what becomes of requests when one of them goes, and the configurations."""

import base64
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.serving.errors import ApiError
from safelight.runtime.serving.settings import ServerSettings

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing leaves this machine
for _who in ("REPLICA", "HANDLE"):  # how often Ray hears how many requests there are
    os.environ[f"RAY_SERVE_{_who}_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.2"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
ray = pytest.importorskip("ray", reason="needs: make ray-setup")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of pydantic, about Ray's own classes
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

from safelight.runtime.serving import ray as own  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]  # Ray has some of its own

ROOT = Path(__file__).parents[2]
LIMIT = 90.0  # seconds after which something is stuck
PROMPT = "cat face on a blue background"
STEPS = 4
LONG = 250  # steps, which take seconds
CANCELLED = 'safelight_pictures_total{outcome="cancelled"'
ARGUMENTS: dict[str, Any] = {"host": "127.0.0.1", "engine": {"backend": "onnxruntime", "threads": 1}}
QUICK: dict[str, Any] = {
    "num_replicas": 2,
    "health_check_period_s": 1,
    "health_check_timeout_s": 5,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 60,
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(condition: Callable[[], Any], what: str, limit: float = LIMIT) -> Any:
    """Looks again and again until something is there; what others' processes do cannot be waited for otherwise."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {limit:g} seconds"
        time.sleep(0.05)
    return found


class Client:
    """Talks to the proxy."""

    def __init__(self, port: int) -> None:
        self.port = port

    def open(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        content = None if body is None else json.dumps(body)
        given = {} if body is None else {"content-type": "application/json"}
        connection.request(method, path, content, {**given, **{n.replace("_", "-"): v for n, v in headers.items()}})
        return connection

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
        with contextlib.closing(self.open(method, path, body, **headers)) as connection:
            answer = connection.getresponse()
            content = answer.read()
            is_json = (answer.getheader("content-type") or "").startswith("application/json")
            return answer.status, json.loads(content) if is_json else content.decode(), answer.headers

    def generate(self, seed: int, steps: int = STEPS, request_id: str | None = None) -> tuple[int, Any]:
        fields = {"prompt": PROMPT, "seed": seed, "num_inference_steps": steps}
        headers = {} if request_id is None else {"x_request_id": request_id}
        status, content, _ = self.ask("POST", "/v1/images/generations", fields, **headers)
        return status, content

    def generate_all(self, seeds: Sequence[int], at_once: int, steps: int = STEPS) -> list[tuple[int, Any]]:
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(lambda seed: self.generate(seed, steps), seeds))

    def counted(self, name: str) -> dict[str, float]:
        """A counter of /metrics, by replica: those with a label alone where the name ends in one."""
        status, text, _ = self.ask("GET", "/metrics")
        assert status == 200, text
        found: dict[str, float] = {}
        for line in text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.startswith(name) and 'replica="' in sample:
                replica = sample.split('replica="')[1].split('"')[0]
                found[replica] = found.get(replica, 0) + float(value)
        return found


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A cluster of one node, whose proxy listens; nothing is deployed."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short names
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", folder)  # where Ray puts the token of the cluster
    ray.init(
        num_cpus=6,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        _temp_dir=folder,
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield Client(port)
    serve.shutdown()
    ray.shutdown()
    patch.undo()
    shutil.rmtree(folder, ignore_errors=True)


def replicas() -> list[dict[str, Any]]:
    """What the replicas say of themselves."""
    handle = serve.get_deployment_handle("safelight", "default")
    found = handle.broadcast("describe").results(timeout_s=LIMIT, return_exceptions=True)
    return [each for each in found if not isinstance(each, BaseException)]


def two_ready(other_than: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Waits for two replicas that serve, none of which is one of those."""

    def found() -> list[dict[str, Any]] | None:
        there = [each for each in replicas() if each["ready"]]
        gone = not {each["replica"] for each in there} & set(other_than)
        return there if len(there) == 2 and gone else None

    return until(found, "two replicas")


@pytest.fixture
def service(client: Client) -> Iterator[Client]:
    """Two replicas of the bundled model."""
    serve.run(own.deployed(ARGUMENTS, **QUICK))
    two_ready()
    yield client
    serve.delete("default")


@pytest.fixture(scope="module")
def solo() -> Callable[[int], np.ndarray]:
    """The picture of a seed, as the pipeline makes it alone."""
    pipeline = DiffusionPipeline.from_pretrained(bundled_model(), backend="onnxruntime", threads=1)
    pipeline.set_progress_bar_config(disable=True)
    made: dict[int, np.ndarray] = {}

    def picture(seed: int) -> np.ndarray:
        if seed not in made:
            made[seed] = np.asarray(pipeline(PROMPT, num_inference_steps=STEPS, seed=seed).images[0])
        return made[seed]

    return picture


def assert_picture(content: Any, expected: np.ndarray) -> None:
    with Image.open(io.BytesIO(base64.b64decode(content["data"][0]["b64_json"]))) as image:
        found = np.asarray(image.convert("RGB")).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1  # of 255: another batch may round otherwise


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_many_clients_get_the_pictures_of_their_seeds_from_two_replicas(
    service: Client, solo: Callable[[int], np.ndarray]
) -> None:
    seeds = range(100, 124)
    answers = service.generate_all(seeds, at_once=8)
    assert [status for status, _ in answers] == [200] * len(seeds)
    for seed, (_, content) in zip(seeds, answers, strict=True):
        assert content["seed"] == seed
        assert_picture(content, solo(seed))
    assert np.abs(solo(100).astype(int) - solo(101)).max() > 50  # they are different pictures
    made = service.counted('safelight_pictures_total{outcome="ok"')
    assert len(made) == 2
    assert min(made.values()) > 0
    assert sum(made.values()) >= len(seeds)  # and those of health checks


def test_a_stream_comes_as_it_is_made_and_ends_with_its_reader(service: Client) -> None:
    fields = {"prompt": PROMPT, "num_inference_steps": LONG, "stream": True, "progress": True, "seed": 1}
    connection = service.open("POST", "/v1/images/generations", fields, x_request_id="reader")
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers.get_all("x-request-id") == ["reader"]
    line = answer.readline()
    while b'"state": "running"' not in line or b'"step": 2' not in line:
        assert line, "the stream has ended"
        assert b"completed" not in line, "nothing was sent before the picture was made"
        line = answer.readline()
    assert sum(each["running"] for each in replicas()) == 1
    answer.close()
    connection.close()
    until(lambda: sum(each["running"] for each in replicas()) == 0, "the picture is given up", 30)
    until(lambda: sum(service.counted(CANCELLED).values()) == 1, "it is counted as cancelled")


def test_who_goes_away_is_not_waited_for(service: Client) -> None:
    connection = service.open("POST", "/v1/images/generations", {"prompt": PROMPT, "num_inference_steps": LONG})
    until(lambda: sum(each["running"] for each in replicas()) == 1, "the picture is begun")
    connection.close()
    until(lambda: sum(each["running"] for each in replicas()) == 0, "the picture is given up", 30)
    until(lambda: sum(service.counted(CANCELLED).values()) == 1, "it is counted as cancelled")


def test_a_cancellation_reaches_the_replica_that_has_the_request(service: Client) -> None:
    names = [f"long-{number}" for number in range(6)]
    with ThreadPoolExecutor(len(names)) as threads:
        pending = [threads.submit(service.generate, number, LONG, name) for number, name in enumerate(names)]
        until(lambda: sum(each["running"] for each in replicas()) == len(names), "all are made")
        there = replicas()
        assert len([each for each in there if each["running"]]) == 2  # some with each replica
        for name in names:
            status, content, headers = service.ask("POST", f"/v1/images/requests/{name}/cancel")
            assert (status, content) == (200, {"id": name, "cancelled": True})
            assert len(headers.get_all("x-request-id")) == 1
        answers = [each.result(LIMIT) for each in pending]
    assert [(status, content["error"]["code"]) for status, content in answers] == [(409, "cancelled")] * len(names)
    status, content, _ = service.ask("POST", "/v1/images/requests/long-0/cancel")
    assert (status, content["error"]["code"]) == (404, "not_found")


def test_a_key_is_asked_for_before_other_replicas_are(client: Client) -> None:
    serve.run(own.deployed({**ARGUMENTS, "api_keys": ["the-key"]}, **{**QUICK, "num_replicas": 1}))
    try:
        for method, path in (("POST", "/v1/images/requests/some/cancel"), ("GET", "/metrics")):
            status, content, headers = client.ask(method, path)
            assert (status, content["error"]["code"]) == (401, "invalid_api_key")
            assert headers["www-authenticate"]
            status, _, _ = client.ask(method, path, authorization="Bearer the-key")
            assert status == (404 if method == "POST" else 200)
    finally:
        serve.delete("default")


def test_when_a_replica_dies_the_others_go_on_and_it_comes_back(
    service: Client, solo: Callable[[int], np.ndarray]
) -> None:
    victim, survivor = two_ready()
    done = threading.Event()
    answers: list[tuple[int, int, Any]] = []

    def ask(first: int) -> None:
        for seed in range(first, first + 30):
            answers.append((seed, *service.generate(seed)))
            if done.is_set() and len(answers) > 20:
                return

    clients = [threading.Thread(target=ask, args=(1000 * number,)) for number in range(1, 5)]
    for each in clients:
        each.start()
    until(lambda: len(answers) >= 4, "load")
    os.kill(victim["pid"], signal.SIGKILL)
    there = two_ready(other_than=[victim["replica"]])
    done.set()
    for each in clients:
        each.join(LIMIT)
        assert not each.is_alive()
    assert survivor["replica"] in {each["replica"] for each in there}
    failed = [(status, content) for _, status, content in answers if status != 200]
    assert len(failed) <= len(clients)  # each had one request under way
    assert {status for status, _ in failed} <= {500, 502, 503}
    assert len(answers) - len(failed) >= 4
    for seed, status, content in answers[:3] + answers[-3:]:
        if status == 200:
            assert_picture(content, solo(seed))
    until(lambda: not alive(victim["worker_pid"]), "the worker of the one that was killed has ended", 30)
    assert all(status == 200 for status, _ in service.generate_all(range(8), at_once=4))


def test_a_replica_whose_engine_hangs_is_replaced(service: Client) -> None:
    hung, survivor = two_ready()
    os.kill(hung["worker_pid"], signal.SIGSTOP)
    try:
        there = two_ready(other_than=[hung["replica"]])
        assert survivor["replica"] in {each["replica"] for each in there}
        assert all(status == 200 for status, _ in service.generate_all(range(8), at_once=4))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(hung["worker_pid"], signal.SIGKILL)


def test_another_deployment_takes_over_without_losing_a_request(service: Client) -> None:
    before = [each["replica"] for each in two_ready()]
    stop = threading.Event()
    statuses: list[int] = []

    def ask(number: int) -> None:
        for seed in range(200):
            if stop.is_set():
                return
            statuses.append(service.generate(1000 * number + seed, steps=20)[0])

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for each in clients:
        each.start()
    until(lambda: len(statuses) >= 4, "load")
    serve.run(own.deployed({**ARGUMENTS, "max_steps": 50}, **QUICK))
    two_ready(other_than=before)
    stop.set()
    for each in clients:
        each.join(LIMIT)
        assert not each.is_alive()
    assert set(statuses) == {200}
    status, content = service.generate(0, steps=51)
    assert (status, content["error"]["code"]) == (400, "out_of_range")


def test_what_was_begun_is_finished_when_the_service_ends(client: Client) -> None:
    serve.run(own.deployed(ARGUMENTS, **QUICK))
    workers = [each["worker_pid"] for each in two_ready()]
    with ThreadPoolExecutor(6) as threads:
        pending = [threads.submit(client.generate, seed, 60) for seed in range(6)]
        until(lambda: sum(each["running"] for each in replicas()) == 6, "all are made")
        serve.delete("default")
        answers = [each.result(LIMIT) for each in pending]
    assert [status for status, _ in answers] == [200] * 6
    until(lambda: not any(map(alive, workers)), "the workers have ended", 30)


def test_more_replicas_come_while_requests_wait(client: Client) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 0.5,
        "look_back_period_s": 10.5,  # longer than what Ray takes for the time between two reports
    }
    options = {name: value for name, value in QUICK.items() if name != "num_replicas"}
    serve.run(own.deployed(ARGUMENTS, **options, autoscaling_config=scaling))
    try:
        assert len(until(replicas, "a replica")) == 1
        names = [f"waits-{number}" for number in range(8)]
        with ThreadPoolExecutor(len(names)) as threads:
            pending = [threads.submit(client.generate, seed, LONG, name) for seed, name in enumerate(names)]
            two_ready()
            for name in names:
                client.ask("POST", f"/v1/images/requests/{name}/cancel")
            assert {each.result(LIMIT)[0] for each in pending} <= {200, 409}
    finally:
        serve.delete("default")


def test_a_model_that_cannot_be_opened_says_so(client: Client, tmp_path: Path) -> None:
    model = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    (model / "unet" / "model.onnx_data").write_bytes(b"no weights")
    with pytest.raises(RuntimeError):
        serve.run(own.deployed({**ARGUMENTS, "model": str(model)}, **{**QUICK, "max_constructor_retry_count": 1}))
    try:
        message = serve.status().applications["default"].deployments["safelight"].message
        assert "the model cannot be opened" in message
        assert "model.onnx_data is not the file that was exported" in message
    finally:
        serve.delete("default")


# without a cluster


def configured() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    return found


def test_the_configuration_is_one_that_ray_takes() -> None:
    schema = ServeDeploySchema.model_validate(configured())
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    assert (module, getattr(own, name)) == (own.__name__, own.application)
    built = own.application(application.args)
    (options,) = application.deployments
    deployment = built._bound_deployment
    assert options.name == deployment.name == own.DEFAULTS["name"]
    scaling = deployment._deployment_config.autoscaling_config
    chosen = options.autoscaling_config
    for field, value in chosen.items():
        assert getattr(scaling, field) == value == own.DEFAULTS["autoscaling_config"][field]
    for field in (
        "max_ongoing_requests",
        "max_queued_requests",
        "health_check_period_s",
        "graceful_shutdown_timeout_s",
    ):
        assert getattr(options, field) == own.DEFAULTS[field]
    settings = own.settings_of(
        {name: value for name, value in application.args.items() if name != "api_key_file"} | {"allow_anyone": True}
    )
    assert options.max_ongoing_requests > settings.max_queue + settings.max_batch
    assert options.graceful_shutdown_timeout_s > settings.drain_timeout


def test_the_manifest_has_the_same_configuration() -> None:
    manifest = yaml.safe_load((ROOT / "deploy" / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == configured()
    cluster = manifest["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == pinned("ray")
    (deployment,) = configured()["applications"][0]["deployments"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["maxReplicas"] >= deployment["autoscaling_config"]["max_replicas"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (container,) = workers["template"]["spec"]["containers"]
    assert float(container["resources"]["limits"]["cpu"]) >= deployment["ray_actor_options"]["num_cpus"]
    assert f"rayproject/ray:{pinned('ray')}-py311" in (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")


def pinned(package: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)[package]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"modell": "x", "allow_anyone": True}, TypeError, "there is no argument modell; known are model, name,"),
        ({"port": 80, "allow_anyone": True}, TypeError, "there is no argument port; the address is Ray Serve's"),
        ({"allow_anyone": "false"}, TypeError, "allow_anyone must be true or false, got 'false'"),
        ({"api_keys": "secret"}, TypeError, "api_keys must be a list, got a str"),
        ({}, ValueError, "others reach the server: give --api-key, or --allow-anyone"),
        ({"max_batch": 0, "api_key_file": "/nowhere"}, ValueError, "max_batch must be at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_be_are_refused_when_the_application_is_built(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        own.application(arguments)


def test_keys_are_read_where_the_replica_is(tmp_path: Path) -> None:
    own.application({"api_key_file": str(tmp_path / "keys")})  # no node of the cluster
    with pytest.raises(FileNotFoundError):
        own.settings_of({"api_key_file": str(tmp_path / "keys")})
    (tmp_path / "keys").write_text("one\n\n two \n")
    assert own.settings_of({"api_key_file": str(tmp_path / "keys")}).api_keys == ("one", "two")
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(ValueError, match="others reach the server"):
        own.settings_of({"api_key_file": str(tmp_path / "keys")})


def test_one_replica_of_a_node_fetches_the_model_while_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path))
    inside = threading.Semaphore(1)
    fetched: list[dict[str, Any]] = []

    def local_model(name: str, **source: Any) -> Path:
        assert inside.acquire(blocking=False), "two fetch the model"
        waiting.wait(0.2)  # others would come in meanwhile
        fetched.append({"name": name, **source})
        inside.release()
        return tmp_path / "hub" / "0123abcd"

    waiting = threading.Event()
    monkeypatch.setattr(own, "local_model", local_model)
    settings = ServerSettings(model="owner/sd", engine={"backend": "onnxruntime", "revision": "v1"})
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(own.on_this_node, [settings] * 4))
    assert fetched == [{"name": "owner/sd", "revision": "v1"}] * 4
    assert found[0] == ServerSettings(
        model=str(tmp_path / "hub" / "0123abcd"), name="sd", engine={"backend": "onnxruntime"}
    )
    assert own.on_this_node(ServerSettings()) == ServerSettings()


class _Dispatcher:
    """Has pictures under way as long as a test says."""

    def __init__(self, running: int, error: ApiError | None = None) -> None:
        self.running, self.draining, self.probes = running, False, 0
        self._error = error

    async def probe(self) -> None:
        self.probes += 1
        if self._error is not None:
            raise self._error


def check(dispatcher: _Dispatcher, runs: Callable[[], int]) -> None:
    import asyncio

    class Metrics:
        runs = property(lambda _: runs_now())

    runs_now = runs
    gateway: Any = SimpleNamespace(dispatcher=dispatcher, metrics=Metrics())
    asyncio.run(asyncio.wait_for(own.Gateway.check(gateway), 1))


def test_a_replica_at_work_is_healthy_when_a_network_has_run() -> None:
    numbers = iter(range(100))
    dispatcher = _Dispatcher(running=8, error=ApiError(429, "full", code="queue_full"))
    check(dispatcher, lambda: next(numbers) // 3)
    assert dispatcher.probes == 0


def test_a_replica_at_work_that_gets_nowhere_does_not_pass() -> None:
    with pytest.raises(TimeoutError):
        check(_Dispatcher(running=1), lambda: 7)


@pytest.mark.parametrize("code", ["engine_restarting", "numerical_error", "internal_error"])
def test_a_replica_that_cannot_make_a_picture_is_not_healthy(code: str) -> None:
    with pytest.raises(RuntimeError, match="no picture can be made: it is broken"):
        check(_Dispatcher(running=0, error=ApiError(503, "it is broken", code=code)), lambda: 0)


def test_a_queue_that_is_full_by_now_is_no_illness() -> None:
    dispatcher = _Dispatcher(running=0, error=ApiError(429, "full", code="queue_full"))
    check(dispatcher, lambda: 0)
    assert dispatcher.probes == 1


def test_counters_of_replicas_keep_apart() -> None:
    from safelight.runtime.serving.metrics import Metrics

    counted = {}
    for name, number in (("one", 1), ("two", 3)):
        metrics = Metrics()
        for _ in range(number):
            metrics.picture_finished("ok")
            metrics.stage_seconds("denoise", 0.5)
        counted[name] = metrics.exposition()[0].decode()
    lines = own.joined(counted).decode().splitlines()
    assert 'safelight_pictures_total{outcome="ok",replica="one"} 1.0' in lines
    assert 'safelight_pictures_total{outcome="ok",replica="two"} 3.0' in lines
    assert 'safelight_stage_duration_seconds_count{replica="two",stage="denoise"} 3.0' in lines
    assert lines.count("# TYPE safelight_pictures_total counter") == 1
