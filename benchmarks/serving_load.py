"""A server under load, on this machine: `python -m safelight.benchmarks.serving_load`.

Many clients ask `safelight serve` at once for pictures that have little in common, more than its queue holds. Every
picture is compared with the one that the pipeline makes alone, every count with the server's own; then the same
requests are measured eight at a time and one at a time, in turns. Results are compared before times, and what is not
as it should be is named, with exit status 1. Linux only.
"""

import argparse
import asyncio
import random
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from safelight.runtime import bundled_model
from safelight.runtime.backends import Array

from .serving_client import Answer, Client
from .serving_requests import GENERATIONS, Alone, Shape, alike, closest, difference, mixed, pictures_of
from .serving_server import Counters, Server, processor_seconds
from .serving_verdict import Verdict

#: of the bundled model
SHAPE = Shape(sizes=((64, 64), (64, 64), (48, 64), (64, 48), (96, 64)), steps=(4, 12))
_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What became of one request."""

    number: int
    answer: Answer  # the one that was no rejection
    rejections: int  # before it
    waited: float  # seconds from the first try to the answer's end
    completed: float  # when, in seconds since the load began


class Load:
    """Asks for pictures, so many at once."""

    def __init__(self, port: int, bodies: Sequence[dict[str, Any]], *, name: str, seed: int = 0) -> None:
        """Describes it.

        Args:
            port: of the server.
            bodies: of the requests.
            name: what the requests' ids begin with.
            seed: of the waits after rejections.
        """
        self._port, self._bodies, self._name = port, bodies, name
        self._chance = random.Random(seed)
        self.rejected: list[Answer] = []

    async def run(self, clients: int) -> list[Answered]:
        """The answers, in the order of the requests.

        Args:
            clients: how many ask at once; each waits for its answer before it asks for the next.
        """
        numbers = iter(range(len(self._bodies)))
        found: list[Answered] = []
        began = perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(numbers, found, began))
        return sorted(found, key=lambda answered: answered.number)

    async def _client(self, numbers: Iterator[int], found: list[Answered], began: float) -> None:
        async with Client(self._port) as client:
            for number in numbers:
                started = perf_counter()
                for attempt in range(10_000):
                    headers = {"x-request-id": f"{self._name}-{number}-{attempt}"}
                    answer = await client.ask_json(GENERATIONS, self._bodies[number], headers=headers)
                    if answer.status != 429:
                        break
                    self.rejected.append(answer)
                    await asyncio.sleep(float(answer.headers.get("retry-after", 1)) * self._chance.uniform(1, 1.25))
                ended = perf_counter()
                found.append(
                    Answered(
                        number=number,
                        answer=answer,
                        rejections=attempt,
                        waited=ended - started,
                        completed=ended - began,
                    )
                )


def check_pictures(
    found: Sequence[Answered],
    bodies: Sequence[dict[str, Any]],
    alone: Sequence[Sequence[Array]],
    *,
    tolerance: int,
    name: str,
    verdict: Verdict,
) -> dict[str, Any]:
    """Whether each request has its own pictures; how far they are from those that were made alone.

    Args:
        found: the answers.
        bodies: of the requests.
        alone: the pictures of each, made alone.
        tolerance: the largest difference of a value that is none, of 255.
        name: of the load.
        verdict: told of what is wrong.
    """
    verdict.check(
        [answered.number for answered in found] == list(range(len(bodies))),
        f"{name}: {len(found)} answers to {len(bodies)} requests",
    )
    differences = []
    for answered in found:
        answer, who = answered.answer, f"{name}-{answered.number}"
        if answer.status != 200:
            verdict.check(False, f"{who}: status {answer.status}: {answer.body[:200]!r}")
            continue
        own_id = answer.headers.get("x-request-id", "")
        verdict.check(own_id == f"{who}-{answered.rejections}", f"{who}: its answer has the request id {own_id}")
        try:
            largest = difference(pictures_of(answer, bodies[answered.number]), alone[answered.number])
        except (KeyError, ValueError) as error:
            verdict.check(False, f"{who}: {error}")
            continue
        verdict.check(largest <= tolerance, f"{who}: differs from the picture made alone by {largest} of 255")
        differences.append(largest)
    return {
        "answers": len(found),
        "pictures": sum(body.get("n", 1) for body in bodies),
        "equal": differences.count(0),
        "largest_difference": max(differences, default=None),
        "differences": {str(value): count for value, count in sorted(Counter(differences).items())},
        "tolerance": tolerance,
    }


def check_rejections(load: Load, verdict: Verdict) -> None:
    """Whether what was rejected was told when to come again."""
    for answer in load.rejected:
        verdict.check(answer.headers.get("retry-after", "").isdigit(), "a rejection without Retry-After")
        verdict.check(answer.json()["error"]["code"] == "queue_full", f"rejected with {answer.body[:200]!r}")


def check_counts(
    before: Counters, after: Counters, *, requests: int, rejections: int, pictures: int, verdict: Verdict
) -> dict[str, Any]:
    """Whether the server has counted what the clients have."""

    def grown(name: str, **labels: str) -> float:
        return after.sum(name, **labels) - before.sum(name, **labels)

    counts = {
        "answered": grown("safelight_http_requests_total", route=GENERATIONS, status="200"),
        "rejected": grown("safelight_http_requests_total", route=GENERATIONS, status="429"),
        "all": grown("safelight_http_requests_total", route=GENERATIONS),
        "pictures": grown("safelight_pictures_total", outcome="ok"),
        "waiting": after.sum("safelight_pictures_waiting"),
        "running": after.sum("safelight_pictures_running"),
    }
    expected = {
        "answered": requests,
        "rejected": rejections,
        "all": requests + rejections,
        "pictures": pictures,
        "waiting": 0,
        "running": 0,
    }
    for name, value in expected.items():
        verdict.check(counts[name] == value, f"/metrics: {name}: {counts[name]:g}, the clients have {value}")
    return {name: int(value) for name, value in counts.items()}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Of latencies."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {f"p{part}": ordered[min(len(ordered) - 1, len(ordered) * part // 100)] for part in _PERCENTILES}


def where_time_went(before: Counters, after: Counters, seconds: float) -> dict[str, Any]:
    """Seconds by stage, and runs of networks by how many pictures shared them.

    Args:
        before: the load.
        after: it.
        seconds: that it took.
    """
    networks: dict[str, Any] = {}
    for name in sorted(after.by("safelight_network_runs_total", "network")):
        runs, inside = (_grown(before, after, metric, "pictures", network=name) for metric in _NETWORK_METRICS)
        networks[name] = {
            shared: {"runs": int(runs[shared]), "seconds": inside.get(shared, 0.0)}
            for shared in sorted(runs, key=lambda text: (len(text), text))
        }
    inside_all = sum(row["seconds"] for rows in networks.values() for row in rows.values())
    return {
        "seconds": seconds,
        "in_networks": inside_all,
        "in_networks_part": inside_all / seconds,
        "networks": networks,
        "stages": _grown(before, after, "safelight_stage_duration_seconds_sum", "stage"),
        "pictures": after.sum("safelight_pictures_total", outcome="ok")
        - before.sum("safelight_pictures_total", outcome="ok"),
    }


_NETWORK_METRICS = ("safelight_network_runs_total", "safelight_network_run_seconds_total")


def _grown(before: Counters, after: Counters, name: str, label: str, **labels: str) -> dict[str, float]:
    old = before.by(name, label, **labels)
    grown = {value: count - old.get(value, 0.0) for value, count in after.by(name, label, **labels).items()}
    return {value: count for value, count in grown.items() if count}


class Measured:
    """A stretch of time of a server: what it counted, and the processors' time of who took part."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __aenter__(self) -> "Measured":
        self.before = await counters(self._server.port)
        self._processors = self._processor_seconds()
        self._began = perf_counter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.seconds = perf_counter() - self._began
        ended = self._processor_seconds()
        self.processors = {name: ended[name] - seconds for name, seconds in self._processors.items()}
        self.after = await settled(self._server.port)

    def profile(self) -> dict[str, Any]:
        """Where the time went."""
        return {
            **where_time_went(self.before, self.after, self.seconds),
            "processor_seconds": self.processors,
        }

    def _processor_seconds(self) -> dict[str, float]:
        worker = self._server.worker
        seconds = {"clients": sum(_own_times())}
        return seconds | {
            "server": processor_seconds(self._server.pid),
            "worker": processor_seconds(worker) if worker is not None else 0.0,
        }


