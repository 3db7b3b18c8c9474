"""The poller sees a service that stalls, one that closes idle connections, and one that dies."""

import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fuzz.polling import ALIVE, HealthPoller
from tests.service.running import until

STALL_SECONDS = 0.3
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ALIVE)


class Stalling(socketserver.ThreadingTCPServer):
    """Answers at once, but once after STALL_SECONDS; after `left` answers it closes the connection."""

    daemon_threads = True
    stall = False
    left = 1_000_000
    connections = 0
    broken = False


class Handler(socketserver.StreamRequestHandler):
    server: Stalling

    def handle(self) -> None:
        self.server.connections += 1
        for _ in range(self.server.left):
            while self.rfile.readline() not in {b"\r\n", b""}:
                pass
            if self.server.stall:
                self.server.stall = False
                time.sleep(STALL_SECONDS)
            if self.server.broken:
                self.wfile.write(ANSWER[:20])
                return
            self.wfile.write(ANSWER)
            self.wfile.write(ALIVE)


@pytest.fixture
def server() -> Iterator[Stalling]:
    with Stalling(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def url(server: Stalling) -> str:
    return "http://{}:{}".format(*server.server_address)


def test_a_stall_is_seen_while_it_lasts_and_afterwards(server: Stalling) -> None:
    with HealthPoller(url(server)) as poller:
        until(lambda: len(poller.polls) > 5)
        began = time.monotonic()
        server.stall = True
        until(lambda: poller.worst(began) > STALL_SECONDS / 2)
        until(lambda: poller.worst(time.monotonic()) < STALL_SECONDS / 2)
        assert poller.worst(began) >= STALL_SECONDS


def test_a_connection_that_is_closed_between_two_polls_is_made_anew(server: Stalling) -> None:
    server.left = 2
    with HealthPoller(url(server)) as poller:
        until(lambda: len(poller.polls) > 10)
        assert poller.failure is None
    assert server.connections > 3


def test_half_an_answer_fails(server: Stalling) -> None:
    server.broken = True
    with HealthPoller(url(server)) as poller:
        until(lambda: poller.failure is not None)
        with pytest.raises(AssertionError, match="HTTP"):
            poller.worst(0.0)
