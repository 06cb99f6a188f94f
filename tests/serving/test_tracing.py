"""Spans where OpenTelemetry is set up, and nothing where it is not. That is global: each case has its own process."""

import json
import os
import subprocess
import sys
from typing import Any

#: collects spans in memory, and prints them
SET_UP = """\
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

def show():
    print(json.dumps([
        {
            "name": span.name,
            "id": f"{span.context.span_id:016x}",
            "trace": f"{span.context.trace_id:032x}",
            "parent": span.parent and f"{span.parent.span_id:016x}",
            "attributes": dict(span.attributes),
            "status": span.status.status_code.name,
            "description": span.status.description,
            "events": [str(dict(event.attributes)) for event in span.events],
        }
        for span in exporter.get_finished_spans()
    ]))
"""


def run(code: str, **environment: str) -> Any:
    """What a process prints, as JSON."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    code = f"from safelight.runtime.serving import tracing\n{code}"
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=own | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
    return json.loads(found.stdout)


def test_without_configuration_nothing_is_imported() -> None:
    code = """\
import json, sys
with tracing.span("request", route="/") as span:
    assert span is None
with tracing.joined({"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}):
    pass
print(json.dumps([name for name in sys.modules if name.startswith("opentelemetry")]))
"""
    assert run(code) == []


def test_a_program_s_own_tracing_gets_the_spans() -> None:
    code = f"""{SET_UP}
with tracing.span("request", route="/v1/images/generations", n=2, scheduler=None):
    with tracing.span("denoise", steps=25):
        pass
show()
"""
    assert len(run(code, OTEL_TRACES_EXPORTER="console")) == 2  # and nothing is set up besides
    denoise, request = run(code)
    assert (request["name"], denoise["name"]) == ("request", "denoise")
    assert request["attributes"] == {"route": "/v1/images/generations", "n": 2}
    assert denoise["attributes"] == {"steps": 25}
    assert request["parent"] is None
    assert denoise["parent"] == request["id"]
    assert denoise["trace"] == request["trace"]


def test_a_client_s_trace_goes_on() -> None:
    code = f"""{SET_UP}
with tracing.joined({{"traceparent": "00-{"a" * 32}-{"b" * 16}-01"}}), tracing.span("request"):
    pass
with tracing.span("after"):
    pass
with tracing.joined({{"traceparent": "nonsense"}}), tracing.span("another"):
    pass
show()
"""
    request, after, another = run(code)
    assert (request["trace"], request["parent"]) == ("a" * 32, "b" * 16)
    assert another["parent"] is None
    assert another["trace"] != "a" * 32
    assert after["parent"] is None


def test_a_failure_is_marked_without_what_it_says() -> None:
    code = f"""{SET_UP}
try:
    with tracing.span("request"):
        raise ValueError("a secret")
except ValueError as error:
    assert str(error) == "a secret"
show()
"""
    (span,) = run(code)
    assert span["status"] == "ERROR"
    assert span["attributes"] == {"error.type": "ValueError"}
    assert "secret" not in json.dumps(span)


def test_the_environment_names_an_exporter() -> None:
    """The console's, which comes with the SDK and prints JSON."""
    code = """\
with tracing.span("request", n=1):
    pass
"""
    span = run(code, OTEL_TRACES_EXPORTER="console")
    assert span["name"] == "request"
    assert span["attributes"] == {"n": 1}
    assert span["resource"]["attributes"]["service.name"] == "safelight"
    span = run(code, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="mine")
    assert span["resource"]["attributes"]["service.name"] == "mine"


def test_the_environment_turns_it_off() -> None:
    code = """\
import json, sys
with tracing.span("request"):
    pass
print(json.dumps([name for name in sys.modules if name.startswith("opentelemetry")]))
"""
    assert run(code, OTEL_TRACES_EXPORTER="console", OTEL_SDK_DISABLED="true") == []
    assert run(code, OTEL_TRACES_EXPORTER="none") == []


def test_an_exporter_that_is_not_there_is_said_and_ends_nothing() -> None:
    code = """\
import contextlib, io, json, logging
said = []
logging.getLogger("safelight.runtime.serving.logs").addHandler(
    type("Keeps", (logging.Handler,), {"emit": lambda self, record: said.append(vars(record))})()
)
for _ in range(2):
    with tracing.span("request"):
        pass
print(json.dumps([record["msg"] + ": " + record["safelight_fields"]["reason"] for record in said]))
"""
    (said,) = run(code, OTEL_TRACES_EXPORTER="smoke-signals")
    assert (
        said == "tracing_unavailable: there is no exporter smoke-signals: install opentelemetry-exporter-smoke-signals"
    )
