"""Spans for OpenTelemetry: where its packages are installed and its variables name a collector, and nothing otherwise.

A request's spans are made when it is answered, with the times that they had: only then has the worker told how long its
stages took, and it needs to know nothing of tracing.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from app.making import Picture
from app.records import Line
from workers.console import command

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger("contour.tracing")

# The variables are OpenTelemetry's own (its specification, "OpenTelemetry Environment Variable Specification").
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"
SERVICE = "contour"
CLOSE_SECONDS = 5.0  # given to what has not been sent
WARNING_SECONDS = 60.0  # between two warnings that a collector cannot be reached
SERVER_ERROR = 500


class Tracing:
    """Traces nothing: what a service has that is not asked for spans."""

    def record(self, line: Line, headers: Mapping[str, str]) -> str:
        """Make the spans of a request that has just been answered; the id of its trace, empty if there is none.

        `headers` are those it came with, by their names in lower case.
        """
        return ""

    def close(self) -> None:
        """Send what has not been sent, for a few seconds at most."""


def tracing(environ: Mapping[str, str]) -> Tracing:
    """What the environment asks for. Raises ValueError where that cannot be had, with what to do."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "otlp" if any(environ.get(name) for name in ENDPOINTS) else "none")
    if exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracing()
    if exporter != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {exporter!r}, but must be otlp or none")
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), HTTP)
    if protocol != HTTP:
        raise ValueError(f"the protocol for traces is {protocol!r}; set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL to {HTTP}")
    try:
        return _Spans(_provider(environ))
    except ImportError as error:
        install = command("-m", "pip", "install", ".[otel]")
        raise ValueError(f"the variables ask for traces, but {error.name} is missing: {install}") from None


def _provider(environ: Mapping[str, str]) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    for name in ("opentelemetry.exporter", "opentelemetry.sdk"):
        for handler in logging.getLogger().handlers:
            handler.addFilter(_Seldom(name))
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class _Seldom(logging.Filter):
    """Lets through what a library says once in a while: a collector that is down is no news after that."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self._library = library
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(self._library):
            return True
        if record.created < self._next:
            return False
        self._next = record.created + WARNING_SECONDS
        return True


class _Spans(Tracing):
    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("contour")

    def record(self, line: Line, headers: Mapping[str, str]) -> str:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context

        now = time.time_ns() - time.perf_counter_ns()  # what is to be added to times of the other clock
        span = self._tracer.start_span(
            f"{line.method} {line.path}" if line.routed else line.method,
            context=extract(headers),
            kind=SpanKind.SERVER,
            attributes=_attributes(line, headers),
            start_time=now + _ns(line.began),
        )
        if line.status >= SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR, line.outcome))
        within = set_span_in_context(span)
        for number, picture in enumerate(line.pictures):
            for stage, (begin, end) in _times(picture).items():
                attributes: dict[str, Any] = {"contour.image": number, "contour.worker": picture.worker}
                child = self._tracer.start_span(stage, within, attributes=attributes, start_time=now + _ns(begin))
                child.end(now + _ns(end))
        span.end(now + _ns(line.began + line.seconds))
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        # Beside: a collector that does not answer is waited for, and no thread can be told to stop that.
        closing = threading.Thread(target=self._shut_down, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _shut_down(self) -> None:
        with suppress(RuntimeError):  # the interpreter may end meanwhile
            self._provider.shutdown()


def _attributes(line: Line, headers: Mapping[str, str]) -> dict[str, Any]:
    """OpenTelemetry's semantic conventions for HTTP servers, and our own."""
    attributes: dict[str, Any] = {
        "http.request.method": line.method,
        "url.path": line.path,
        "url.scheme": "http",
        "http.response.status_code": line.status,
        "contour.request": line.request,
        "contour.outcome": line.outcome,
    }
    if line.routed:
        attributes["http.route"] = line.path
    if line.client:
        attributes["contour.client"] = line.client
    if (agent := headers.get("user-agent")) is not None:
        attributes["user_agent.original"] = agent
    if line.status >= SERVER_ERROR:
        attributes["error.type"] = line.outcome
    return attributes


def _times(picture: Picture) -> dict[str, tuple[float, float]]:
    """When each stage began and ended: the first two count from when the job came, the others back from its end.

    Between them it waited for the next step of the batch that it joined.
    """
    stages, times = picture.stages, {}
    at = picture.submitted
    for stage in ("queue", "prepare"):
        times[stage] = at, (at := at + stages[stage])
    at = picture.finished
    for stage in ("encode", "decode", "denoise"):
        times[stage] = at - stages[stage], at
        at -= stages[stage]
    return times


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
