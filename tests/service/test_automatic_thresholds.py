"""`engine.canny.auto`: what a request without thresholds gets, and which thresholds it is told."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.service.automatic import body, txt2img
from tests.service.running import ROOT, Service, file_of
from tests.workers.contours import pixels_of
from tests.workers.infotext import parameters_of
from workers.engine import codec
from workers.engine.codec import Pixels
from workers.engine.config import Canny

SIDE = 256
FAINT: Pixels = (
    codec.decode_to((ROOT / "example/demo_model/photographs/portrait.jpg").read_bytes(), SIDE, SIDE) * 0.3
).astype(np.uint8)
EDGES, (LOW, HIGH) = codec.edges_and_thresholds(FAINT, Canny(auto=True))
IMAGE = file_of(FAINT)
CONTROL = "Module: canny, Model: demo-canny, Weight: 1, Threshold A: {}, Threshold B: {}"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    small = {"ENGINE__RUNTIME": "torch", "ENGINE__SLOTS": 1, "WORKERS__CPU_WORKERS": 1, "WORKERS__THREADS": 1}
    with Service("demo", ENGINE__CANNY__AUTO="true", ENGINE__OUTPUT__FORMAT="png", **small) as service:
        yield service.wait_until_ready()


def edges(service: Service, **query: int) -> Pixels:
    answer = service.client.post("/edges", content=IMAGE, params=query, headers={"Content-Type": "image/png"})
    return pixels_of(answer.content)


def generate(service: Service, **fields: object) -> dict[str, Any]:
    image = base64.b64encode(IMAGE).decode()
    answer = service.generate(input_image_base64=image, random_seed=5, steps=2, embed_metadata="full", **fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(answer: dict[str, Any]) -> tuple[str, str | None]:
    found = parameters_of(base64.b64decode(answer["output_image_base64"]))
    return found["ControlNet 0"], found.get("Canny thresholds")


def test_edges_follow_the_image_unless_a_threshold_is_named(service: Service) -> None:
    assert (LOW, HIGH) != (100, 200)
    assert np.array_equal(edges(service), EDGES)
    assert np.array_equal(edges(service, canny_low=LOW, canny_high=HIGH), EDGES)
    assert np.array_equal(edges(service, canny_low=100), codec.edges(FAINT, Canny()))


def test_an_image_says_which_thresholds_it_was_made_with(service: Service) -> None:
    automatic, named = generate(service), generate(service, canny_low=LOW, canny_high=HIGH)
    assert (automatic["canny_low"], automatic["canny_high"]) == (LOW, HIGH)
    assert said(automatic) == (CONTROL.format(LOW, HIGH), "automatic")
    assert "canny_low" not in named
    assert said(named) == (CONTROL.format(LOW, HIGH), None)
    first, second = (codec.decode(base64.b64decode(each["output_image_base64"])) for each in (automatic, named))
    assert np.array_equal(first, second)
    assert said(generate(service, canny_high=200)) == (CONTROL.format(100, 200), None)


def test_an_edge_map_has_no_thresholds(service: Service) -> None:
    answer = generate(service, control_image="edges")
    assert "canny_low" not in answer
    assert said(answer) == ("Module: none, Model: demo-canny, Weight: 1", None)


def test_the_web_uis_clients_are_told(service: Service) -> None:
    answer = txt2img(
        service, body({"prompt": "a circle", "seed": 5, "steps": 2}, image=base64.b64encode(IMAGE).decode())
    )
    info = json.loads(answer.json()["info"])
    assert info["extra_generation_params"]["ControlNet 0"].endswith(f"Threshold A: {LOW}, Threshold B: {HIGH}")
    assert f"Threshold A: {LOW}, Threshold B: {HIGH}" in info["infotexts"][0]
