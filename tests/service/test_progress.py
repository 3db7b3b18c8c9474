"""Server-sent events: how an image comes along, on the same endpoint."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tests.service.running import Service, good_request, until

STREAM = {"accept": "text/event-stream"}


@dataclass(frozen=True)
class Event:
    name: str
    data: dict[str, Any]


def events(response: httpx.Response) -> Iterator[Event]:
    """As a browser reads them (WHATWG HTML, 9.2.6), but for what is not used here."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield Event(name, json.loads(value))


def streamed(service: Service, **fields: object) -> list[Event]:
    with service.client.stream("POST", "/generation/", json=good_request(**fields), headers=STREAM) as response:
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream")
        assert response.headers["x-request-id"]
        return list(events(response))


@pytest.fixture(scope="module")
def slow() -> Iterator[Service]:
    overrides = {"ENGINE__ECHO__STEPS": 10, "ENGINE__ECHO__STEP_SECONDS": 0.1, "ENGINE__SLOTS": 1}
    with Service("echo", WORKERS__CPU_WORKERS=1, **overrides) as service:
        yield service.wait_until_ready()


def test_steps_and_previews_are_told_and_the_image_is_the_last(slow: Service) -> None:
    seen = streamed(slow)
    assert [each.name for each in seen if each.name not in {"step", "preview", "queued"}] == ["started", "done"]
    steps = [each.data for each in seen if each.name == "step"]
    assert steps == [{"image": 0, "done": n, "total": 10} for n in range(1, 11)]
    previews = [base64.b64decode(each.data["jpeg_base64"]) for each in seen if each.name == "preview"]
    assert len(previews) >= 2
    assert all(cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_COLOR) is not None for each in previews)
    assert seen[-1].data == slow.generate().json()


def test_waiting_requests_get_their_queue_position(slow: Service) -> None:
    with slow.client.stream("POST", "/generation/", json=good_request(), headers=STREAM) as first:
        told = events(first)
        assert next(told).name in {"queued", "started"}
        seen = streamed(slow)
        assert next(each for each in seen if each.name == "queued").data["position"] == 0
        names = [each.name for each in seen]
        assert names.index("queued") < names.index("started") < names.index("done")
        assert list(told)[-1].name == "done"


def test_each_of_several_images_is_told_of(slow: Service) -> None:
    seen = streamed(slow, number_of_images=2)
    assert {each.data["image"] for each in seen if each.name == "started"} == {0, 1}
    assert len(seen[-1].data["output_images_base64"]) == 2


def test_closing_the_connection_cancels(slow: Service) -> None:
    before = slow.sample("contour_requests_total", outcome="abandoned")
    with slow.client.stream("POST", "/generation/", json=good_request(), headers=STREAM) as response:
        assert "step" in (each.name for each in events(response))
    until(lambda: slow.sample("contour_requests_total", outcome="abandoned") == before + 1)
    until(lambda: slow.sample("contour_jobs_running") == 0)


def test_an_invalid_request_is_answered_without_a_stream(slow: Service) -> None:
    response = slow.client.post("/generation/", json=good_request(text=7), headers=STREAM)
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")


def test_later_errors_are_the_last_event(slow: Service) -> None:
    broken = base64.b64encode(base64.b64decode(str(good_request()["input_image_base64"]))[:-30]).decode()
    last = streamed(slow, input_image_base64=broken)[-1]
    assert (last.name, last.data["type"]) == ("error", "urn:contour:problem:invalid-image")
    until(lambda: slow.sample("contour_requests_total", outcome="invalid-image") >= 1)


@pytest.mark.parametrize("headers", [{}, STREAM])
def test_all_of_several_images_are_given_up_when_one_of_them_is_refused(headers: dict[str, str]) -> None:
    # A slot and two places: with a client's half of what is free, the third is too many.
    overrides = {"ENGINE__ECHO__STEPS": 100, "ENGINE__ECHO__STEP_SECONDS": 0.1, "ENGINE__SLOTS": 1}
    with Service("echo", WORKERS__CPU_WORKERS=1, SCHEDULER__MAX_QUEUE=2, **overrides) as service:
        service.wait_until_ready()
        response = service.client.post("/generation/", json=good_request(number_of_images=4), headers=headers)
        assert (response.status_code, response.json()["type"]) == (429, "urn:contour:problem:quota-exceeded")
        assert int(response.headers["Retry-After"]) >= 1
        until(lambda: service.sample("contour_jobs_running") == 0)
        assert service.sample("contour_queue_depth") == 0
