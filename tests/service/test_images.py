"""Images as clients have them, by every way in."""

import struct
from collections.abc import Callable

import httpx
import pytest
from PIL import Image

from tests.fuzz.seeds import file_of
from tests.service.automatic import body
from tests.service.running import Service, encoded, good_request

PNG = {"Content-Type": "image/png"}


def panorama(width: int, height: int) -> bytes:
    """A header that declares a size; the pixels are of another, so that an answer about the size came without them."""
    data = file_of(Image.new("RGB", (1, 1)), "PNG")
    return data[:16] + struct.pack(">II", width, height) + data[24:]


WAYS: dict[str, Callable[[httpx.Client, bytes], httpx.Response]] = {
    "generation, JSON": lambda client, data: client.post(
        "/generation/", json=good_request(input_image_base64=encoded(data))
    ),
    "generation, raw": lambda client, data: client.post(
        "/generation/", params={"text": "a", "random_seed": 1}, content=data, headers=PNG
    ),
    "generation, two images": lambda client, data: client.post(
        "/generation/", json=good_request(input_image_base64=encoded(data), number_of_images=2)
    ),
    "edges, JSON": lambda client, data: client.post("/edges", json={"input_image_base64": encoded(data)}),
    "edges, raw": lambda client, data: client.post("/edges", content=data, headers=PNG),
    "edits": lambda client, data: client.post(
        "/v1/images/edits", data={"prompt": "a"}, files={"image": ("a.png", data, "image/png")}
    ),
    "txt2img": lambda client, data: client.post("/sdapi/v1/txt2img", json=body(image=encoded(data))),
}


@pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(("size", "shape"), [((5000, 100), "5000 x 100 (50:1)"), ((100, 5000), "100 x 5000 (1:50)")])
def test_a_panorama_that_would_be_stretched_is_refused_with_the_shapes_that_work(
    echo: Service, ask: Callable[[httpx.Client, bytes], httpx.Response], size: tuple[int, int], shape: str
) -> None:
    answer = ask(echo.client, panorama(*size))
    assert answer.status_code in {400, 422}
    assert (
        f"This image is {shape}; with a short side of 512 and a long side of 1024 pixels, shapes up to 32:1 work. "
        "Crop it or add borders."
    ) in answer.text


@pytest.mark.parametrize("size", [(3200, 100), (100, 3200)])
def test_the_longest_shape_that_works_is_taken(echo: Service, size: tuple[int, int]) -> None:
    data = file_of(Image.new("RGB", size, (30, 60, 200)), "PNG")
    assert echo.generate(input_image_base64=encoded(data)).status_code == 200
    edges = WAYS["edges, raw"](echo.client, data)
    assert edges.status_code == 200
    assert struct.unpack(">II", edges.content[16:24]) == tuple(1024 if side == 3200 else 64 for side in size)


def test_a_photograph_without_its_end_marker_is_taken(echo: Service) -> None:
    data = file_of(Image.linear_gradient("L"), "JPEG")
    whole, cut = (echo.generate(input_image_base64=encoded(part)) for part in (data, data[:-2]))
    assert (whole.status_code, cut.status_code) == (200, 200)
    assert whole.json()["output_image_base64"] == cut.json()["output_image_base64"]
    assert echo.generate(input_image_base64=encoded(data[:-9])).status_code == 422
