"""Edits as JSON, the model's names, and paths with a slash at their end: what OpenAI's clients send, and more."""

import base64
from typing import Any

import cv2
import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI

from tests.service.running import Service, file_of, pixels_of, png

IMAGE = file_of(np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8))
ENCODED = base64.b64encode(IMAGE).decode()
URI = f"data:image/png;base64,{ENCODED}"
KEY = "openai-2cf24dba5fb0a30e"


def edit(service: Service, path: str = "/v1/images/edits", **body: Any) -> httpx.Response:
    return service.client.post(path, json={"prompt": "a circle", **body})


def check_made(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    for each in body["data"]:
        assert np.array_equal(pixels_of(base64.b64decode(each["b64_json"])), pixels_of(IMAGE))
    return body


IMAGES: dict[str, dict[str, Any]] = {
    "a reference": {"images": [{"image_url": URI}]},
    "a reference with a null": {"images": [{"image_url": URI, "file_id": None}]},
    "a reference as in chats": {"images": [{"type": "image_url", "image_url": {"url": URI}}]},
    "a reference without a list": {"images": {"image_url": URI}},
    "a list of texts": {"images": [URI]},
    "a text": {"image": URI},
    "base64 alone": {"image": ENCODED},
    "a list by its old name": {"image": [URI]},
    "a name as forms have it": {"image[]": [URI]},
    "nulls beside it": {"images": [{"image_url": URI}], "image": None, "mask": None, "n": None, "seed": None},
    "empty things beside it": {"images": [{"image_url": URI}], "mask": {"image_url": None}, "model": "", "size": ""},
}


CLEAR = cv2.imencode(".png", np.zeros((2, 2, 4), np.uint8))[1].tobytes()
CLEAR_URI = f"data:image/png;base64,{base64.b64encode(CLEAR).decode()}"
IMAGES["a mask of nothing"] = {"image": URI, "mask": {"image_url": CLEAR_URI}}


@pytest.mark.parametrize("body", IMAGES.values(), ids=IMAGES)
def test_an_edit_comes_as_json(echo: Service, body: dict[str, Any]) -> None:
    check_made(edit(echo, **body))


def test_the_fields_of_a_form_are_those_of_json(echo: Service) -> None:
    image: dict[str, Any] = {"images": [{"image_url": URI}]}
    body = check_made(edit(echo, n=2, seed=41, size="auto", model="gpt-image-1", **image))
    assert [each["seed"] for each in body["data"]] == [41, 42]
    stream = edit(echo, stream=True, seed=5, **image)
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert '"type":"image_edit.completed"' in stream.text


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "images", "The body has 0 images; send one, as images: [{"),
        ({"images": []}, "images", "The body has 0 images"),
        ({"images": [{"image_url": URI}, {"image_url": URI}]}, "images", "The body has 2 images; send one"),
        ({"images": [{"image_url": "https://example.com/a.png"}]}, "images[0].image_url", "does not fetch images"),
        ({"image": "http://example.com/a.png"}, "image", "image is a URL; this service does not fetch images"),
        ({"images": [{"file_id": "file-abc"}]}, "images[0].file_id", "this service keeps no files"),
        ({"images": [{}]}, "images[0].image_url", "must be text with the image in it"),
        ({"images": [5]}, "images[0]", "must be text with the image in it"),
        ({"images": [{"image_url": URI}], "mask": {"image_url": URI}}, "mask", "Masks are not supported"),
        ({"image": URI, "mask": {"image_url": "https://a.com/m.png"}}, "mask.image_url", "does not fetch images"),
        ({"image": URI, "mask": {"file_id": "file-abc"}}, "mask.file_id", "this service keeps no files"),
        ({"images": [{"image_url": URI}], "n": 9}, "n", "n is 9; it must be from 1 to 8."),
        ({"images": [{"image_url": URI}], "n": "x"}, "n", "n is 'x'; it must be a whole number."),
        ({"images": [{"image_url": URI}], "prompt": None}, "prompt", "prompt is missing"),
        ({"images": [{"image_url": URI}], "model": "sdxl"}, "model", "There is no model 'sdxl' here"),
    ],
)
def test_problems_of_an_edit_in_json_are_named(echo: Service, body: dict[str, Any], param: str, words: str) -> None:
    answer = edit(echo, **body)
    assert answer.status_code in {400, 404}
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_an_edit_of_json_tells_of_fields_by_other_names(echo: Service) -> None:
    answer = edit(echo, image=URI, cfg_scale=3, num_inference_steps=None, strength=0.5)
    assert [told.split()[0] for told in check_made(answer)["warnings"]] == ["cfg_scale", "strength"]


