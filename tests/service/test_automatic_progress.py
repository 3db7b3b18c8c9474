"""AUTOMATIC1111's API while images are made: progress, interruption, keys."""

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tests.service.automatic import NOISE, body, client, txt2img, unit
from tests.service.running import PATIENCE, Service, until

KEY = "webui-26e83b2ac5b9e29e"


@pytest.fixture(scope="module")
def slow() -> Iterator[Service]:
    """One slot, ten steps of 0.1 s; with a key."""
    overrides = {"ENGINE__ECHO__STEPS": 10, "ENGINE__ECHO__STEP_SECONDS": 0.1, "ENGINE__SLOTS": 1}
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__API_KEY=KEY, **overrides) as service:
        service.client.headers["Authorization"] = f"Bearer {KEY}"
        yield service.wait_until_ready()


def progress(service: Service, **query: str) -> dict[str, Any]:
    answer: dict[str, Any] = service.client.get("/sdapi/v1/progress", params=query).json()
    return answer


def running(service: Service, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Progress, when it is enough."""
    seen: list[dict[str, Any]] = []

    def is_enough() -> bool:
        seen.append(progress(service))
        return enough(seen[-1])

    until(is_enough)
    return seen[-1]


def test_progress_moves_and_shows_the_image(slow: Service) -> None:
    with ThreadPoolExecutor(1) as threads, client(slow, username="any", password=KEY) as api:
        assert api.get_progress()["state"]["job_count"] == 0
        made = threads.submit(api.txt2img, prompt="a circle", controlnet_units=[unit()])
        seen = running(slow, lambda told: told["progress"] >= 0.2 and told["current_image"] is not None)
        assert 0.2 <= seen["progress"] < 1
        assert seen["state"]["job_count"] == 1
        assert seen["state"]["sampling_step"] == round(20 * seen["progress"])
        assert seen["state"]["sampling_steps"] == 20  # what this client sends
        assert 0 < seen["eta_relative"] < PATIENCE
        preview = base64.b64decode(seen["current_image"])
        assert cv2.imdecode(np.frombuffer(preview, np.uint8), cv2.IMREAD_COLOR) is not None
        assert progress(slow, skip_current_image="true")["current_image"] is None
        assert np.array_equal(np.asarray(made.result().image), NOISE)
        assert api.get_progress() == {**api.get_progress(), "progress": 0.0, "eta_relative": 0.0}
        api.util_wait_for_ready()


def test_of_several_images_the_share_of_all_steps_is_told(slow: Service) -> None:
    with ThreadPoolExecutor(1) as threads:
        made = threads.submit(txt2img, slow, body({"batch_size": 2}))
        begun = running(slow, lambda told: told["state"]["job_count"] == 2 and told["progress"] > 0)
        assert begun["textinfo"] is None  # one of them runs, so the request waits no more
        half = running(slow, lambda told: told["state"]["job_no"] == 1)
        assert half["progress"] >= 0.5
        assert len(made.result().json()["images"]) == 2


def test_of_several_images_that_wait_the_place_of_the_first_is_told(slow: Service) -> None:
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(txt2img, slow, body())
        running(slow, lambda told: told["progress"] > 0)
        made = threads.submit(txt2img, slow, body({"batch_size": 3, "force_task_id": "task(three)"}))
        told: list[dict[str, Any]] = []

        def waits() -> bool:
            told.append(progress(slow, id_task="task(three)"))
            return (told[-1]["textinfo"] or "").startswith("Waiting")  # until it is there, another text says so

        until(waits)
        assert told[-1]["textinfo"] == "Waiting; 0 images start before yours."
        assert len(made.result().json()["images"]) == 3
        assert first.result().status_code == 200


def test_interrupting_gives_no_image_and_frees_the_worker(slow: Service) -> None:
    before = slow.sample("contour_requests_total", outcome="abandoned")
    with ThreadPoolExecutor(1) as threads, client(slow, username="any", password=KEY) as api:
        made = threads.submit(api.txt2img, prompt="a circle", batch_size=3, controlnet_units=[unit()])
        running(slow, lambda told: told["progress"] > 0)
        assert api.interrupt() == {}
        result = made.result()
    assert (result.images, result.info["notes"]) == ([], ["The request was interrupted."])
    assert slow.sample("contour_requests_total", outcome="abandoned") == before + 1
    until(lambda: slow.sample("contour_jobs_running") == 0)
    assert slow.client.post("/sdapi/v1/interrupt").json() == {}


def test_leaving_cancels_and_is_forgotten(slow: Service) -> None:
    before = slow.sample("contour_requests_total", outcome="abandoned")
    with pytest.raises(httpx.ReadTimeout):
        slow.client.post("/sdapi/v1/txt2img", json=body(), timeout=0.3)
    until(lambda: slow.sample("contour_requests_total", outcome="abandoned") == before + 1)
    until(lambda: slow.sample("contour_jobs_running") == 0)
    assert progress(slow)["state"]["job_count"] == 0


def test_a_key_is_asked_for_everywhere_and_comes_as_the_password(slow: Service) -> None:
    for path in ("progress", "options", "sd-models", "samplers"):
        answer = httpx.get(f"{slow.url}/sdapi/v1/{path}")
        assert (answer.status_code, answer.json()["error"]) == (401, "An API key is needed")
        assert httpx.get(f"{slow.url}/sdapi/v1/{path}", auth=("any", "wrong")).status_code == 401
        assert httpx.get(f"{slow.url}/sdapi/v1/{path}", auth=("any", KEY)).status_code == 200
    assert httpx.post(f"{slow.url}/sdapi/v1/txt2img", json=body()).status_code == 401
