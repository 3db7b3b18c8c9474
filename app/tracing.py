"""Spans for OpenTelemetry, if its packages are installed and its variables name a collector.

A request's spans are made when it has been answered, with their real times: only then the worker has reported how long
its stages took, and it needs to know nothing of tracing.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from app.generator import GeneratedImage
from workers.console import command

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from app.lifecycle import RequestRecord

log = logging.getLogger("contour.tracing")

# The variables are OpenTelemetry's own (its specification, "OpenTelemetry Environment Variable Specification").
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"
SERVICE = "contour"
CLOSE_SECONDS = 5.0  # to send the remaining spans
WARNING_SECONDS = 60.0  # between two warnings that a collector cannot be reached
SERVER_ERROR = 500


def tracing(environ: Mapping[str, str]) -> "Tracing | None":
    """The tracing that the environment asks for, if any. Raises ValueError with advice where that is not possible."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "otlp" if any(environ.get(name) for name in ENDPOINTS) else "none")
    if exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if exporter != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {exporter!r}, but must be otlp or none")
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), HTTP)
    if protocol != HTTP:
        raise ValueError(f"traces cannot be sent by {protocol!r}; set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL to {HTTP}")
    try:
        return Tracing(_provider(environ))
    except ImportError as error:
        install = command("-m", "pip", "install", ".[otel]")
        raise ValueError(
            f"the OTEL_ variables ask for traces, but the package {error.name} is missing; run {install}"
        ) from None


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
    """Passes one message of a library a minute: a collector that is down would fill the log."""

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


class Tracing:
    """Records the spans of requests."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("contour")

    def record(self, record: "RequestRecord", headers: Mapping[str, str]) -> str:
        """Record the spans of a request that has just been answered. Returns the id of its trace.

        `headers` are the request's, by their names in lower case.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id, set_span_in_context

        now = time.time_ns() - time.perf_counter_ns()  # offset between the two clocks
        span = self._tracer.start_span(
            f"{record.method} {record.path}" if record.routed else record.method,
            context=extract(headers),
            kind=SpanKind.SERVER,
            attributes=_attributes(record, headers),
            start_time=now + _ns(record.began),
        )
        if record.status >= SERVER_ERROR:
            span.set_status(Status(StatusCode.ERROR, record.outcome))
        within = set_span_in_context(span)
        for number, image in enumerate(record.images):
            for stage, (begin, end) in _times(image).items():
                attributes: dict[str, Any] = {"contour.image": number, "contour.worker": image.worker}
                child = self._tracer.start_span(stage, within, attributes=attributes, start_time=now + _ns(begin))
                child.end(now + _ns(end))
        span.end(now + _ns(record.began + record.seconds))
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send the remaining spans, for a few seconds at most."""
        # In a thread of its own: waiting for a collector that does not answer cannot be cancelled.
        closing = threading.Thread(target=self._shut_down, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _shut_down(self) -> None:
        with suppress(RuntimeError):  # the interpreter may end meanwhile
            self._provider.shutdown()


def _attributes(record: "RequestRecord", headers: Mapping[str, str]) -> dict[str, Any]:
    """OpenTelemetry's semantic conventions for HTTP servers, and our own."""
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "url.path": record.path,
        "url.scheme": "http",
        "http.response.status_code": record.status,
        "contour.request": record.request,
        "contour.outcome": record.outcome,
    }
    if record.routed:
        attributes["http.route"] = record.path
    if record.client:
        attributes["contour.client"] = record.client
    if (agent := headers.get("user-agent")) is not None:
        attributes["user_agent.original"] = agent
    if record.status >= SERVER_ERROR:
        attributes["error.type"] = record.outcome
    return attributes


def _times(image: GeneratedImage) -> dict[str, tuple[float, float]]:
    """When each stage began and ended: the first two count from the submission, the others back from the end.

    In between, the image waited for the next step of the batch that it joined.
    """
    stages, times = image.stages, {}
    at = image.submitted
    for stage in ("queue", "prepare"):
        times[stage] = at, (at := at + stages[stage])
    at = image.finished
    for stage in ("encode", "decode", "denoise"):
        times[stage] = at - stages[stage], at
        at -= stages[stage]
    return times


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