def _own_times() -> tuple[float, float]:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


async def counters(port: int) -> Counters:
    """What a server has counted."""
    async with Client(port) as client:
        return Counters((await client.ask("GET", "/metrics")).body.decode())


async def settled(port: int) -> Counters:
    """What a server has counted once that does not change: an answer is counted after its client has it."""
    before = await counters(port)
    for _ in range(50):
        await asyncio.sleep(0.05)
        after = await counters(port)
        names = ("safelight_pictures_waiting", "safelight_pictures_running")
        if not any(after.sum(name) for name in names) and _answers(before) == _answers(after):
            break
        before = after
    return after


def _answers(counters: Counters) -> float:
    return counters.sum("safelight_http_requests_total", route=GENERATIONS)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    requests: int
    clients: int
    in_flight: int
    rounds: int
    round_requests: int
    tolerance: int
    least_ratio: float
    seed: int


async def measure(server: Server, plan: Plan, alone: Alone, verdict: Verdict) -> dict[str, Any]:
    """All of it; what is wrong is in the verdict."""
    bodies = mixed(plan.requests, SHAPE, seed=plan.seed)
    sets = {
        "alike": alike(plan.round_requests, SHAPE, seed=plan.seed + 1),
        "mixed": [{**body, "n": 1, "stream": False} for body in mixed(plan.round_requests, SHAPE, seed=plan.seed + 2)],
    }
    for body in sets["mixed"]:
        for name in ("stream", "partial_images", "progress"):
            body.pop(name, None)
    print(f"making {plan.requests} requests' pictures alone ...", file=sys.stderr)
    made = [alone.pictures(body) for body in bodies]
    distance = closest([picture for pictures in made for picture in pictures])
    verdict.check(distance > plan.tolerance, f"two different requests' pictures differ by {distance:.2f} of 255 only")
    made_sets = {name: [alone.pictures(body) for body in each] for name, each in sets.items()}

    print(f"{plan.requests} requests, {plan.clients} clients ...", file=sys.stderr)
    load = Load(server.port, bodies, name="load", seed=plan.seed)
    async with Measured(server) as measured:
        found = await load.run(plan.clients)
    result: dict[str, Any] = {
        "pictures": check_pictures(found, bodies, made, tolerance=plan.tolerance, name="load", verdict=verdict)
        | {"closest_two_alone": distance}
    }
    check_rejections(load, verdict)
    verdict.check(bool(load.rejected) or plan.clients <= 1, "nothing was rejected: the queue holds every client's")
    result["counts"] = check_counts(
        measured.before,
        measured.after,
        requests=plan.requests,
        rejections=len(load.rejected),
        pictures=sum(body["n"] for body in bodies),
        verdict=verdict,
    )
    result["latency_seconds"] = {
        "accepted": percentiles([answered.answer.seconds for answered in found]),
        "with_rejections": percentiles([answered.waited for answered in found]),
    }
    result["rejections"] = len(load.rejected)
    result["pictures_per_second"] = measured.profile()["pictures"] / measured.seconds
    result["profile"] = measured.profile()
    result["rounds"] = {
        name: await compare(server, each, made_sets[name], plan, name, verdict) for name, each in sets.items()
    }
    return result


