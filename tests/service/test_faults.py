"""Killed workers, killed servers, clients that leave, deadlines, a full queue, a drain: the real processes."""

import os
import re
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.service.raw import BODY, LENGTH, connect, head
from tests.service.running import Service, alive, good_request, until

STEPS = {"ENGINE__ECHO__STEPS": 20, "ENGINE__ECHO__STEP_SECONDS": 0.1}  # an image takes two seconds
ENDLESS = {"ENGINE__ECHO__STEPS": 1000, "ENGINE__ECHO__STEP_SECONDS": 0.5, "SERVER__DEADLINE": 3600}
REGION = "memfd:contour-slots"


def busy_worker(service: Service, other_than: int | None = None) -> int:
    """The process of a worker that has an image in hand, when there is one."""
    found: list[int] = []

    def look() -> bool:
        workers = service.readiness()["workers"]
        found[:] = [worker["process"] for worker in workers if worker["running"] and worker["state"] == "ready"]
        return any(process not in {None, other_than} for process in found)

    until(look)
    return next(process for process in found if process not in {None, other_than})


def test_two_workers_each_get_work() -> None:
    with Service("echo", **STEPS) as service:
        service.wait_until_ready(workers=2)
        with ThreadPoolExecutor(2) as clients:
            answers = list(clients.map(lambda number: service.generate(request_id=number), range(2)))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert service.sample("contour_steps_total", worker="cpu0") >= 20
        assert service.sample("contour_steps_total", worker="cpu1") >= 20


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_workers_image_is_made_elsewhere(workers: int) -> None:
    with Service("echo", WORKERS__CPU_WORKERS=workers, **STEPS) as service, ThreadPoolExecutor(1) as client:
        service.wait_until_ready(workers)
        answer = client.submit(service.generate, request_id=11)
        victim = busy_worker(service)
        os.kill(victim, signal.SIGKILL)
        assert answer.result().status_code == 200
        assert answer.result().json()["request_id"] == 11
        assert service.sample("contour_retries_total") == 1
        until(lambda: sum(worker["restarts"] for worker in service.readiness()["workers"]) == 1)
        service.wait_until_ready(workers)
        losses = [worker["last_loss"] for worker in service.readiness()["workers"] if worker["restarts"]]
        assert losses == ["killed by SIGKILL"]


def leave(service: Service) -> None:
    """Be a client that leaves while its image is made."""
    with connect(service) as connection:
        connection.sendall(head(LENGTH) + BODY)
        busy_worker(service)


def twice(sig: signal.Signals) -> httpx.Response:
    """What a request gets whose worker got a signal, and the next one too."""
    with Service("echo", WORKERS__CPU_WORKERS=1, **STEPS) as service, ThreadPoolExecutor(1) as client:
        service.wait_until_ready()
        answer = client.submit(service.generate)
        first = busy_worker(service)
        os.kill(first, sig)
        os.kill(busy_worker(service, other_than=first), sig)
        assert answer.result().status_code in {200, 500}
        assert service.generate().status_code == 200
    return answer.result()


def test_a_request_whose_worker_twice_crashed_gets_an_error_that_says_so() -> None:
    answer = twice(signal.SIGSEGV)
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:contour:problem:worker-crash")


def test_a_request_whose_worker_was_twice_killed_by_somebody_is_made_all_the_same() -> None:
    assert twice(signal.SIGKILL).status_code == 200


def test_a_stopped_worker_is_killed_by_its_silence_and_its_image_made_elsewhere() -> None:
    with Service("echo", SCHEDULER__HEARTBEAT_FLOOR=3.0, **STEPS) as service, ThreadPoolExecutor(1) as client:
        service.wait_until_ready(workers=2)
        answer = client.submit(service.generate)
        os.kill(busy_worker(service), signal.SIGSTOP)
        assert answer.result().status_code == 200
        assert service.sample("contour_retries_total") == 1


def test_a_worker_that_is_stopped_for_a_moment_or_asked_to_end_keeps_its_image() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, **STEPS) as service, ThreadPoolExecutor(1) as client:
        service.wait_until_ready()
        answer = client.submit(service.generate)
        worker = busy_worker(service)
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(worker, signal.SIGCONT)
        assert answer.result().status_code == 200
        assert service.sample("contour_worker_losses_total") == 0


def test_readiness_tells_of_a_lost_worker() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, SCHEDULER__RESTART_BACKOFF=20) as service:
        worker = service.wait_until_ready().readiness()["workers"][0]["process"]
        os.kill(worker, signal.SIGKILL)
        until(lambda: service.client.get("/readyz").status_code == 503)
        assert service.readiness()["workers"][0]["last_loss"] == "killed by SIGKILL"


def test_nothing_is_left_when_the_server_is_killed_not_even_a_stopped_worker() -> None:
    named = set(os.listdir("/dev/shm"))
    with Service("echo", **STEPS) as service, ThreadPoolExecutor(1) as client:
        service.wait_until_ready(workers=2)
        answer = client.submit(service.generate)
        os.kill(busy_worker(service), signal.SIGSTOP)
        family = service.descendants()
        assert len(family) >= 2
        service.process.kill()
        with pytest.raises(httpx.TransportError):
            answer.result()
        until(lambda: not any(alive(pid) for pid in family))
    assert set(os.listdir("/dev/shm")) == named


