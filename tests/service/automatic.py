"""Requests for the tests of AUTOMATIC1111's API: by a client from PyPI that many scripts use, and by plain HTTP."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import webuiapi
from PIL import Image

from tests.service.running import Pixels, Service, file_of

NOISE = np.random.default_rng(4).integers(0, 256, (96, 64, 3), np.uint8)
ENCODED = base64.b64encode(file_of(NOISE)).decode()


@contextmanager
def client(service: Service, **credentials: str) -> Iterator[Any]:
    made = webuiapi.WebUIApi(baseurl=f"{service.url}/sdapi/v1", **credentials)
    with made.session:
        yield made


def unit(pixels: Pixels = NOISE, **fields: Any) -> Any:
    return webuiapi.ControlNetUnit(
        image=Image.fromarray(pixels), module="canny", model="control_canny [d14c016b]", **fields
    )


def body(fields: dict[str, Any] | None = None, **of_unit: Any) -> dict[str, Any]:
    """A request by hand."""
    given = {"image": ENCODED, "module": "canny", **of_unit}
    return {"prompt": "a circle", "alwayson_scripts": {"controlnet": {"args": [given]}}, **(fields or {})}


def txt2img(service: Service, request: dict[str, Any]) -> httpx.Response:
    return service.client.post("/sdapi/v1/txt2img", json=request)