async def compare(
    server: Server,
    bodies: Sequence[dict[str, Any]],
    alone: Sequence[Sequence[Array]],
    plan: Plan,
    name: str,
    verdict: Verdict,
) -> dict[str, Any]:
    """The same requests several at a time and one at a time, in turns."""
    print(f"{len(bodies)} requests, {name}: {plan.in_flight} in flight, and one at a time ...", file=sys.stderr)
    rates: dict[int, list[float]] = {plan.in_flight: [], 1: []}
    profiles: dict[int, dict[str, Any]] = {}
    latencies: dict[int, list[float]] = {plan.in_flight: [], 1: []}
    most = 0
    for number in range(plan.rounds + 1):  # the first warms up
        for clients in (plan.in_flight, 1):
            load = Load(server.port, bodies, name=f"{name}-{number}-{clients}")
            async with Measured(server) as measured:
                found = await load.run(clients)
            checked = check_pictures(
                found, bodies, alone, tolerance=plan.tolerance, name=f"{name}-{number}-{clients}", verdict=verdict
            )
            most = max(most, checked["largest_difference"] or 0)
            if number:
                rates[clients].append(len(bodies) / measured.seconds)
                latencies[clients] += [answered.answer.seconds for answered in found]
                profiles[clients] = measured.profile()
    together, single = (statistics.median(rates[clients]) for clients in (plan.in_flight, 1))
    ratio = together / single
    if name == "alike":
        verdict.check(
            ratio >= plan.least_ratio,
            f"{plan.in_flight} at a time give {ratio:.2f} times the pictures of one, not {plan.least_ratio:g}",
        )
    return {
        "pictures_per_second": {str(clients): values for clients, values in rates.items()},
        "ratio": ratio,
        "latency_seconds": {str(clients): percentiles(values) for clients, values in latencies.items()},
        "largest_difference": most,
        "profile": {str(clients): found for clients, found in profiles.items()},
    }


