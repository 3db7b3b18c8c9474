"""AUTOMATIC1111's API: whose jobs are shown and ended. All clients of these tests come from one address."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.automatic import body, client, unit
from tests.service.running import Service, until

NAMES = ("id_task", "force_task_id", "task_id")
KEYS = ("first-26e83b2ac5b9e29e", "second-9c1d4f0ab37e6652")
SLOW = {"WORKERS__CPU_WORKERS": 1, "ENGINE__SLOTS": 1, "ENGINE__ECHO__STEPS": 10, "ENGINE__ECHO__STEP_SECONDS": 0.1}


@pytest.fixture(scope="module")
def nameless() -> Iterator[Service]:
    """Without keys: an address is a client."""
    with Service("echo", **SLOW) as service:
        yield service.wait_until_ready()


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    with Service("echo", SERVER__SHARED_PROGRESS="true", **SLOW) as service:
        yield service.wait_until_ready()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file: Path = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("\n".join(KEYS))
    with Service("echo", SERVER__API_KEY_FILE=file, **SLOW) as service:
        yield service.wait_until_ready()


class Caller:
    """One of several people who use a service."""

    def __init__(self, service: Service, key: str = "") -> None:
        self._service = service
        self._headers = {"X-API-Key": key} if key else {}

    def ask(self, method: str, path: str, **rest: Any) -> httpx.Response:
        return self._service.client.request(method, f"/sdapi/v1/{path}", headers=self._headers, **rest)

    def txt2img(self, **fields: Any) -> httpx.Response:
        return self.ask("POST", "txt2img", json=body({"steps": 10, **fields}))

    def progress(self, **query: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask("GET", "progress", params=query).json()
        return answer

    def interrupt(self, **query: str) -> dict[str, Any]:
        response = self.ask("POST", "interrupt", params=query)
        assert response.status_code == 200
        answer: dict[str, Any] = response.json()
        return answer

    @contextmanager
    def running(self, **fields: Any) -> "Iterator[Future[httpx.Response]]":
        """A request that runs: meanwhile its worker is at work."""
        until(lambda: self._service.sample("contour_jobs_running") == 0)
        with ThreadPoolExecutor(1) as threads:
            made = threads.submit(self.txt2img, **fields)
            until(lambda: self._service.sample("contour_jobs_running") == 1)
            yield made


def images(made: "Future[httpx.Response]") -> int:
    answer = made.result()
    assert answer.status_code == 200, answer.text
    return len(answer.json()["images"])


# ----------------------------------------------------------------------------------------------------- without any key


def test_another_client_behind_the_same_address_sees_and_ends_nothing(nameless: Service) -> None:
    first, second = Caller(nameless), Caller(nameless)
    before = second.progress(), second.progress(id_task="a guess"), second.interrupt()
    with first.running(force_task_id="task(mine)") as made:
        assert (second.progress(), second.progress(id_task="a guess"), second.interrupt()) == before
        second.interrupt(id_task="a guess")
        assert images(made) == 1
    unnamed, unknown, ended = before
    assert (unnamed["progress"], unnamed["current_image"], unnamed["state"]["job_count"]) == (0, None, 0)
    assert "Send id_task, which is" in unnamed["textinfo"]
    assert unnamed["textinfo"] == ended["textinfo"]
    assert "no running request with that name" in unknown["textinfo"]


@pytest.mark.parametrize("name", NAMES)
def test_a_client_sees_and_ends_its_own_job_by_the_name_that_it_gave_it(nameless: Service, name: str) -> None:
    caller, query = Caller(nameless), {name: "task(mine)"}
    with caller.running(force_task_id="task(mine)") as made:
        until(lambda: caller.progress(**query)["current_image"] is not None)
        seen = caller.progress(**query)
        assert (seen["current_task"], seen["state"]["job_count"]) == ("task(mine)", 1)
        assert caller.interrupt(**query) == {}
        assert images(made) == 0
    until(lambda: caller.progress(**query)["current_task"] is None)


def test_a_body_may_name_the_job_that_is_to_end(nameless: Service) -> None:
    caller = Caller(nameless)
    with caller.running(force_task_id="task(mine)") as made:
        assert "textinfo" in caller.ask("POST", "interrupt", json={"id_task": "another"}).json()
        assert caller.ask("POST", "interrupt", json={"id_task": "task(mine)"}).json() == {}
        assert images(made) == 0


def test_two_running_jobs_of_a_client_have_two_names(nameless: Service) -> None:
    caller = Caller(nameless)
    with caller.running(force_task_id="task(mine)") as made:
        refused = caller.txt2img(force_task_id="task(mine)")
        assert refused.status_code == 422
        assert "force_task_id is 'task(mine)', which another running request has" in refused.json()["detail"]
        assert images(made) == 1
    assert len(caller.txt2img(force_task_id="task(mine)").json()["images"]) == 1


def test_an_answer_names_its_job(nameless: Service) -> None:
    caller = Caller(nameless)
    for named in ("task(mine)", None, ""):
        answer = caller.txt2img(force_task_id=named)
        assert json.loads(answer.json()["info"])["task_id"] == (named or answer.headers["x-request-id"])


def test_a_name_has_200_characters_at_most(nameless: Service) -> None:
    caller, longest = Caller(nameless), "x" * 200
    assert caller.txt2img(force_task_id=longest).status_code == 200
    assert caller.txt2img(force_task_id=f"{longest}x").status_code == 422
    for name in NAMES:
        for method, path in (("GET", "progress"), ("POST", "interrupt")):
            assert caller.ask(method, path, params={name: longest}).status_code == 200
            assert caller.ask(method, path, params={name: f"{longest}x"}).status_code == 422
        assert caller.ask("POST", "interrupt", json={name: f"{longest}x"}).status_code == 422


def test_a_body_of_an_interruption_is_small_json(nameless: Service) -> None:
    caller = Caller(nameless)
    assert caller.ask("POST", "interrupt", json={"more": "x" * 70_000}).status_code == 413
    assert caller.ask("POST", "interrupt", json=["task(mine)"]).status_code == 422
    assert caller.ask("POST", "interrupt", content=b"id_task=mine").status_code == 415


def test_progress_is_kept_by_no_cache(nameless: Service) -> None:
    assert Caller(nameless).ask("GET", "progress").headers["cache-control"] == "no-store"


# ---------------------------------------------------------------------------------------------------------- with keys


def test_with_keys_each_client_sees_and_ends_its_own(keyed: Service) -> None:
    first, second = Caller(keyed, KEYS[0]), Caller(keyed, KEYS[1])
    with first.running(force_task_id="task(mine)") as made:
        assert first.progress()["current_task"] == "task(mine)"
        assert (second.progress()["current_task"], second.progress()["textinfo"]) == (None, None)
        assert second.progress(id_task="task(mine)")["current_task"] is None
        assert second.interrupt() == {}
        assert "textinfo" in second.interrupt(id_task="task(mine)")
        assert images(made) == 1
    with first.running() as made:
        assert first.interrupt() == {}
        assert images(made) == 0


def test_two_clients_may_choose_the_same_name(keyed: Service) -> None:
    first, second = Caller(keyed, KEYS[0]), Caller(keyed, KEYS[1])
    with first.running(force_task_id="1") as made:
        assert second.txt2img(force_task_id="1").status_code == 200
        assert images(made) == 1


def test_the_request_id_names_a_job_of_the_same_key(keyed: Service) -> None:
    first, second = Caller(keyed, KEYS[0]), Caller(keyed, KEYS[1])
    with first.running(force_task_id="task(mine)") as made:
        with ThreadPoolExecutor(1) as threads:
            waits = threads.submit(first.txt2img)
            until(lambda: first.progress()["current_task"] != "task(mine)")
            name = first.progress()["current_task"]
            assert first.progress(id_task=name)["current_task"] == name
            assert second.progress(id_task=name)["current_task"] is None
            assert images(waits) == 1
        assert images(made) == 1
    assert waits.result().headers["x-request-id"] == name


# -------------------------------------------------------------------------------------------------- a private machine


def test_shared_progress_shows_and_ends_the_latest_job_of_an_address(shared: Service) -> None:
    with Caller(shared).running() as made, client(shared) as api:
        until(lambda: api.get_progress()["current_image"] is not None)
        assert api.get_progress()["state"]["job_count"] == 1
        assert api.interrupt() == {}
        assert images(made) == 0
        assert api.get_progress()["textinfo"] is None
        assert len(api.txt2img(prompt="a circle", steps=1, controlnet_units=[unit()]).images) == 1
