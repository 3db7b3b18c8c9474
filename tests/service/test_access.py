"""API keys; and one client's flood does not starve another."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.service.raw import LENGTH, exchange, head
from tests.service.running import Service, good_request

CLIENT = Path(__file__).parents[2] / "example" / "client.py"
KEYS = ("flood-2cf24dba5fb0a30e", "other-26e83b2ac5b9e29e", "@5891b5b522d5df08")
FLOOD, OTHER, ODD = KEYS  # the last one is no YAML


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One slot, 0.2 s an image, room for 32 in the queue; two keys from a file, one from the environment."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# who floods\n{FLOOD}\n\n  {OTHER}\n")
    overrides = {"ENGINE__SLOTS": 1, "ENGINE__ECHO__STEPS": 4, "ENGINE__ECHO__STEP_SECONDS": 0.05}
    limits = {"SCHEDULER__MAX_QUEUE": 32, "WORKERS__CPU_WORKERS": 1}
    with Service("echo", **overrides, **limits, SERVER__API_KEY=ODD, SERVER__API_KEY_FILE=path) as service:
        yield service.wait_until_ready()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(service: Service, headers: dict[str, str]) -> httpx.Response:
    return service.client.post("/generation/", json=good_request(), headers=headers)


@pytest.mark.parametrize("key", KEYS)
def test_a_request_with_any_of_the_keys_gets_its_image(guarded: Service, key: str) -> None:
    assert ask(guarded, bearer(key)).status_code == 200
    assert ask(guarded, {"X-API-Key": key}).status_code == 200


def test_the_example_client_has_its_key_from_a_flag_or_the_environment(guarded: Service, tmp_path: Path) -> None:
    def run(*flags: str, **variables: str) -> int:
        command = [sys.executable, str(CLIENT), "--url", guarded.url, *flags]
        return subprocess.run(command, cwd=tmp_path, env=os.environ | variables, timeout=180, check=False).returncode

    assert [run("--api-key", OTHER), run(CONTOUR_API_KEY=OTHER), run()] == [0, 0, 1]


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, 'Bearer realm="contour"'),
        ({"Authorization": f"Basic {OTHER}"}, 'Bearer realm="contour"'),
        (bearer(OTHER[:-1]), 'Bearer realm="contour", error="invalid_token"'),
        (bearer(OTHER + "x"), 'Bearer realm="contour", error="invalid_token"'),
        (bearer(OTHER) | {"X-API-Key": "wrong"}, 'Bearer realm="contour", error="invalid_token"'),
        ({"X-API-Key": "clé"}, 'Bearer realm="contour", error="invalid_token"'),
    ],
)
def test_without_one_it_gets_401_and_a_challenge(guarded: Service, headers: dict[str, str], challenge: str) -> None:
    encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    response = guarded.client.post("/generation/", json=good_request(), headers=encoded)
    assert (response.status_code, response.json()["type"]) == (401, "urn:contour:problem:unauthorized")
    assert response.headers["www-authenticate"] == challenge


def test_it_is_refused_before_its_body_comes(guarded: Service) -> None:
    for expecting in ((), ("Expect: 100-continue",)):
        (answer,) = exchange(guarded, head(LENGTH, *expecting))
        assert (answer.status, answer.problem) == (401, "unauthorized")


def test_probes_and_metrics_need_no_key(guarded: Service) -> None:
    assert {guarded.client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")} == {200}
    before = guarded.sample("contour_requests_total", outcome="unauthorized")
    ask(guarded, {})
    assert guarded.sample("contour_requests_total", outcome="unauthorized") == before + 1


def test_one_clients_flood_does_not_starve_another(guarded: Service) -> None:
    answers: dict[str, list[httpx.Response]] = {FLOOD: [], OTHER: []}
    enough = threading.Event()

    def flood(number: int) -> None:
        with httpx.Client(base_url=guarded.url, timeout=180, headers=bearer(FLOOD)) as client:
            while not enough.is_set():
                answers[FLOOD].append(client.post("/generation/", json=good_request(request_id=number)))
                enough.wait(0.05 * (answers[FLOOD][-1].status_code == 429))

    with ThreadPoolExecutor(64) as clients:
        for number in range(64):
            clients.submit(flood, number)
        while not any(answer.status_code == 429 for answer in answers[FLOOD]):
            enough.wait(0.05)
        before = sum(answer.status_code == 200 for answer in answers[FLOOD])
        answers[OTHER] = [ask(guarded, bearer(OTHER) | {"Prefer": "wait=30"}) for _ in range(6)]
        after = sum(answer.status_code == 200 for answer in answers[FLOOD])
        enough.set()
    assert [answer.status_code for answer in answers[OTHER]] == [200] * 6
    # A turn each, and what is done while the other makes up its mind; first come, first served, it were 20 for each.
    assert after - before <= 5 * 6
    refused = [answer for answer in answers[FLOOD] if answer.status_code != 200]
    assert {answer.json()["type"] for answer in refused} == {"urn:contour:problem:quota-exceeded"}
    assert all(answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1 for answer in refused)


def test_no_key_was_told_to_anybody(guarded: Service) -> None:
    said = "".join(guarded.log) + guarded.client.get("/readyz").text + guarded.client.get("/metrics").text
    assert not any(key in said for key in KEYS)
    assert "Traceback" not in said


def test_clients_behind_a_trusted_proxy_are_told_apart_by_what_it_says() -> None:
    overrides = {"SCHEDULER__MAX_QUEUE": 4, "WORKERS__CPU_WORKERS": 1, "ENGINE__SLOTS": 1}
    slow = {"ENGINE__ECHO__STEPS": 2, "ENGINE__ECHO__STEP_SECONDS": 0.2}
    with Service("echo", SERVER__TRUSTED_PROXIES="[127.0.0.0/8]", **overrides, **slow) as service:
        service.wait_until_ready()
        for clients, codes in (([1] * 5, {200: 4, 429: 1}), ([1, 2, 3, 4, 5], {200: 5})):
            headers = [{"X-Forwarded-For": f"10.9.9.9, 10.0.0.{number}"} for number in clients]
            with ThreadPoolExecutor(5) as threads:
                assert Counter(answer.status_code for answer in threads.map(partial(ask, service), headers)) == codes