def report(result: dict[str, Any]) -> str:
    """The numbers that a reader wants first."""
    pictures, counts, latency = result["pictures"], result["counts"], result["latency_seconds"]
    lines = [
        f"{pictures['answers']} requests answered, {result['rejections']} times rejected; {counts['pictures']} "
        f"pictures, {pictures['equal']} answers equal to those made alone, largest difference"
        f" {pictures['largest_difference']} of 255 (the two most alike of different requests: "
        f"{pictures['closest_two_alone']:.1f})",
        f"{result['pictures_per_second']:.1f} pictures/s; latency of what was accepted "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in latency["accepted"].items()),
        "",
        "| requests | in flight | pictures/s | p50, s | p99, s | in networks | server, worker, clients: processor s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in result["rounds"].items():
        for clients, rates in found["pictures_per_second"].items():
            profile, own = found["profile"][clients], found["latency_seconds"][clients]
            used = profile["processor_seconds"]
            lines.append(
                f"| {name} | {clients} | {statistics.median(rates):.1f} ({min(rates):.1f}-{max(rates):.1f}) "
                f"| {own['p50']:.3f} | {own['p99']:.3f} | {profile['in_networks_part']:.0%} "
                f"| {used['server']:.1f}, {used['worker']:.1f}, {used['clients']:.1f} |"
            )
        lines.append(f"| {name} | ratio | {found['ratio']:.2f} | | | | |")
    profile = result["profile"]
    lines += ["", "Under load, runs of each network by the pictures that shared them:", ""]
    for name, rows in profile["networks"].items():
        runs = ", ".join(f"{shared}: {row['runs']} ({row['seconds']:.1f} s)" for shared, row in rows.items())
        lines.append(f"* {name}: {runs}")
    stages = ", ".join(f"{name} {seconds / profile['pictures']:.3f}" for name, seconds in profile["stages"].items())
    lines.append(f"* seconds of a picture in each stage: {stages}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes the JSON; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description="A server under load.")
    parser.add_argument("--requests", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="that ask at once (default: %(default)s)")
    parser.add_argument("--max-queue", type=int, default=24, help="of the server (default: %(default)s)")
    parser.add_argument("--max-batch", type=int, default=8, help="of the server (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=8, help="beside one at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each, in turns (default: %(default)s)")
    parser.add_argument("--round-requests", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--tolerance", type=int, default=1, help="of 255, of any value (default: %(default)s)")
    parser.add_argument("--least-ratio", type=float, default=1.5, help="of pictures per second (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--backend", default="onnxruntime", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    arguments = parser.parse_args(argv)
    plan = Plan(**{name: getattr(arguments, name) for name in Plan.__dataclass_fields__})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends, too
    verdict = Verdict()
    alone = Alone(bundled_model(), backend=arguments.backend)
    options = ["--backend", arguments.backend]
    options += ["--max-queue", str(arguments.max_queue), "--max-batch", str(arguments.max_batch)]
    with tempfile.TemporaryDirectory() as folder, Server(options, log=Path(folder) / "server.log") as server:
        result = asyncio.run(measure(server, plan, alone, verdict))
        result["server_errors"] = server.errors()
        verdict.check(not result["server_errors"], f"the server's log has {len(result['server_errors'])} errors")
    print(report(result))
    own = asdict(plan) | {"max_queue": arguments.max_queue, "max_batch": arguments.max_batch}
    return verdict.concluded(arguments.json, backend=arguments.backend, plan=own, result=result)


if __name__ == "__main__":
    sys.exit(main())
