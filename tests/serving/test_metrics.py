"""What the server counts, read as Prometheus reads it."""

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from safelight.runtime.serving import logs, metrics
from safelight.runtime.serving.metrics import OUTCOMES, ROUTES, Metrics


def families(counted: Metrics) -> dict[str, Any]:
    content, _ = counted.exposition()
    return {family.name: family for family in text_string_to_metric_families(content.decode())}


def value(counted: Metrics, name: str, **labels: str) -> float | None:
    """A sample's value; None where it is not there."""
    found = [
        sample.value
        for family in families(counted).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) <= 1, f"{name} {labels} is there {len(found)} times"
    return found[0] if found else None


@pytest.fixture
def counted() -> Metrics:
    return Metrics()


def test_answers_are_counted_by_route_and_status(counted: Metrics) -> None:
    for status in (200, 200, 429):
        counted.request_finished("/v1/images/generations", status, 0.2)
    counted.request_finished("/v1/models", 200, 0.001)
    total = "safelight_http_requests_total"
    assert value(counted, total, route="/v1/images/generations", status="200") == 2
    assert value(counted, total, route="/v1/images/generations", status="429") == 1
    assert value(counted, total, route="/v1/models", status="200") == 1
    name = "safelight_http_request_duration_seconds"
    assert value(counted, f"{name}_count", route="/v1/images/generations") == 3
    assert value(counted, f"{name}_sum", route="/v1/images/generations") == pytest.approx(0.6)
    assert value(counted, f"{name}_bucket", route="/v1/images/generations", le="0.1") == 0
    assert value(counted, f"{name}_bucket", route="/v1/images/generations", le="0.25") == 3


def test_a_router_s_own_way_to_write_a_route(counted: Metrics) -> None:
    counted.request_finished("/v1/models/{id:path}", 200, 0.001)
    assert value(counted, "safelight_http_requests_total", route="/v1/models/{id}", status="200") == 1


def test_the_page_s_files_are_one_route(counted: Metrics) -> None:
    for path in ("/app.js", "/style.css", "/openapi.json"):
        counted.request_finished(path, 200, 0.001)
    assert value(counted, "safelight_http_requests_total", route="/{file}", status="200") == 2
    assert value(counted, "safelight_http_requests_total", route="/openapi.json", status="200") == 1


def test_a_client_that_left_has_no_status(counted: Metrics) -> None:
    counted.request_finished("/v1/images/edits", 0, 1.0)
    assert value(counted, "safelight_http_requests_total", route="/v1/images/edits", status="none") == 1


def test_no_client_can_make_labels(counted: Metrics) -> None:
    """Thousands of paths, stages and networks are as many series as one of each that is not known."""
    counted.request_finished("/nothing", 404, 0.1)
    counted.stage_seconds("nothing", 0.1)
    for number in range(100):
        counted.network_ran(f"network-{number}", number + 1, 1, 0.1)
    before = len(counted.exposition()[0].splitlines())
    for number in range(2000):
        counted.request_finished(f"/nothing/{number}?key=secret\n", 404, 0.1)
        counted.stage_seconds(f"stage-{number}", 0.1)
        counted.network_ran(f"network-{number}", number + 1, 1, 0.1)
    assert len(counted.exposition()[0].splitlines()) <= before + 20 * 3
    assert b"secret" not in counted.exposition()[0]
    assert value(counted, "safelight_http_requests_total", route="other", status="404") == 2001


def test_every_route_is_counted_under_its_own_name(counted: Metrics) -> None:
    for route in ROUTES:
        counted.request_finished(route, 200, 0.1)
        assert value(counted, "safelight_http_requests_total", route=route, status="200") == 1


def test_pictures_are_there_before_the_first_one(counted: Metrics) -> None:
    """A counter that appears with its first event hides it: `rate()` needs the 0."""
    for outcome in OUTCOMES:
        assert value(counted, "safelight_pictures_total", outcome=outcome) == 0
        counted.picture_finished(outcome)
        assert value(counted, "safelight_pictures_total", outcome=outcome) == 1
    with pytest.raises(ValueError, match="lost"):
        counted.picture_finished("lost")


def test_networks_by_the_pictures_that_shared_a_run(counted: Metrics) -> None:
    counted.network_ran("unet", 3, 6, 0.25)
    counted.network_ran("unet", 3, 6, 0.25)
    counted.network_ran("unet", 17, 34, 1.0)
    assert value(counted, "safelight_network_runs_total", network="unet", pictures="3") == 2
    assert value(counted, "safelight_network_run_seconds_total", network="unet", pictures="3") == 0.5
    assert value(counted, "safelight_network_runs_total", network="unet", pictures="more than 16") == 1
    assert value(counted, "safelight_network_rows_total", network="unet") == 46


def test_stages_queue_and_restarts(counted: Metrics) -> None:
    counted.stage_seconds("denoise", 0.5)
    counted.stage_seconds("denoise", -1e-9)  # clocks
    counted.queue(5, 2)
    counted.worker_restarted()
    assert value(counted, "safelight_stage_duration_seconds_count", stage="denoise") == 2
    assert value(counted, "safelight_stage_duration_seconds_sum", stage="denoise") == 0.5
    assert value(counted, "safelight_pictures_waiting") == 5
    assert value(counted, "safelight_pictures_running") == 2
    assert value(counted, "safelight_worker_restarts_total") == 1
    counted.queue(0, 0)
    assert value(counted, "safelight_pictures_waiting") == 0


def test_names_and_units(counted: Metrics) -> None:
    """What is exposed has our prefix; counters end in _total, times are seconds and memory is bytes."""
    content, kind = counted.exposition()
    assert kind.startswith("text/plain; version=")
    for family in families(counted).values():
        assert re.fullmatch(r"safelight_[a-z0-9_]+", family.name)
        assert not re.search(r"milli|_ms\b|kilo|mega|percent", family.name)
        assert family.documentation
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
    assert content.endswith(b"\n")
    assert b"_created" not in content


def test_memory_and_versions(counted: Metrics) -> None:
    memory = value(counted, "safelight_process_resident_memory_bytes")
    assert memory is not None
    assert 10 * 2**20 < memory < 100 * 2**30
    assert value(counted, "safelight_worker_resident_memory_bytes") is not None
    (build,) = families(counted)["safelight_build_info"].samples
    assert build.labels.keys() == {"version", "python"}
    assert build.value == 1


def test_the_memory_of_what_this_process_started(
    counted: Metrics, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    task = tmp_path / "self" / "task"
    for thread, children in (("1", "7 8"), ("2", "9")):
        (task / thread).mkdir(parents=True)
        (task / thread / "children").write_text(children)
    for pid, pages in (("7", 100), ("8", 10)):  # 9 has ended meanwhile
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "statm").write_text(f"1 {pages} 1 1 1 1 1")
    monkeypatch.setattr(metrics, "_PROC", tmp_path)
    monkeypatch.setattr(metrics.os, "sysconf", {"SC_PAGE_SIZE": 1000}.__getitem__)
    assert value(counted, "safelight_worker_resident_memory_bytes") == 110_000
    monkeypatch.setattr(metrics, "_PROC", tmp_path / "elsewhere")
    assert value(counted, "safelight_worker_resident_memory_bytes") is None


def test_lines_that_the_log_lost(counted: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "lost", lambda: 7)
    assert value(counted, "safelight_log_lines_lost_total") == 7


def test_two_servers_of_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.worker_restarted()
    assert value(one, "safelight_worker_restarts_total") == 1
    assert value(other, "safelight_worker_restarts_total") == 0
