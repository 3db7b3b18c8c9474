"""Connections that take their time or too many places, over bare sockets: they are cut off, and others are served."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.service.memory import resident_bytes
from tests.service.raw import BODY, JSON, LENGTH, Response, answers, connect, exchange, head, read
from tests.service.running import Service, file_of, good_request, until

SECONDS = 1.0  # that a head or a body may take
KEEP_ALIVE_SECONDS = 3.0
KEPT = f"POST /generation/ HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n{LENGTH}\r\n\r\n".encode() + BODY
ESTABLISHED, CLOSE_WAIT = "01", "08"  # <net/tcp_states.h>
CONNECTIONS = 80  # so one address may have 40: all of them can be opened long before the first is cut off


@pytest.fixture(scope="module")
def limited() -> Iterator[Service]:
    """An echo with little patience."""
    seconds = {f"SERVER__{name}_SECONDS": SECONDS for name in ("HEADER", "BODY")}
    seconds["SERVER__KEEP_ALIVE_SECONDS"] = KEEP_ALIVE_SECONDS
    limits = {"SERVER__MAX_HEADER_BYTES": 8192, "SERVER__MAX_CONNECTIONS": CONNECTIONS, "WORKERS__CPU_WORKERS": 1}
    with Service("echo", **seconds, **limits, ENGINE__ECHO__REENCODE="false") as service:
        yield service.wait_until_ready()


def trickle(connection: socket.socket, data: bytes) -> list[Response]:
    """Send a byte at a time, more often than any limit, until the service closes; its answers."""
    connection.settimeout(0.2)
    for byte in range(len(data)):
        with suppress(TimeoutError):
            return answers(connection.recv(2**16) + read(connection))
        connection.sendall(data[byte : byte + 1])
    raise AssertionError("all of it was taken")


@pytest.mark.parametrize(
    ("begin", "slow", "status"),
    [
        (b"", head(LENGTH), 408),
        (head("X-Slow: yes")[:-2], b"X-More: and more\r\n" * 10, 408),
        (head(LENGTH), BODY, 408),
        (head("Transfer-Encoding: chunked"), b"1\r\n \r\n" * 100, 408),
    ],
    ids=["a head", "headers", "a body", "chunks"],
)
def test_slow_bodies_are_cut_off(limited: Service, begin: bytes, slow: bytes, status: int) -> None:
    with connect(limited) as connection:
        connection.sendall(begin)
        (answer,) = trickle(connection, slow)
    assert (answer.status, answer.problem, answer.headers["connection"]) == (status, "request-timeout", "close")


def test_empty_lines_keep_no_connection(limited: Service) -> None:
    with connect(limited) as connection, suppress(ConnectionError):
        assert trickle(connection, b"\r\n" * 100) == []


@pytest.mark.parametrize("begin", [b"", KEPT], ids=["at first", "after an answer"])
def test_a_connection_that_never_sends_is_closed(limited: Service, begin: bytes) -> None:
    with connect(limited) as connection:
        connection.sendall(begin)
        assert [answer.status for answer in answers(read(connection))] == [200] * bool(begin)


def test_a_body_that_goes_on_after_its_refusal_is_cut_off(limited: Service) -> None:
    with connect(limited) as connection:
        connection.sendall(head("Content-Type: text/plain", LENGTH).replace(b"Connection: close\r\n", b""))
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(2**16)
        assert answers(received)[0].status == 415
        assert trickle(connection, b" " * 100) == []


def test_a_connection_is_used_again(limited: Service) -> None:
    with connect(limited) as connection:
        for _ in range(3):
            connection.sendall(KEPT)
            received = b""
            while not received.endswith(b'"}'):
                received += connection.recv(2**16)
            assert answers(received)[0].status == 200
            time.sleep(SECONDS / 3)  # in all longer than a head may take


def test_a_head_of_any_length_is_refused_and_not_kept(limited: Service) -> None:
    (answer,) = exchange(limited, head(f"X-Long: {'a' * 8192}", method="GET"))
    assert (answer.status, answer.problem) == (431, "head-too-large")
    before = resident_bytes(limited.process.pid)
    with connect(limited) as connection, suppress(ConnectionError):
        connection.sendall(head()[:-2] + b"X-More: and more\r\n" * 4_000_000)
        raise AssertionError("all of it was taken")
    assert resident_bytes(limited.process.pid) - before < 8 * 2**20


def test_a_good_client_beside_slow_ones_is_served_and_they_are_cut_off(limited: Service) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(limited)) for _ in range(CONNECTIONS // 2 - 2)]
        for connection in slow:
            connection.sendall(head(LENGTH)[:40])
        assert [limited.generate().status_code for _ in range(3)] == [200] * 3
        assert [answers(read(connection))[0].status for connection in slow] == [408] * len(slow)
    until(lambda: open_connections(limited) == 0)


def test_one_address_leaves_half_of_all_connections_to_others(limited: Service) -> None:
    until(lambda: open_connections(limited) == 0)
    with ExitStack() as stack:
        several = [stack.enter_context(connect(limited)) for _ in range(CONNECTIONS // 2 + 5)]
        (answer,) = answers(read(several[-1]))
        assert (answer.status, answer.problem, answer.headers["retry-after"]) == (503, "too-many-connections", "1")
        assert [read(connection) for connection in several[:10]] == [b""] * 10  # they sent nothing in time
    assert limited.generate().status_code == 200


def test_an_answer_that_nobody_reads_is_not_kept(limited: Service) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1200, 1200, 3), np.uint8)  # more than all buffers on the way
    body = json.dumps(good_request(input_image_base64=base64.b64encode(file_of(noise)).decode())).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        address = urlsplit(limited.url)
        connection.connect((address.hostname, address.port))
        connection.sendall(head(f"Content-Length: {len(body)}") + body)
        until(lambda: open_connections(limited) == 1)
        until(lambda: open_connections(limited) == 0)
        assert len(read(connection)) < len(body)  # what the system had taken in


def open_connections(service: Service) -> int:
    """Connections that the service has on its port, apart from that of its own client here."""
    service.client.close()
    service.client = httpx.Client(base_url=service.url, timeout=180)
    port = f":{urlsplit(service.url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] in {ESTABLISHED, CLOSE_WAIT} for row in rows)
