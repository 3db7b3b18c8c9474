"""Engines that exit, hang or have no memory, by `engine.faults`: whoever asked gets an image all the same."""

import re
from collections.abc import Callable

from tests.service.running import Service, until

SEED = 3
STEPS = {"ENGINE__ECHO__STEPS": 5, "ENGINE__ECHO__STEP_SECONDS": 0.01, "ENGINE__FAULTS__SEED": SEED}
# Faults are chance: no image is to be convicted of a few of them, and no worker to wait or be given up for them.
PATIENT = {
    "SCHEDULER__ATTEMPTS": 50,
    "SCHEDULER__QUARANTINE_AFTER": 50,
    "SCHEDULER__RESTART_BACKOFF": 0,
    "SCHEDULER__RESTART_BACKOFF_MAX": 0,
}
CHANCE, ONCE = 0.05, 0.2  # of what is done five times an image, and once: all of 60 are spared in one run of 500,000
IMAGES = 60


def images_until(service: Service, struck: Callable[[], bool]) -> list[int]:
    """Ask for images until something has happened, and for one more; their status codes."""
    codes = []
    for _ in range(IMAGES):
        codes.append(service.generate().status_code)
        if struck():
            return [*codes, service.generate().status_code]
    raise AssertionError("no fault came up")


def test_a_worker_that_exits_in_the_middle_of_a_step_costs_nobody_an_image() -> None:
    with Service("echo", ENGINE__FAULTS__EXIT=CHANCE, **STEPS, **PATIENT) as service:
        service.wait_until_ready(workers=2)
        codes = images_until(service, lambda: service.sample("contour_worker_losses_total") > 0)
        assert set(codes) == {200}
        assert service.sample("contour_retries_total") >= 1
        losses = {worker["last_loss"] for worker in service.readiness()["workers"]}
        assert "ended with exit code 70" in losses
    assert any("FAILS ON PURPOSE" in line for line in service.log)


def test_a_worker_that_hangs_without_dying_is_killed_by_its_silence() -> None:
    silence = {"SCHEDULER__HEARTBEAT_FLOOR": 1.0}
    with Service("echo", ENGINE__FAULTS__HANG=CHANCE, **silence, **STEPS, **PATIENT) as service:
        service.wait_until_ready(workers=2)
        codes = images_until(service, lambda: service.sample("contour_worker_losses_total") > 0)
        assert set(codes) == {200}
        assert service.sample("contour_retries_total") >= 1
    assert any(re.search(r"Killing worker \w+: silent for", line) for line in service.log)


def test_a_device_without_memory_in_prepare_step_or_finish_costs_nobody_an_image() -> None:
    places = {"prepare_memory": ONCE, "step_memory": CHANCE, "finish_memory": ONCE}
    chances = {f"ENGINE__FAULTS__{place.upper()}": chance for place, chance in places.items()}
    with Service("echo", **chances, **STEPS, **PATIENT) as service:
        service.wait_until_ready(workers=2)
        answers = [service.generate() for _ in range(IMAGES)]
        until(lambda: all(f"fault injected: {place}" in "".join(service.log) for place in places))
        assert {answer.status_code for answer in answers} == {200}
        # Several in a row end a worker, so whether one ends is chance.
        assert all("OutOfMemoryError" in line for line in service.log if re.search(r"Worker \w+ exited", line))
        assert service.sample("contour_requests_total", outcome="done") == IMAGES
