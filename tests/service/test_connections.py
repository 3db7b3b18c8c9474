"""Valid and invalid HTTP over bare sockets: lengths that lie, chunks, pipelines, floods, clients that leave."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.service.memory import resident_bytes
from tests.service.raw import BODY, LENGTH, answers, chunked, connect, exchange, head, read
from tests.service.running import Service, good_request, until

CHUNKED = "Transfer-Encoding: chunked"
KEPT = (
    b"POST /generation/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + LENGTH.encode() + b"\r\n"
)
FLOOD = 50 * 2**20  # bytes of a head, a trailer or a pipeline that has no end
KEPT_OF_A_FLOOD = 8 * 2**20  # a head's limit and a read are 0.3 MiB; the rest is what the interpreter does by the way


GOOD = {
    "a body of a known length": head(LENGTH) + BODY,
    "chunks": head(CHUNKED) + chunked(BODY),
    "chunks of a byte": head(CHUNKED) + chunked(BODY, 1),
    "chunks with extensions and a trailer": head(CHUNKED)
    + b"%x;a=b\r\n%b\r\n0\r\nX-Checksum: 1\r\n\r\n" % (len(BODY), BODY),
    "HTTP/1.0": head(LENGTH, version="1.0") + BODY,
    "the whole address": head(LENGTH, path="http://x/generation/") + BODY,
    "an expectation that is not known": head(LENGTH, "Expect: 200-maybe") + BODY,
    "an offer of HTTP/2, as Java makes it": head(LENGTH, "Upgrade: h2c", "HTTP2-Settings: AAM").replace(
        b"Connection: close", b"Connection: close, Upgrade, HTTP2-Settings"
    )
    + BODY,
    "an offer of a websocket, in chunks": head(CHUNKED, "Upgrade: websocket").replace(
        b"Connection: close", b"Connection: close, Upgrade"
    )
    + chunked(BODY),
    "a deadline of 5,000 digits": head(LENGTH, f"Prefer: wait={'9' * 5000}") + BODY,
    "a deadline in no digits of ours": head(LENGTH, "Prefer: wait=\xb2") + BODY,
    "a head just within its limit": head(LENGTH, f"X-Long: {'a' * 65_000}") + BODY,
}


@pytest.mark.parametrize("sent", GOOD.values(), ids=GOOD.keys())
def test_unusual_but_valid_http_gets_its_image(echo: Service, sent: bytes) -> None:
    (answer,) = exchange(echo, sent)
    assert (answer.status, json.loads(answer.body)["request_id"]) == (200, 7), answer


BROKEN = {
    "a length that is negative": head("Content-Length: -5") + BODY,
    "a length with a sign": head(f"Content-Length: +{len(BODY)}") + BODY,
    "a length in words": head("Content-Length: many") + BODY,
    "a length of nothing": head("Content-Length: ") + BODY,
    "a length over 64 bits": head(f"Content-Length: {2**64 + len(BODY)}") + BODY,
    "a length twice": head(LENGTH, LENGTH) + BODY,
    "two lengths": head(LENGTH, "Content-Length: 5") + BODY,
    "a list of lengths": head(f"Content-Length: {len(BODY)}, {len(BODY)}") + BODY,
    "a length and chunks": head(LENGTH, CHUNKED) + chunked(BODY),
    "chunks and a length": head(CHUNKED, LENGTH) + chunked(BODY),
    "a coding that does not end in chunks": head("Transfer-Encoding: gzip") + chunked(BODY),
    "chunks in chunks": head("Transfer-Encoding: chunked, chunked") + chunked(BODY),
    "a chunk of a wrong size": head(CHUNKED) + b"5\r\n" + BODY,
    "a chunk of a negative size": head(CHUNKED) + b"-5\r\n" + BODY,
    "a chunk of over 64 bits": head(CHUNKED) + b"f" * 17 + b"\r\n" + BODY,
    "a chunk without a size": head(CHUNKED) + b"\r\n" + BODY,
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "an unknown method": head(method="PAINT"),
    "CONNECT": head(method="CONNECT", path="x:80"),
    "a path with a space": head(path="/a b"),
    "a path that is not ASCII": head(path="/\xe9"),
    "a header without a colon": head("nonsense"),
    "a header with a NUL": head("X-Odd: \0"),
    "a header over two lines": head("X-Odd: a\r\n b"),
    "lines that end in LF alone": head(LENGTH).replace(b"\r\n", b"\n") + BODY,
}


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN.keys())
def test_invalid_http_gets_400_and_closes_the_connection(echo: Service, sent: bytes) -> None:
    answer = exchange(echo, sent)[-1]
    assert (answer.status, answer.problem, answer.headers["connection"]) == (400, "malformed-http", "close")
    assert echo.generate().status_code == 200


def test_a_body_without_a_length_is_no_body(echo: Service) -> None:
    # RFC 9112 6.3: without a length a request has no body; what follows would be the next request.
    (answer,) = exchange(echo, head())
    assert (answer.status, answer.problem) == (400, "malformed-json")
    assert exchange(echo, head() + BODY)[-1].status == 400


def test_a_length_that_is_too_small_cuts_the_body(echo: Service) -> None:
    assert exchange(echo, head("Content-Length: 10") + BODY[:10])[0].problem == "malformed-json"
    assert exchange(echo, head("Content-Length: 10") + BODY)[-1].status == 400


def test_a_length_that_is_too_large_is_waited_for_until_the_client_leaves(echo: Service) -> None:
    abandoned = echo.sample("contour_requests_total", outcome="abandoned")
    assert exchange(echo, head(f"Content-Length: {len(BODY) + 1}") + BODY, leave=True) == []
    assert exchange(echo, head(CHUNKED) + chunked(BODY)[:-5], leave=True) == []
    until(lambda: echo.sample("contour_requests_total", outcome="abandoned") == abandoned + 2)


def test_a_length_over_the_limit_is_refused_before_the_body_comes(echo: Service) -> None:
    for expecting in ((), ("Expect: 100-continue",)):
        (answer,) = exchange(echo, head("Content-Length: 1000000000000", *expecting))
        assert (answer.status, answer.problem) == (413, "too-large")


def test_chunks_over_the_limit_end_the_request_when_they_have_come(echo: Service) -> None:
    refused = echo.sample("contour_requests_total", outcome="too-large")
    (answer,) = exchange(echo, head(CHUNKED) + chunked(b'{"text": "' + bytes(48 * 2**20), 2**20))
    assert (answer.status, answer.problem) == (413, "too-large")
    assert echo.sample("contour_requests_total", outcome="too-large") == refused + 1


def test_a_body_in_tiny_chunks_is_refused(echo: Service) -> None:
    body = BODY[:-1] + b', "filler": "' + b"x" * 40_000 + b'"}'
    (answer,) = exchange(echo, head(CHUNKED) + chunked(body, 1))
    assert (answer.status, answer.problem) == (400, "malformed-http")
    assert exchange(echo, head(CHUNKED) + chunked(body, 64))[0].status == 200


def test_a_coded_body_is_refused(echo: Service) -> None:
    (answer,) = exchange(echo, head(LENGTH, "Content-Encoding: gzip") + BODY)
    assert (answer.status, answer.problem) == (415, "unsupported-media-type")
    assert exchange(echo, head(LENGTH, "Content-Encoding: identity") + BODY)[0].status == 200


def test_a_client_that_expects_to_be_asked_for_its_body_is_asked(echo: Service) -> None:
    with connect(echo) as connection:
        connection.sendall(head(LENGTH, "Expect: 100-continue"))
        assert connection.recv(2**10) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert answers(read(connection))[0].status == 200


def test_pipelined_requests_are_answered_in_their_order(echo: Service) -> None:
    bodies = [json.dumps(good_request(request_id=number)).encode() for number in range(5)]
    sent = b"".join(
        KEPT.replace(LENGTH.encode(), b"Content-Length: %d" % len(body)) + b"\r\n" + body for body in bodies
    )
    *images, health = exchange(echo, sent + head(method="GET", path="/healthz"))
    assert [json.loads(image.body)["request_id"] for image in images] == list(range(5))
    assert json.loads(health.body) == {"status": "ok"}


def test_invalid_http_after_a_request_closes_the_connection(echo: Service) -> None:
    last = exchange(echo, KEPT + b"\r\n" + BODY + b"\0\0\0\0")[-1]
    assert last.problem == "malformed-http"


def test_a_client_that_will_send_no_more_counts_as_gone(echo: Service) -> None:
    # It cannot be told from one that has left. The echo may be quick enough to answer before that is noticed.
    assert exchange(echo, head(LENGTH) + BODY[:-1], leave=True) == []
    assert [answer.status for answer in exchange(echo, head(LENGTH) + BODY, leave=True)] in ([], [200])


def flood(service: Service, begin: bytes, more: bytes) -> None:
    """Send `more` without end, while a thread reads what comes, until the service closes."""
    with connect(service) as connection:
        reader = threading.Thread(target=_drain, args=(connection,))
        reader.start()
        with pytest.raises(ConnectionError):
            _pour(connection, begin, more)
        reader.join()


def _pour(connection: socket.socket, begin: bytes, more: bytes) -> None:
    connection.sendall(begin)
    for _ in range(FLOOD // len(more)):
        connection.sendall(more)


def _drain(connection: socket.socket) -> None:
    with suppress(ConnectionError):
        read(connection)


def floods() -> Iterator[tuple[str, bytes, bytes]]:
    many = b"".join(b"X-%d: a\r\n" % number for number in range(5000))
    yield "headers", head()[:-2], many
    yield "a header", head()[:-2] + b"X-Long: ", b"a" * 2**16
    yield "a path", b"POST /", b"a" * 2**16
    yield "a trailer", head(CHUNKED) + b"1\r\n{\r\n0\r\n", many
    yield "a chunk's extension", head(CHUNKED) + b"1;", b"a" * 2**16
    yield "empty lines", head(LENGTH)[:-2].replace(b"close", b"keep-alive"), b"\r\n" * 2**15
    yield "a pipeline", b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
    yield "a pipeline of bodies", b"", (KEPT + b"\r\n" + BODY) * 100


@pytest.mark.parametrize(("begin", "more"), [case[1:] for case in floods()], ids=[case[0] for case in floods()])
def test_a_flood_ends_its_connection_and_is_not_kept(echo: Service, begin: bytes, more: bytes) -> None:
    before = resident_bytes(echo.process.pid)
    flood(echo, begin, more)
    assert resident_bytes(echo.process.pid) - before < KEPT_OF_A_FLOOD
    assert echo.generate().status_code == 200


@pytest.mark.parametrize("long", [f"X-Long: {'a' * 70_000}", "\r\n".join(["X-Some: aaaa"] * 8000)])
def test_a_head_over_its_limit_is_refused(echo: Service, long: str) -> None:
    (answer,) = exchange(echo, head(long, method="GET"))
    assert (answer.status, answer.problem, answer.headers["connection"]) == (431, "head-too-large", "close")


def test_bodies_that_trickle_disturb_nobody(echo: Service) -> None:
    trickling = [connect(echo) for _ in range(20)]
    for connection in trickling:
        connection.sendall(head(LENGTH) + BODY[:10])
    for at in range(10, 20):
        for connection in trickling:
            connection.sendall(BODY[at : at + 1])
        assert echo.generate().status_code == 200
        time.sleep(0.02)
    for connection in trickling:
        connection.sendall(BODY[20:])
    assert [answers(read(connection))[0].status for connection in trickling] == [200] * 20
    for connection in trickling:
        connection.close()


@pytest.mark.parametrize(
    ("headers", "begin", "status"),
    [
        (("Origin: https://evil.example",), b"{", 403),
        (("Content-Type: text/plain",), b"", 415),
        (("Content-Type: multipart/form-data; boundary=X",), b"nothing of a form", 400),
        (("X-API-Key: any", "Content-Encoding: gzip"), b"", 415),
    ],
    ids=["origin", "type", "form", "coding"],
)
def test_an_answer_before_the_body_has_come_is_not_lost(
    echo: Service, headers: tuple[str, ...], begin: bytes, status: int
) -> None:
    with connect(echo) as connection:
        connection.sendall(head(*headers, f"Content-Length: {8 * 2**20}") + begin)
        for _ in range(63):  # the client reads only when it has sent all that it likes to
            connection.sendall(b" " * 2**17)
            time.sleep(0.002)
        assert [answer.status for answer in answers(read(connection))] == [status]


def test_a_refused_head_is_answered_without_a_body(echo: Service) -> None:
    (answer,) = exchange(echo, head("Content-Length: x", method="HEAD", path="/"))
    assert (answer.status, answer.body) == (400, b"")


def test_unknown_paths_and_methods_are_named_and_counted(echo: Service) -> None:
    for method, path, outcome in (("GET", "/nothing", "not-found"), ("GET", "/generation", "method-not-allowed")):
        before = echo.sample("contour_requests_total", outcome=outcome)
        response = echo.client.request(method, path)
        assert response.json()["type"] == f"urn:contour:problem:{outcome}"
        assert response.headers["X-Request-Id"]
        assert echo.sample("contour_requests_total", outcome=outcome) == before + 1


@pytest.mark.parametrize("host", ["[", "a b", "x:y:z", "\xe9", ""])
def test_an_odd_host_is_refused(echo: Service, host: str) -> None:
    sent = head(method="GET", path="/nothing").replace(b"Host: localhost", b"Host: " + host.encode("latin-1"))
    assert exchange(echo, sent)[0].problem == "unknown-host"


def test_the_requests_above_logged_no_error(echo: Service) -> None:
    assert [worker["restarts"] for worker in echo.readiness()["workers"]] == [0, 0]
    assert "Traceback" not in "".join(echo.log), "".join(echo.log)[-6000:]