def test_all_faults_of_an_edit_of_json_come_in_one_answer(echo: Service) -> None:
    answer = echo.client.post("/v1/images/edits", json={"images": [{"file_id": "f"}], "n": "x", "steps": 99})
    message = answer.json()["error"]["message"]
    for words in ("prompt is missing", "n is 'x'", "steps is 99", "keeps no files"):
        assert words in message


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("echo", True),
        ("gpt-image-1", True),
        ("gpt-image-1-mini", True),
        ("gpt-image-1.5", True),
        ("chatgpt-image-latest", True),
        ("dall-e-2", True),
        ("dall-e-3", True),
        ("gpt-4o", False),
        ("sdxl", False),
        ("owner/gpt-image-1", False),
        ("Echo", False),
    ],
)
def test_a_model_can_be_retrieved_if_edits_take_its_name(echo: Service, name: str, known: bool) -> None:
    with OpenAI(base_url=f"{echo.url}/v1", api_key=KEY, max_retries=0) as ours:
        if known:
            assert ours.models.retrieve(name).id == name
            assert ours.images.edit(image=IMAGE, prompt="x", model=name).model_extra == {"model": "echo"}
        else:
            with pytest.raises(openai.NotFoundError):
                ours.models.retrieve(name)
            with pytest.raises(openai.NotFoundError):
                ours.images.edit(image=IMAGE, prompt="x", model=name)
        assert all(ours.models.retrieve(each.id).id == each.id for each in ours.models.list())


GETS = (
    "/healthz", "/readyz", "/metrics", "/openapi.json", "/settings.json", "/v1/models", "/v1/models/echo",
    "/v1/models/dall-e-2", "/sdapi/v1/progress", "/sdapi/v1/options", "/sdapi/v1/sd-models", "/sdapi/v1/samplers",
    "/controlnet/version",
    "/controlnet/module_list",
)  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_lookups_work_with_and_without_a_slash(echo: Service, path: str) -> None:
    without, with_slash = echo.client.get(path), echo.client.get(f"{path}/")
    assert (without.status_code, with_slash.status_code) == (200, 200)
    assert with_slash.headers["content-type"] == without.headers["content-type"]
    if path not in {"/metrics", "/readyz"}:  # these tell of what goes on
        assert with_slash.content == without.content


def test_requests_work_with_and_without_a_slash(echo: Service) -> None:
    file = {"image": ("in.png", IMAGE, "image/png")}
    unit = {"module": "canny", "image": ENCODED}
    txt2img = {"prompt": "x", "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    for slash in ("", "/"):
        client = echo.client
        check_made(client.post(f"/v1/images/edits{slash}", data={"prompt": "x"}, files=file))
        check_made(edit(echo, f"/v1/images/edits{slash}", images=[{"image_url": URI}]))
        assert "send one to /v1/images/edits" in client.post(f"/v1/images/generations{slash}", json={}).text
        assert client.post(f"/sdapi/v1/txt2img{slash}", json=txt2img).status_code == 200
        assert client.post(f"/sdapi/v1/interrupt{slash}").status_code == 200
        assert client.post(f"/sdapi/v1/options{slash}", json={}).status_code == 200
        for path in (f"/edges{slash}", f"/generation{slash}?text=x"):
            assert client.post(path, content=png(64, 64), headers={"Content-Type": "image/png"}).status_code == 200


def test_another_method_with_a_slash_is_told_which_are_taken(echo: Service) -> None:
    answer = echo.client.get("/v1/images/edits/")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_the_docs_with_a_slash_are_where_their_files_are_found(echo: Service) -> None:
    answer = echo.client.get("/docs/", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (200, "/docs")
