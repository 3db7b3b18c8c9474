"""An image that is an edge map already, in every form of a request, with the real model."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.running import Pixels, Service, encoded, file_of, good_request, pixels_of

TEXT = {"text": "a red circle on a blue background", "random_seed": "1234"}
EDGES = {"control_image": "edges", "output_format": "png"}


def edge_map() -> bytes:
    """A ring of grey levels, white on black, 256 pixels wide: as it is, the model would find two edges for each."""
    y, x = np.mgrid[:256, :256] - 128.0
    circle = np.clip(255 - 40 * np.abs(np.hypot(x, y) - 70), 0, 255).astype(np.uint8)
    return file_of(np.stack([circle] * 3, axis=-1))


def by_json(service: Service, **options: object) -> httpx.Response:
    return service.generate(input_image_base64=encoded(edge_map()), **options)


def by_form(service: Service, **options: str) -> httpx.Response:
    return service.client.post("/generation/", data=TEXT | options, files={"input_image": edge_map()})


def by_query(service: Service, **options: str) -> httpx.Response:
    headers = {"content-type": "image/png"}
    return service.client.post("/generation/", params=TEXT | options, content=edge_map(), headers=headers)


def by_stream(service: Service, **options: object) -> httpx.Response:
    body = good_request(input_image_base64=encoded(edge_map()), **options)
    return service.client.post("/generation/", json=body, headers={"accept": "text/event-stream"})


def by_edits(service: Service, **options: str) -> httpx.Response:
    form = {"prompt": TEXT["text"], "seed": TEXT["random_seed"], **options}
    return service.client.post("/v1/images/edits", data=form, files={"image": edge_map()})


def in_json(response: httpx.Response) -> Any:
    return response.json()["output_image_base64"]


def in_stream(response: httpx.Response) -> Any:
    *_, event, data = response.text.strip().splitlines()
    assert event == "event: done"
    return json.loads(data.removeprefix("data: "))["output_image_base64"]


WAYS: dict[str, tuple[Callable[..., httpx.Response], Callable[[httpx.Response], Any]]] = {
    "JSON": (by_json, in_json),
    "form": (by_form, in_json),
    "query": (by_query, in_json),
    "stream": (by_stream, in_stream),
    "edits": (by_edits, lambda response: response.json()["data"][0]["b64_json"]),
}


@pytest.fixture(scope="module")
def expected(demo: Service) -> Pixels:
    return pixels_of(base64.b64decode(in_json(by_json(demo, **EDGES))))


@pytest.mark.parametrize(("ask", "image_in"), WAYS.values(), ids=WAYS.keys())
def test_every_form_of_a_request_may_say_so(
    demo: Service, expected: Pixels, ask: Callable[..., httpx.Response], image_in: Callable[[httpx.Response], Any]
) -> None:
    response = ask(demo, **EDGES)
    assert response.status_code == 200, response.text
    assert np.array_equal(pixels_of(base64.b64decode(image_in(response))), expected)


def test_it_is_another_image_than_that_of_the_photo(demo: Service, expected: Pixels) -> None:
    for options in ({}, {"control_image": "photo"}, {"control_image": None}):
        photo = pixels_of(base64.b64decode(in_json(by_json(demo, output_format="png", **options))))
        assert np.abs(photo.astype(int) - expected).mean() > 1


@pytest.mark.parametrize(("ask", "image_in"), WAYS.values(), ids=WAYS.keys())
def test_another_kind_of_image_is_refused_with_those_there_are(
    echo: Service, ask: Callable[..., httpx.Response], image_in: object
) -> None:
    response = ask(echo, control_image="depth")
    assert response.status_code in {400, 422}
    assert "control_image is 'depth'; it must be photo or edges." in response.text


@pytest.mark.parametrize(("ask", "image_in"), WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("given", [("canny_low",), ("canny_high",), ("canny_low", "canny_high")], ids=" ".join)
def test_thresholds_for_edges_that_nobody_searches_for_are_refused(
    echo: Service, ask: Callable[..., httpx.Response], image_in: object, given: tuple[str, ...]
) -> None:
    response = ask(echo, control_image="edges", **dict.fromkeys(given, "50"))
    assert response.status_code in {400, 422}
    text = f"control_image is edges: no edges are detected in an edge map. Leave out {' and '.join(given)}."
    assert text in response.text
    assert ask(echo, control_image="photo", **dict.fromkeys(given, "50")).status_code == 200


def test_an_engine_without_a_model_takes_it_too(echo: Service) -> None:
    assert by_json(echo, control_image="edges").status_code == 200
