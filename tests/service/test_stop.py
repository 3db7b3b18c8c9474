"""Signals: the first drains and says so, the second stops at once, and nothing is left behind."""

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from tests.cli.terminal import PYTHON, Terminal
from tests.service.running import PATIENCE, Service, alive, descendants, good_request, until

SLOW = {"WORKERS__CPU_WORKERS": 1, "ENGINE__ECHO__STEPS": 600, "ENGINE__ECHO__STEP_SECONDS": 0.1}


@pytest.fixture
def slow() -> Iterator[Service]:
    """A service whose images take a minute."""
    with Service("echo", **SLOW) as service:
        yield service.wait_until_ready()


def said(service: Service) -> str:
    return "".join(service.log)


@pytest.mark.parametrize(
    ("number", "again"), [(signal.SIGINT, "press Ctrl+C again"), (signal.SIGTERM, "send SIGTERM again")]
)
def test_the_first_says_what_is_finished_and_the_second_ends_it(
    slow: Service, number: signal.Signals, again: str
) -> None:
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(slow.generate) for _ in range(3)]
        until(lambda: slow.sample("contour_jobs_running") == 3)
        processes = slow.descendants()
        slow.process.send_signal(number)
        until(lambda: "again" in said(slow))
        assert f"Finishing 3 requests, for at most 60 s; {again} to stop at once" in said(slow)
        assert slow.client.get("/readyz").json()["draining"]
        assert slow.stop(number) == 128 + number
        for answer in answers:  # each has one, even so
            assert (answer.result().status_code, answer.result().headers["Connection"]) == (503, "close")
    until(lambda: not any(map(alive, processes)))
    assert "Stopping at once; unfinished requests: 3" in said(slow)
    assert "Traceback" not in said(slow)


def test_the_first_alone_finishes_what_was_accepted_and_turns_new_work_away() -> None:
    with Service("echo", **SLOW | {"ENGINE__ECHO__STEPS": 20}) as service, ThreadPoolExecutor(1) as client:
        service.wait_until_ready()
        answer = client.submit(service.generate)
        until(lambda: service.sample("contour_jobs_running") == 1)
        processes = service.descendants()
        service.process.send_signal(signal.SIGINT)
        until(lambda: service.client.get("/readyz").status_code == 503)
        late = service.generate()
        assert (late.status_code, late.json()["type"]) == (503, "urn:contour:problem:draining")
        assert late.headers["connection"] == "close"
        assert answer.result().status_code == 200
        assert service.process.wait(PATIENCE) == 0
        until(lambda: not any(map(alive, processes)))
    assert "Finishing 1 request, for at most 60 s; press Ctrl+C again to stop at once" in said(service)


@pytest.mark.parametrize(
    ("number", "again"), [(signal.SIGINT, "press Ctrl+C again"), (signal.SIGTERM, "send SIGTERM again")]
)
def test_where_nothing_is_in_hand_it_says_so_and_ends(number: signal.Signals, again: str) -> None:
    with Service("echo") as service:
        processes = service.wait_until_ready(workers=2).descendants()
        assert service.stop(number) == 0
        until(lambda: not any(map(alive, processes)))  # Python's resource tracker ends after all others
    assert f"Stopping; {again} to stop at once" in said(service)
    assert "Finishing" not in said(service)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_come_together_are_one(number: signal.Signals) -> None:
    """As `timeout` sends them: to the process, and to its group, which it is in."""
    with Service("echo", **SLOW | {"ENGINE__ECHO__STEPS": 10}) as service, ThreadPoolExecutor(1) as client:
        service.wait_until_ready()
        answer = client.submit(service.generate)
        until(lambda: service.sample("contour_jobs_running") == 1)
        service.process.send_signal(signal.SIGSTOP)
        service.process.send_signal(number)
        service.process.send_signal(number)
        service.process.send_signal(signal.SIGCONT)
        assert service.process.wait(PATIENCE) == 0
        assert answer.result().status_code == 200


@pytest.mark.parametrize(
    "seconds", [0.05, 0.2, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.0, 0.1, 0.4))]
)
def test_ctrl_c_on_a_terminal_while_workers_import_their_modules_shows_no_traceback(seconds: float) -> None:
    with Terminal([*PYTHON, "app", "--port", "0"], SERVER__LOG_FORMAT="human") as terminal:
        until(lambda: "Starting worker" in terminal.shown)
        time.sleep(seconds)
        terminal.interrupt()
        assert terminal.wait() == 0
    assert "Stopping" in terminal.shown
    assert "Traceback" not in terminal.shown


def test_a_loading_worker_is_ended_at_once() -> None:
    with Service("demo") as service:
        until(lambda: len(service.descendants()) > 0)
        processes = service.descendants()
        assert service.stop(signal.SIGINT) == 0
        until(lambda: not any(map(alive, processes)))
    assert "Traceback" not in said(service)


def test_bodies_that_never_come_and_readers_of_streams_are_told(slow: Service) -> None:
    body = json.dumps(good_request()).encode()
    with closing(connected(slow)) as unfinished, closing(connected(slow)) as stream, closing(connected(slow)):
        unfinished.sendall(head(1000) + b"{")
        stream.sendall(head(len(body), b"Accept: text/event-stream\r\n") + body)
        until(lambda: slow.sample("contour_jobs_running") == 1)
        slow.process.send_signal(signal.SIGINT)
        until(lambda: "Finishing 2 requests" in said(slow))
        assert slow.stop(signal.SIGINT) == 130
        assert read(unfinished).startswith(b"HTTP/1.1 503 ")
        assert b"event: error" in read(stream)
    assert "Traceback" not in said(slow)


def connected(service: Service) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def head(length: int, more: bytes = b"") -> bytes:
    start = b"POST /generation/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return start + more + b"Content-Length: %d\r\n\r\n" % length


def read(connection: socket.socket) -> bytes:
    """All that comes, until the connection is closed or reset."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


MAKE = ["make", "--old-file", ".venv/.serving", "serve", "CONFIG=configs/echo.yaml", "PORT=0", f"BIN={sys.prefix}/bin"]
SERVE = [*PYTHON, "app", "configs/echo.yaml", "--port", "0"]


@pytest.mark.parametrize("command", [SERVE, MAKE], ids=["python -m app", "make serve"])
def test_ctrl_c_on_a_terminal_reaches_workers_too_and_still_finishes_first(command: list[str]) -> None:
    """It signals the whole group: workers leave it to the server, which says what happens; the second ends all."""
    with Terminal(command, **SLOW, SERVER__LOG_FORMAT="human") as terminal, ThreadPoolExecutor(1) as client:
        until(lambda: "Ready: " in terminal.shown)
        url = terminal.shown.partition("Ready: ")[2].split()[0]
        processes = descendants(terminal.process.pid)
        answer = client.submit(httpx.post, f"{url}/generation/", json=good_request(), timeout=PATIENCE)
        until(lambda: "contour_jobs_running 1.0" in httpx.get(f"{url}/metrics").text)
        terminal.interrupt()
        until(lambda: "Finishing 1 request, for at most 60 s; press Ctrl+C again to stop at once" in terminal.shown)
        assert all(map(alive, processes))
        terminal.interrupt()
        assert terminal.wait() != 0
        assert answer.result().status_code == 503
        until(lambda: not any(map(alive, processes)))
    assert "Traceback" not in terminal.shown
