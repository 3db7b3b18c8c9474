"""Spans of a real service, as a collector of OpenTelemetry's gets them."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from app.tracing import tracing
from tests.service.running import ROOT, Service, good_request, until
from workers.console import command

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["queue", "prepare", "denoise", "decode", "encode"]
MILLISECOND = 1_000_000  # nanoseconds


class Collector:
    """What was sent to it: spans, and the name of the service that they are of."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: list[str] = []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            self.services += names
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def of(self, request: str) -> tuple[Span, list[Span]]:
        """The server's span of a request, and its children."""
        (span,) = [each for each in self.spans if attributes(each).get("contour.request") == request]
        return span, [each for each in self.spans if each.parent_span_id == span.span_id]


def attributes(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield collector, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> Iterator[Service]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__LOG_FORMAT="json") as service:
        yield service.wait_until_ready()


def test_a_requests_spans_have_its_trace_its_stages_and_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as (collector, endpoint), traced(monkeypatch, endpoint) as service:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        response = service.client.post("/generation/", json=good_request(), headers=headers)
        service.stop()  # sends what it has
    span, children = collector.of(response.headers["x-request-id"])
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.name) == (TRACE, PARENT, "POST /generation/")
    assert span.kind == Span.SPAN_KIND_SERVER
    told = attributes(span)
    assert (told["http.request.method"], told["http.response.status_code"]) == ("POST", 200)
    assert (told["http.route"], told["contour.outcome"]) == ("/generation/", "done")
    assert collector.services == ["contour"]

    children.sort(key=lambda child: (child.start_time_unix_nano, STAGES.index(child.name)))
    assert [child.name for child in children] == STAGES
    timing = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    for child in children:
        assert child.trace_id == span.trace_id
        milliseconds = (child.end_time_unix_nano - child.start_time_unix_nano) / MILLISECOND
        assert milliseconds == pytest.approx(float(timing[child.name]), abs=0.02)
        assert attributes(child)["contour.worker"] == "cpu0"
    assert span.start_time_unix_nano <= children[0].start_time_unix_nano
    assert children[-1].end_time_unix_nano <= span.end_time_unix_nano
    (line,) = [line for line in map(json.loads, service.log) if line["logger"] == "contour.request"]
    assert line["trace"] == TRACE


def test_streams_refusals_and_several_images_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as (collector, endpoint), traced(monkeypatch, endpoint) as service:
        stream = {"accept": "text/event-stream"}
        streamed = service.client.post("/generation/", json=good_request(number_of_images=2), headers=stream)
        wrong = service.generate(text=7)
        nowhere = service.client.get("/nothing", headers={"traceparent": "nonsense"})
        service.stop()
    names = [response.headers["x-request-id"] for response in (streamed, wrong, nowhere)]
    (first, stages), (second, none), (third, _) = (collector.of(name) for name in names)
    assert sorted(child.name for child in stages) == sorted(2 * STAGES)
    assert (attributes(second)["contour.outcome"], none) == ("invalid-field", [])
    assert (third.name, "http.route" in attributes(third)) == ("GET", False)
    assert len({first.trace_id, second.trace_id, third.trace_id}) == 3
    assert all(span.status.code == Status.STATUS_CODE_UNSET for span in (first, second, third))


def test_a_collector_that_is_not_there_costs_a_warning_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with traced(monkeypatch, "http://127.0.0.1:1") as service:
        for _ in range(5):
            assert service.generate().status_code == 200
        until(lambda: any("opentelemetry" in line for line in service.log))
        assert service.stop() == 0
    assert sum(json.loads(line)["logger"].startswith("opentelemetry") for line in service.log) <= 2


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin', but must be otlp or none"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'grpc'; set .* to http/protobuf"),
    ],
)
def test_unsupported_options_are_refused_with_the_reason(variables: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tracing(variables)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(variables: dict[str, str]) -> None:
    assert tracing(variables) is None


def test_the_packages_are_not_imported_unless_they_are_used() -> None:
    script = "import sys, app.application; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_a_missing_package_is_named_with_what_to_do() -> None:
    script = (
        "import sys; sys.modules['opentelemetry.exporter'] = None; from app.tracing import tracing\n"
        "tracing({'OTEL_TRACES_EXPORTER': 'otlp'})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True)
    assert "is missing; run " + command("-m", "pip", "install", ".[otel]") in done.stderr
