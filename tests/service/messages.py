"""Requests for the tests of messages, in every interface, and readers of the answers."""

import base64
import re
from collections.abc import Callable
from typing import Any

import httpx

from tests.service.running import Service, good_request, png

PNG = png(64, 64)
ENCODED = base64.b64encode(PNG).decode()
NAME = "input_image_base64"
# Words of the libraries that read requests. None of them helps who has never heard of these.
PARSERS = re.compile(
    r"Expected `|got `|msgspec|\$\.|array|malformed|\bobject missing|codec can't|Non-base64|invalid character|"
    r"Invalid enum|validation|Traceback|is None\b|Errno|incorrect padding|truncated",
    re.IGNORECASE,
)
FOOT = {"Content-Type": "application/json"}


def generation(service: Service, image: Any) -> httpx.Response:
    return service.client.post("/generation/", json=good_request(input_image_base64=image))


def edges(service: Service, image: Any) -> httpx.Response:
    return service.client.post("/edges", json={NAME: image})


def txt2img(service: Service, image: Any) -> httpx.Response:
    unit = {"module": "canny", "image": image}
    return service.client.post(
        "/sdapi/v1/txt2img", json={"prompt": "a circle", "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    )


def form(service: Service, image: Any) -> httpx.Response:
    files = {"input_image": (None, str(image)), "text": (None, "a circle")}
    return service.client.post("/generation/", files=files)


def edit_form(service: Service, image: Any) -> httpx.Response:
    return service.client.post("/v1/images/edits", files={"image": (None, str(image)), "prompt": (None, "a circle")})


INTERFACES: dict[str, tuple[Callable[[Service, Any], httpx.Response], str]] = {
    "/generation/": (generation, NAME),
    "/edges": (edges, NAME),
    "txt2img": (txt2img, "image"),
    "a form": (form, "input_image"),
    "an edit": (edit_form, "image"),
}


def told(answer: httpx.Response) -> str:
    """The message, in whichever form an interface has it; in no parser's words, and small."""
    assert 400 <= answer.status_code < 500, answer.text
    assert len(answer.content) <= 4096
    body = answer.json()
    message: str = body["error"]["message"] if isinstance(body.get("error"), dict) else body["detail"]
    assert not PARSERS.search(message), message
    return message


def blamed(answer: httpx.Response) -> list[str]:
    """The fields that an answer names, as far as its interface has a place for them."""
    body = answer.json()
    if isinstance(body.get("error"), dict):
        return [body["error"]["param"]]
    if "errors" in body and isinstance(body["errors"], list):
        return [each["field"] for each in body["errors"]]
    return [word for word in ("image",) if word in body["detail"]]
