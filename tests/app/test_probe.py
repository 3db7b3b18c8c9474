"""`python -m app.probe`, by which a container's engine asks whether the service can make images."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.service.running import ROOT, Service, until


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service("echo", SERVER__HOST="127.0.0.1") as service:
        yield service.wait_until_ready()


def probe(port: int | str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The probe's own process, with the port of the service in its environment."""
    environment = os.environ | {"CONTOUR_SERVER__PORT": str(port), **variables}
    command = [sys.executable, "-m", "app.probe", "--config", "configs/echo.yaml"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)


def test_it_is_zero_once_a_worker_is_ready(service: Service) -> None:
    done = probe(service.client.base_url.port or 0, CONTOUR_SERVER__HOST="0.0.0.0", CONTOUR_SERVER__API_KEY="1234")
    assert (done.returncode, done.stderr) == (0, "/readyz answers 200\n")


def test_it_is_one_where_nothing_listens() -> None:
    done = probe(1)
    assert done.returncode == 1
    assert done.stderr.startswith("not ready: ")


def test_it_is_one_before_a_worker_is_ready() -> None:
    with Service("demo") as starting:
        until(lambda: starting.readiness()["workers"][0]["process"] is not None)
        worker = starting.readiness()["workers"][0]["process"]
        os.kill(worker, signal.SIGSTOP)  # it loads for seconds, so it is not ready by now and will not be
        done = probe(starting.client.base_url.port or 0)
        os.kill(worker, signal.SIGCONT)
    assert (done.returncode, done.stderr) == (1, "/readyz answers 503\n")


def test_a_problem_with_the_settings_is_reported() -> None:
    done = probe("many")
    assert done.returncode == 1
    assert "CONTOUR_SERVER__PORT" in done.stderr
