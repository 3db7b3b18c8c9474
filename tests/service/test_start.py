"""How a start looks: what stops it before a worker is started, and the line that says that it is done."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.service.running import PATIENCE, ROOT, Service, surroundings, until

UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
READY = re.compile(r" contour: Ready: (http://\S+)$")


def start(*flags: object, before: tuple[str, ...] = (), **overrides: object) -> "subprocess.CompletedProcess[str]":
    """A start that ends by itself."""
    command = [*before, sys.executable, "-m", "app", "configs/echo.yaml", *map(str, flags)]
    return subprocess.run(
        command, cwd=ROOT, env=surroundings(**overrides), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def refusal(done: "subprocess.CompletedProcess[str]") -> str:
    """Why nothing was started: one line, before any worker."""
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.strip()


def test_a_port_in_use_is_told_with_who_has_it_before_a_worker_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal(start("--port", port))
    holder = f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
    assert said == f"127.0.0.1:{port} is in use by {holder}. End that program, or choose another port with --port."


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost"])
def test_a_port_in_use_at_one_address_is_in_use_for_all(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert f"{host}:{other.getsockname()[1]} is in use by process" in refusal(
            start("--host", host, "--port", other.getsockname()[1])
        )


def test_one_that_is_starting_has_its_port_already() -> None:
    """Nothing else gets it while the workers load."""
    with Service("echo", ENGINE__ECHO__STEP_SECONDS=1) as service:
        port = service.url.rpartition(":")[2]
        assert service.client.get("/healthz").status_code == 200
        assert service.client.get("/readyz").status_code == 503
        said = refusal(start("--port", port))
    assert f"in use by process {service.process.pid} " in said


def test_an_address_of_another_machine_is_told() -> None:
    said = refusal(start("--host", "192.0.2.1", "--port", 0))
    assert said.startswith("192.0.2.1 is not an address of this machine. Choose one with --host")


def test_a_name_that_nobody_knows_is_told() -> None:
    assert "nor a known name" in refusal(start("--host", "nowhere.invalid", "--port", 0))


@pytest.mark.parametrize("host", ["/run/contour.sock", "http://127.0.0.1", "127.0.0.1:80", "[::1]"])
def test_an_invalid_address_is_reported(host: str) -> None:
    said = refusal(start("--host", host))
    assert "--host" in said
    assert "address" in said


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to be another user")
@pytest.mark.skipif(
    int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 80, reason="80 is for all"
)
def test_a_privileged_port_is_told() -> None:
    script = (
        "import sys; from app.http.listening import listen, ListenError\n"
        "try: listen('127.0.0.1', 80)\n"
        "except ListenError as error: print(error, '|', error.remedy)"
    )
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", sys.executable, "-c", script],
        cwd=ROOT,
        env=surroundings(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "127.0.0.1:80: this user may not listen on port 80, as ports below 1024 are privileged. | "
        "choose a --port of at least 1024, or grant CAP_NET_BIND_SERVICE\n"
    )


def ready(service: Service) -> str:
    """The address in the line that ends a start, once it is there."""
    until(lambda: any(READY.search(line) for line in service.log))
    return next(found.group(1) for line in service.log if (found := READY.search(line)))


@pytest.mark.slow
def test_the_last_line_of_a_start_is_ready_with_an_address_that_serves() -> None:
    with Service("demo", ENGINE__SAMPLER__STEPS=2) as service:
        address = ready(service)
        answer = httpx.get(f"{address}/readyz")
        assert answer.json()["ready"]
        assert service.generate().status_code == 200
        service.stop()
    lines = [line for line in service.log if "contour.request" not in line]
    (number,) = (number for number, line in enumerate(lines) if READY.search(line))
    assert "Stopping" in lines[number + 1]  # nothing of the start comes after it, nor anything before the end
    assert address == service.url


def test_no_worker_that_loads_says_anything_after_it() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=4) as service:
        ready(service)
        assert all(worker["state"] == "ready" for worker in service.readiness()["workers"])
        service.stop()
    lines = [line for line in service.log if "Worker cpu" in line or READY.search(line)]
    assert READY.search(lines[-1])


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        pytest.param("127.0.0.1", "127.0.0.1", marks=pytest.mark.slow),
        pytest.param("localhost", "127.0.0.1", marks=pytest.mark.slow),
        ("0.0.0.0", "127.0.0.1"),
        pytest.param("::1", "[::1]", marks=pytest.mark.slow),
        ("::", "[::1]"),
    ],
)
def test_it_is_an_address_for_a_browser(host: str, shown: str) -> None:
    if ":" in shown and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with Service("echo", SERVER__HOST=host, WORKERS__CPU_WORKERS=2) as service:
        address = ready(service)
        assert re.fullmatch(rf"http://{re.escape(shown)}:[1-9]\d*", address)
        assert httpx.get(f"{address}/readyz").status_code == 200
        service.wait_until_ready(2)
    assert sum(bool(READY.search(line)) for line in service.log) == 1


def test_for_programs_it_is_a_message_too() -> None:
    with Service("echo", SERVER__LOG_FORMAT="json") as service:
        until(lambda: any('"Ready: http' in line for line in service.log))
        last = json.loads(next(line for line in service.log if '"Ready: http' in line))
    assert (last["level"], last["logger"], last["message"]) == ("info", "contour", f"Ready: {service.url}")


def test_a_service_that_is_ended_while_it_loads_is_never_ready() -> None:
    with Service("demo") as service:
        assert service.stop() == 0
    assert not any("Ready" in line for line in service.log)
