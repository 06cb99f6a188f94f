"""Spans of OpenTelemetry, for who has it; otherwise nothing, at no cost.

Tracing is on where the environment says where spans go (`OTEL_TRACES_EXPORTER`, or `OTEL_EXPORTER_OTLP_ENDPOINT`) and
`opentelemetry-sdk` and the exporter are installed, or where the program that the server is part of has set it up.
Without either, no module of OpenTelemetry is imported.
"""

import functools
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import entry_points, version
from typing import Any

from . import logs

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def span(name: str, /, **attributes: Any) -> AbstractContextManager[Any]:
    """A span around what is done in it; nothing where there is no tracing.

    Args:
        name: of the operation, such as "denoise"; never of one request.
        attributes: truth values, numbers and strings, never a prompt; None is left out.
    """
    trace = _trace()
    return nullcontext() if trace is None else _span(trace, name, attributes)


def joined(headers: Mapping[str, str]) -> AbstractContextManager[Any]:
    """Makes the spans in it part of the client's trace, where its request tells of one (`traceparent`).

    Args:
        headers: of the request, with names in lower case.
    """
    return nullcontext() if "traceparent" not in headers or _trace() is None else _joined(headers)


@contextmanager
def _span(trace: Any, name: str, attributes: Mapping[str, Any]) -> Iterator[Any]:
    tracer = trace.get_tracer("safelight.runtime.serving", _version())
    known = {key: value for key, value in attributes.items() if value is not None}
    # by itself a span takes down what an exception says, which may quote a prompt
    with tracer.start_as_current_span(
        name, attributes=known, record_exception=False, set_status_on_exception=False
    ) as opened:
        try:
            yield opened
        except Exception as error:
            opened.set_attribute("error.type", type(error).__qualname__)
            opened.set_status(trace.StatusCode.ERROR)
            raise


@functools.cache
def _version() -> str:
    return version("safelight")


@contextmanager
def _joined(headers: Mapping[str, str]) -> Iterator[None]:
    from opentelemetry import context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    token = context.attach(TraceContextTextMapPropagator().extract(headers))
    try:
        yield
    finally:
        context.detach(token)


def _trace() -> Any | None:
    """`opentelemetry.trace`, untyped as nobody needs to have it; None where no spans are wanted."""
    return sys.modules.get("opentelemetry.trace") if _is_wanted() else None


@functools.cache
def _is_wanted() -> bool:
    """Whether spans may be made; sets up what the environment asks for, once in a process."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    default = "otlp" if any(os.environ.get(name) for name in _ENDPOINTS) else "none"
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or default).split(",")]
    exporters = [name for name in names if name not in ("none", "")]
    if exporters:
        try:
            _set_up(exporters)
        except (ImportError, ValueError) as error:
            logs.event("tracing_unavailable", level=logging.WARNING, error=type(error).__name__, reason=str(error))
    return True


def _set_up(exporters: list[str]) -> None:
    """Sends spans to exporters.

    Raises:
        ImportError: a package is missing.
        ValueError: an exporter is not installed.
    """
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return  # the program has its own
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": "safelight"}))
    for name in exporters:
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    trace.set_tracer_provider(provider)


def _exporter(name: str) -> Any:
    """An exporter by the environment's name: one of the entry points that OpenTelemetry's packages have."""
    if name == "otlp":
        is_grpc = next(filter(None, map(os.environ.get, _PROTOCOLS)), "") == "grpc"
        name = "otlp_proto_grpc" if is_grpc else "otlp_proto_http"
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        return found.load()()
    raise ValueError(f"there is no exporter {name}: install opentelemetry-exporter-{name.replace('_', '-')}")
