"""/metrics, scraped and parsed."""

import re
import subprocess
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from shutil import which

import pytest

from app import __version__
from tests.service.raw import exchange, head
from tests.service.running import Service, until


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service("echo", WORKERS__CPU_WORKERS=1, ENGINE__ECHO__STEPS=3, ENGINE__SLOTS=3) as service:
        yield service.wait_until_ready()


def test_the_counts_match_the_clients(service: Service) -> None:
    for _ in range(4):
        assert service.generate().status_code == 200
    assert service.generate(input_image_base64="AAAA").status_code == 422
    assert service.sample("contour_requests_total", outcome="done") == 4
    assert service.sample("contour_requests_total", outcome="invalid-image") == 1
    assert service.sample("contour_request_duration_seconds_count") == 5
    assert service.sample("contour_steps_total", worker="cpu0") == 12
    assert service.sample("contour_batch_occupancy_count") == 12
    for stage in ("queue", "prepare", "denoise", "decode", "encode"):
        assert service.sample("contour_stage_seconds_count", stage=stage) == 4
    assert service.sample("contour_request_duration_seconds_sum") >= service.sample("contour_stage_seconds_sum") > 0


def test_connection_errors_are_counted(echo: Service) -> None:
    for sent, reason in ((b"nonsense\r\n\r\n", "malformed-http"), (head("X: " + "x" * 70_000), "head-too-large")):
        before = echo.sample("contour_connection_errors_total", reason=reason)
        requests = echo.sample("contour_requests_total")
        assert exchange(echo, sent)[0].problem == reason
        assert echo.sample("contour_connection_errors_total", reason=reason) == before + 1
        assert echo.sample("contour_requests_total") == requests


def is_zero(service: Service, name: str) -> bool:
    return service.sample(name) == 0


def test_the_state_of_now_is_shown(service: Service) -> None:
    (build,) = service.metrics()["contour_build_info"].samples
    assert (build.name, build.value, build.labels) == (
        "contour_build_info",
        1,
        {"version": __version__, "torch": metadata.version("torch"), "runtime": "echo", "dtype": ""},
    )
    assert service.sample("contour_ready") == 1
    assert service.sample("contour_draining") == 0
    assert service.sample("contour_worker_state", worker="cpu0", state="ready") == 1
    assert service.sample("contour_worker_state", worker="cpu0") == 1
    assert service.sample("contour_slots", worker="cpu0") == 3
    for name in (
        "contour_queue_depth",
        "contour_jobs_running",
        "contour_slots_in_use",
        "contour_worker_restarts_total",
    ):
        until(partial(is_zero, service, name))


def test_buckets_reach_from_5_ms_to_300_s(echo: Service) -> None:
    for name in ("contour_request_duration_seconds", "contour_stage_seconds"):
        bounds = {sample.labels.get("le") for sample in echo.metrics()[name].samples} - {None}
        assert bounds >= {"0.005", "0.1", "1.0", "60.0", "300.0", "+Inf"}


def test_names_follow_the_conventions(echo: Service) -> None:
    ours = [family for name, family in echo.metrics().items() if name.startswith("contour_")]
    assert len(ours) >= 12
    for family in ours:
        assert family.documentation, family.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert not family.name.endswith(("_ms", "_milliseconds", "_count", "_total"))


def test_promtool_has_nothing_to_complain_of(echo: Service) -> None:
    if which("promtool") is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=echo.client.get("/metrics").content, capture_output=True, check=False
    )
    ours = [line for line in (done.stdout + done.stderr).decode().splitlines() if line.startswith("contour_")]
    assert ours == []