def test_a_worker_cannot_take_the_memory_away_that_it_shares_with_the_server(echo: Service) -> None:
    """Were it possible, the server would be killed (SIGBUS) by its next access to what is gone."""
    worker = echo.readiness()["workers"][0]["process"]
    shared = next(each for each in Path(f"/proc/{worker}/fd").iterdir() if REGION in str(each.readlink()))
    for size in (0, 1, 2**40):
        with pytest.raises(PermissionError):
            os.truncate(shared, size)
    assert echo.generate().status_code == 200
    assert echo.process.poll() is None


def test_a_worker_that_cannot_be_started_for_want_of_descriptors_is_started_when_there_are_some() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=2) as service:
        victim = service.wait_until_ready(2).readiness()["workers"][0]["process"]
        server = service.process.pid
        before = resource.prlimit(server, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{server}/fd").iterdir()))
        resource.prlimit(server, resource.RLIMIT_NOFILE, (used, before[1]))
        os.kill(victim, signal.SIGKILL)
        until(lambda: "Too many open files" in str(service.readiness()["workers"][0]["last_loss"]))
        assert service.generate().status_code == 200  # by the other worker
        resource.prlimit(server, resource.RLIMIT_NOFILE, before)
        service.wait_until_ready(2)
        assert service.generate().status_code == 200


def test_a_deadline_that_can_never_be_met_is_refused_at_once_and_not_told_to_come_back() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, ENGINE__SLOTS=1, SERVER__DEADLINE=30, **STEPS) as service:
        # Two seconds an image: the prediction says it cannot be done in one.
        service.wait_until_ready()
        refused = service.client.post("/generation/", json=good_request(), headers={"Prefer": "wait=1"})
        assert refused.status_code == 504
        assert refused.json()["type"] == "urn:contour:problem:expired"
        # Two seconds of steps, and what decoding and encoding took when the worker measured them.
        assert re.search(r"alone on this server it takes about [2-9]\.\d s", refused.json()["detail"])
        assert "Retry-After" not in refused.headers


def test_a_worker_that_is_slower_than_it_measured_is_answered_for_at_the_deadline() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, **STEPS) as service, ThreadPoolExecutor(1) as client:
        service.wait_until_ready()
        headers = {"Prefer": "wait=4"}
        answer = client.submit(service.client.post, "/generation/", json=good_request(), headers=headers)
        worker = busy_worker(service)
        os.kill(worker, signal.SIGSTOP)
        assert answer.result().status_code == 504
        assert answer.result().json()["type"] == "urn:contour:problem:expired"
        os.kill(worker, signal.SIGCONT)
        until(lambda: not any(each["running"] for each in service.readiness()["workers"]))
        assert service.generate().status_code == 200


@pytest.fixture(scope="module")
def endless() -> Iterator[Service]:
    """One slot, in which an image takes minutes."""
    with Service("echo", WORKERS__CPU_WORKERS=1, ENGINE__SLOTS=1, **ENDLESS) as service:
        yield service.wait_until_ready()


def test_a_client_that_leaves_frees_its_slot(endless: Service) -> None:
    before = abandoned(endless)
    leave(endless)
    until(lambda: not any(worker["running"] for worker in endless.readiness()["workers"]))
    until(lambda: abandoned(endless) == before + 1)


def test_the_slot_of_a_cancelled_image_is_free_within_one_step(endless: Service) -> None:
    before = abandoned(endless)
    leave(endless)
    until(lambda: abandoned(endless) == before + 1)
    taken = endless.sample("contour_steps_total")
    assert endless.generate(steps=1).status_code == 200
    assert endless.sample("contour_steps_total") <= taken + 2 + 1  # one was running, one is perhaps not counted yet


def abandoned(service: Service) -> float:
    return service.sample("contour_requests_total", outcome="abandoned")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(echo: Service) -> None:
    before, told = abandoned(echo), len(echo.log)
    with connect(echo) as connection:
        connection.sendall(head("Content-Length: 1000") + b"{")
    until(lambda: abandoned(echo) == before + 1)
    assert echo.generate().status_code == 200
    assert "Traceback" not in "".join(echo.log[told:])


def test_a_full_queue_rejects_and_says_when_to_come_back() -> None:
    limits = {"WORKERS__CPU_WORKERS": 1, "ENGINE__SLOTS": 1, "SCHEDULER__MAX_QUEUE": 2, "SCHEDULER__CLIENT_SHARE": 1}
    with Service("echo", **limits, **STEPS) as service, ThreadPoolExecutor(6) as clients:
        service.wait_until_ready()
        answers = list(clients.map(lambda number: service.generate(request_id=number), range(6)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200, 200, 200, 503, 503, 503]
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers if answer.status_code == 503)


def test_a_request_that_comes_while_models_load_waits() -> None:
    with Service("echo") as service:
        assert service.client.get("/readyz").status_code == 503
        assert service.generate().status_code == 200


def test_a_drain_under_load_ends_in_time_and_everybody_is_answered() -> None:
    limits = {"WORKERS__CPU_WORKERS": 1, "ENGINE__SLOTS": 2, "SERVER__DRAIN_SECONDS": 1}
    with Service("echo", **limits, **STEPS) as service, ThreadPoolExecutor(12) as clients:
        service.wait_until_ready()
        answers = [clients.submit(service.generate, request_id=number) for number in range(12)]
        done = partial(service.sample, "contour_requests_total", outcome="done")
        until(lambda: done() >= 1)
        until(lambda: done() + service.readiness()["running"] + service.readiness()["queued"] == 12)
        assert service.stop() == 0
        ends = [answer.result() for answer in answers]
        assert {end.status_code for end in ends} == {200, 503}  # two images in two seconds: not all were done in one
        problems = {end.json()["type"] for end in ends if end.status_code == 503}
        assert problems == {"urn:contour:problem:draining"}
