"""A request may come as JSON, as a form or as an image alone, and its answer as JSON or as an image."""

import base64

import httpx
import numpy as np
import pytest

from tests.service.running import Service, file_of, good_request, pixels_of

FORM = {"text": "a circle", "request_id": "7", "random_seed": "5"}
MAGIC = {"image/png": b"\x89PNG", "image/jpeg": b"\xff\xd8\xff", "image/webp": b"RIFF"}
IMAGE = file_of(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8))


def alone(service: Service, image: bytes, accept: str = "image/png", **query: str | float) -> httpx.Response:
    headers = {"content-type": "image/png", "accept": accept}
    return service.client.post("/generation/", content=image, params={"text": "a circle", **query}, headers=headers)


def test_a_form_is_taken_and_answered_like_json(echo: Service) -> None:
    response = echo.client.post("/generation/", data=FORM, files={"input_image": ("in.png", IMAGE, "image/png")})
    assert response.json().keys() == {"request_id", "output_image_base64"}
    assert response.json()["request_id"] == 7
    assert np.array_equal(pixels_of(base64.b64decode(response.json()["output_image_base64"])), pixels_of(IMAGE))


def test_a_form_larger_than_is_kept_in_memory_by_default_comes_through(echo: Service) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (1000, 1000, 3), np.uint8)
    response = echo.client.post(
        "/generation/", data=FORM, files={"input_image": file_of(noise)}, headers={"accept": "image/png"}
    )
    assert np.array_equal(pixels_of(response.content), noise)


def test_an_image_alone_goes_in_and_an_image_comes_out(echo: Service) -> None:
    response = alone(echo, IMAGE)
    assert response.headers["content-type"] == "image/png"
    assert np.array_equal(pixels_of(response.content), pixels_of(IMAGE))
    assert "total;dur=" in response.headers["server-timing"]


@pytest.mark.parametrize("kind", list(MAGIC))
def test_the_answer_is_of_the_kind_that_was_asked_for(echo: Service, kind: str) -> None:
    response = echo.client.post("/generation/", json=good_request(), headers={"accept": kind})
    assert (response.status_code, response.headers["content-type"]) == (200, kind)
    assert response.content.startswith(MAGIC[kind])
    assert pixels_of(response.content).shape == (64, 64, 3)


def test_any_kind_of_image_is_the_configured_kind(echo: Service) -> None:
    response = echo.client.post("/generation/", json=good_request(), headers={"accept": "image/*"})
    configured = echo.generate().json()["output_image_base64"]
    assert base64.b64encode(response.content).decode() == configured


def test_several_images_come_in_order(echo: Service) -> None:
    answer = echo.generate(number_of_images=3).json()
    assert answer["output_images_base64"] == [answer["output_image_base64"]] * 3
    assert echo.sample("contour_stage_seconds_count", stage="encode") >= 3


@pytest.mark.parametrize(
    ("field", "wrong", "told"),
    [
        ("steps", 0, "from 1 to 50"),
        ("steps", 51, "from 1 to 50"),
        ("guidance_scale", -0.1, "from 0 to 50"),
        ("control_scale", 2.5, "from 0 to 2"),
        ("canny_low", 0, "from 1 to 2000"),
        ("canny_high", 2001, "from 1 to 2000"),
        ("temperature", 0.0, "above 0 and at most 1"),
        ("temperature", 1.01, "above 0 and at most 1"),
        ("number_of_images", 9, "from 1 to 8"),
        ("priority", 11, "from -10 to 10"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(echo: Service, field: str, wrong: float, told: str) -> None:
    for response in (echo.generate(**{field: wrong}), alone(echo, IMAGE, "application/json", **{field: wrong})):
        assert response.status_code == 422
        assert response.json()["errors"] == [{"field": field, "detail": f"{field} is {wrong}; it must be {told}."}]


@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf", "1e999", " ", "0x1", "one"])
def test_invalid_numbers_are_refused(echo: Service, wrong: str) -> None:
    response = alone(echo, IMAGE, guidance_scale=wrong)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "guidance_scale")


def test_several_images_have_no_room_in_one_image(echo: Service) -> None:
    response = alone(echo, IMAGE, number_of_images=2)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "number_of_images")


def test_a_form_without_its_image_is_told_so(echo: Service) -> None:
    response = echo.client.post("/generation/", data=FORM, files={"picture": IMAGE})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "input_image")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--y\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\ncontent-disposition: form-data\r\n\r\nno name\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n' * 40),
    ],
)
def test_a_broken_form_is_told_so(echo: Service, kind: str, body: bytes) -> None:
    response = echo.client.post("/generation/", content=body, headers={"content-type": kind})
    assert (response.status_code, response.json()["type"]) == (400, "urn:contour:problem:malformed-form")


def test_a_form_is_refused_at_the_limit_of_bodies(echo: Service) -> None:
    files = {"input_image": bytes(33 * 2**20)}
    assert echo.client.post("/generation/", data=FORM, files=files).status_code == 413


def test_the_image_alone_is_refused_when_it_is_none(echo: Service) -> None:
    response = alone(echo, b"no image", accept="application/json")
    assert (response.status_code, response.json()["type"]) == (422, "urn:contour:problem:invalid-image")
