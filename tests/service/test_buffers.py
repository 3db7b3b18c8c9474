"""All bodies in hand share one budget of bytes: what goes beyond is told to come later, and memory stays within it."""

import json
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.service.memory import peak_bytes, resident_bytes
from tests.service.raw import connect, head, read
from tests.service.running import PATIENCE, Service, good_request, until
from workers.machine import KEPT_BYTES

BUDGET = 128 * 2**20
OWN_BYTES = BUDGET // 4  # of one client: half is left free for others, and a body counts twice, as its image is decoded
BODY_BYTES = 7 * 2**20
# What one connection may hold besides: uvicorn stops reading at 64 KiB, and a read is 256 KiB.
CONNECTION_BYTES = 2**19


@pytest.fixture
def small() -> Iterator[Service]:
    limits = {"SERVER__MAX_BUFFERED_BYTES": BUDGET, "SERVER__MAX_BODY_BYTES": 16 * 2**20, "WORKERS__CPU_WORKERS": 1}
    with Service("echo", **limits, SERVER__MAX_IMAGE_BYTES=8 * 2**20) as service:
        yield service.wait_until_ready()


def connect_from(service: Service, address: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.client.base_url.port or 0), PATIENCE, (address, 0))
    connection.settimeout(PATIENCE)
    return connection


def begin(connection: socket.socket, declared: int = BODY_BYTES + 2**20) -> None:
    """Send all of a body but its end; or as much as the service reads before it refuses it."""
    connection.sendall(head(f"Content-Length: {declared}") + b'{"x": "')
    sent = 0
    try:
        while sent < BODY_BYTES:
            sent += connection.send(b"x" * 2**16)
    except OSError:
        pass


def answered(connections: list[socket.socket]) -> list[socket.socket]:
    """Those that the service has answered; it waits for more of the others."""
    return select.select(connections, [], [], 0)[0]


def refusal(connection: socket.socket) -> dict[str, object]:
    """The problem that the service answered with."""
    body: dict[str, object] = json.loads(read(connection).partition(b"\r\n\r\n")[2])
    return body


def test_unfinished_bodies_stay_within_the_budget_and_others_are_served(small: Service) -> None:
    before = resident_bytes(small.process.pid)
    with ExitStack() as stack:
        held = [stack.enter_context(connect(small)) for _ in range(30)]
        for connection in held:
            begin(connection)
        until(lambda: len(answered(held)) >= len(held) - OWN_BYTES // BODY_BYTES)
        refusals = [refusal(connection) for connection in answered(held)]
        grown = peak_bytes(small.process.pid) - before
        assert len(held) - len(refusals) == OWN_BYTES // BODY_BYTES
        assert {problem["type"] for problem in refusals} == {"urn:contour:problem:busy"}
        assert all(isinstance(problem["retry_after"], int) for problem in refusals)
        assert grown < OWN_BYTES * 1.5 + len(held) * CONNECTION_BYTES, f"{grown / 2**20:.0f} MiB"
        # One client has all that it may have. What is small still gets through, and another client finds room.
        assert small.client.post("/sdapi/v1/interrupt", json={"id_task": "x"}).status_code == 200
        assert small.generate().status_code == 200
        assert small.generate(filler="x" * 6 * 2**20).status_code == 503
        with connect_from(small, "127.0.0.2") as other:
            body = json.dumps(good_request()).encode()
            other.sendall(head(f"Content-Length: {len(body)}") + body)
            assert read(other).startswith(b"HTTP/1.1 200 ")
    until(lambda: small.generate().status_code == 200)  # what was held is free again when its connection is gone


def test_a_body_that_was_answered_is_counted_no_more(small: Service) -> None:
    filler = "x" * (6 * 2**20)
    for _ in range(12):  # 72 MiB in all: more than one client may hold at a time
        assert small.generate(filler=filler).status_code == 200
        assert small.generate(steps=0, filler=filler).status_code == 422
        assert small.client.post("/nothing", content=filler).status_code == 404


def test_finished_bodies_of_every_kind_leave_little_behind(small: Service) -> None:
    """Most of what is freed is kept for the next one, within bounds: `workers.machine`."""
    before = resident_bytes(small.process.pid)
    length = 7 * 2**20
    kinds = [
        {"filler": "x" * length},
        {"filler": "\U0001f600" * (length // 4)},
        {"input_image_base64": "A" * length},
        {"input_image_base64": ("A" * 76 + "\n") * (length // 78)},
        {"negative_prompt": "é" * (length // 2)},
    ]
    with ThreadPoolExecutor(4) as clients:
        statuses = set(clients.map(lambda n: small.generate(**kinds[n % len(kinds)]).status_code, range(60)))
    assert statuses <= {200, 422, 503}
    grown = peak_bytes(small.process.pid) - before
    assert grown < BUDGET + KEPT_BYTES, f"{grown / 2**20:.0f} MiB"


def test_a_budget_that_holds_no_largest_body_stops_the_start() -> None:
    with pytest.raises(AssertionError, match="but one body of server"):
        Service("echo", SERVER__MAX_BUFFERED_BYTES=2**20)
