"""What the server counts, as Prometheus reads it at /metrics: names begin with `safelight_`, units are base units.

No label has a value that a client chooses: routes are `ROUTES`, and what is not among the known values is "other".
"""

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from . import logs

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("The server's metrics need: pip install 'safelight[serve]'") from error

ROUTES = (
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/requests/{request_id}/cancel",
    "/v1/models",
    "/v1/models/{id}",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/",
    "/{file}",
    "/docs",
    "/openapi.json",
)
OUTCOMES = ("ok", "failed", "cancelled", "rejected", "expired")
STAGES = ("queue", "text", "image", "denoise", "decode", "encode", "total")
OTHER = "other"
NO_STATUS = "none"

#: of whole answers: from one that needs no picture to one of minutes
_ANSWER_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_STAGE_BUCKETS = (0.001, *_ANSWER_BUCKETS)
_MOST_NETWORKS = 16  # names of networks that are told apart
_MOST_CALLS = 16  # in one run, that are told apart
_PROC = Path("/proc")
_CONVERTER = re.compile(r":\w+(?=})")
_FILE = re.compile(r"/[\w-]+\.\w+")  # of the page


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "safelight_http_requests", "Answers, by route and status.", ("route", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "safelight_http_request_duration_seconds",
            "From a request's first byte to its answer's last.",
            ("route",),
            buckets=_ANSWER_BUCKETS,
            registry=self.registry,
        )
        self._pictures = Counter(
            "safelight_pictures",
            "Pictures that were asked for, by what became of them.",
            ("outcome",),
            registry=self.registry,
        )
        self._stages = Histogram(
            "safelight_stage_duration_seconds",
            "Seconds of a picture in each stage, the queue among them.",
            ("stage",),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self._network_runs = Counter(
            "safelight_network_runs",
            "Runs of a network, by the pictures that shared each.",
            ("network", "pictures"),
            registry=self.registry,
        )
        self._network_seconds = Counter(
            "safelight_network_run_seconds",
            "Seconds in runs of a network, by the pictures that shared each.",
            ("network", "pictures"),
            registry=self.registry,
        )
        self._network_rows = Counter(
            "safelight_network_rows", "Rows of the batches that a network ran.", ("network",), registry=self.registry
        )
        self._waiting = Gauge("safelight_pictures_waiting", "Pictures in the queue.", registry=self.registry)
        self._running = Gauge("safelight_pictures_running", "Pictures that are being made.", registry=self.registry)
        self._restarts = Counter(
            "safelight_worker_restarts", "Worker processes that were started in place of one.", registry=self.registry
        )
        build = Gauge(
            "safelight_build_info", "1, with the versions as labels.", ("version", "python"), registry=self.registry
        )
        build.labels(version("safelight"), platform.python_version()).set(1)
        ProcessCollector(namespace="safelight", registry=self.registry)  # memory, time and files of this process
        self.registry.register(_Read())
        self._shown = CollectorRegistry()
        self._shown.register(_WithoutCreated(self.registry))
        self._networks: set[str] = set()
        for outcome in OUTCOMES:  # a counter that is there from the start shows its first event
            self._pictures.labels(outcome)

    def request_finished(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer.

        Args:
            route: of `ROUTES`, also as the router writes them (`{id:path}`); any other counts as "other".
            status: of HTTP; 0 where the client left before there was an answer, which counts as "none".
            seconds: from the request's first byte to the answer's last.
        """
        known = _known_route(route)
        self._requests.labels(known, str(status) if 100 <= status <= 599 else NO_STATUS).inc()
        self._request_seconds.labels(known).observe(max(seconds, 0.0))

    def picture_finished(self, outcome: str) -> None:
        """Counts a picture that was made, or was not: failed, cancelled, rejected (queue full), expired (too late)."""
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}, got {outcome!r}")
        self._pictures.labels(outcome).inc()

    def stage_seconds(self, stage: str, seconds: float) -> None:
        """Adds a picture's time in one of `STAGES`."""
        self._stages.labels(stage if stage in STAGES else OTHER).observe(max(seconds, 0.0))

    def network_ran(self, network: str, calls: int, rows: int, seconds: float) -> None:
        """Adds a run of a network.

        Args:
            network: its name.
            calls: the pictures that shared it.
            rows: of its batch.
            seconds: that it took.
        """
        name = self._known_network(network)
        pictures = str(calls) if calls <= _MOST_CALLS else f"more than {_MOST_CALLS}"
        self._network_runs.labels(name, pictures).inc()
        self._network_seconds.labels(name, pictures).inc(max(seconds, 0.0))
        self._network_rows.labels(name).inc(rows)

    def queue(self, waiting: int, running: int) -> None:
        """Notes how many pictures wait, and how many are being made."""
        self._waiting.set(waiting)
        self._running.set(running)

    def worker_restarted(self) -> None:
        """Counts a worker that was started in place of one that ended."""
        self._restarts.inc()

    def exposition(self) -> tuple[bytes, str]:
        """Everything, as Prometheus reads it, and its content type."""
        return generate_latest(self._shown), CONTENT_TYPE_LATEST

    def _known_network(self, name: str) -> str:
        if name not in self._networks and len(self._networks) < _MOST_NETWORKS:
            self._networks.add(name)
        return name if name in self._networks else OTHER


def _known_route(route: str) -> str:
    template = _CONVERTER.sub("", route)
    if template in ROUTES:
        return template
    return "/{file}" if _FILE.fullmatch(template) else OTHER


class _WithoutCreated(Collector):
    """All of a registry but the times at which its counters were made: as many series again, which nobody reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _Read(Collector):
    """What is read when it is asked for: the memory of the worker, and the lines of the log that were lost."""

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("safelight_log_lines_lost", "Lines that the log could not take.", value=logs.lost())
        if (resident := _children_memory()) is not None:
            yield GaugeMetricFamily(
                "safelight_worker_resident_memory_bytes",
                "Resident memory of the processes that this one started.",
                value=resident,
            )


def _children_memory() -> int | None:
    """Resident bytes of this process's children; None where the system does not say."""
    total = 0
    try:
        for task in os.listdir(_PROC / "self" / "task"):  # noqa: PTH208  # names are enough
            for child in (_PROC / "self" / "task" / task / "children").read_text().split():
                total += _resident(child)
    except OSError:
        return None
    return total


def _resident(pid: str) -> int:
    try:
        return int((_PROC / pid / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # it has ended meanwhile
        return 0
