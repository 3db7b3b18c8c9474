"""Retries of requests whose replica is lost: in uvicorn, around an application that loses some."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from example.ray import proxy
from tests.service.running import until


@dataclass
class Replicas:
    """As Serve's own proxy: without a word where the replica is lost, which happens to the first so many requests."""

    lost: int
    bodies: list[bytes] = field(default_factory=list)
    waits: list[str | None] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = b""
        with suppress(ClientDisconnect):
            body = await request.body()
        self.bodies.append(body)
        self.waits.append(request.headers.get("prefer"))
        if len(self.bodies) > self.lost:
            response = Response(body[::-1], headers={"X-Request-Id": "ours"})
            response.headers.append("X-Request-ID", "Serve's")
            await response(scope, receive, send)


@contextmanager
def served(replicas: Replicas) -> Iterator[httpx.Client]:
    listener = socket.create_server(("127.0.0.1", 0))
    app = proxy.Again(replicas)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    until(lambda: server.started)
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=180) as client:
        yield client
    server.should_exit = True
    thread.join(60.0)
    listener.close()


def test_a_request_whose_replica_is_lost_is_answered_by_another() -> None:
    replicas = Replicas(lost=1)
    with served(replicas) as client:
        answer = client.post("/generation/", content=b"abc" * 100_000)
    assert (answer.status_code, answer.content) == (200, b"cba" * 100_000)
    assert replicas.bodies == [b"abc" * 100_000] * 2


def test_a_request_that_loses_every_replica_is_told_so_and_not_tried_for_ever() -> None:
    replicas = Replicas(lost=9)
    with served(replicas) as client:
        answer = client.post("/generation/", content=b"abc")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert "lost" in answer.json()["detail"]
    assert len(replicas.bodies) == proxy.ATTEMPTS


def test_a_body_that_is_too_large_to_be_kept_is_not_tried_again() -> None:
    replicas = Replicas(lost=1)
    with served(replicas) as client:
        answer = client.post("/generation/", content=bytes(proxy.KEPT_BYTES + 1))
    assert answer.status_code == 503
    assert len(replicas.bodies) == 1


def test_a_second_try_has_what_is_left_of_the_time_that_the_client_waits() -> None:
    replicas = Replicas(lost=1)
    with served(replicas) as client:
        client.post("/generation/", content=b"abc", headers={"Prefer": 'respond-async, wait="30"'})
    first, second = replicas.waits
    assert first == 'respond-async, wait="30"'
    assert second in [f'respond-async, wait="{left}"' for left in range(30)]


def test_an_answer_has_one_request_id_which_is_the_services() -> None:
    with served(Replicas(lost=0)) as client:
        answer = client.post("/generation/", content=b"abc")
    assert answer.headers.get_list("X-Request-Id") == ["ours"]
