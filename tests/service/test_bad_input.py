"""Odd images, odd JSON and odd prompts: each has its answer and costs no worker."""

import json

import httpx
import pytest
from PIL import Image

from tests.fuzz.seeds import file_of
from tests.service.running import Service, encoded, good_request, result_pixels

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def colours() -> Image.Image:
    """Red, green, blue and white quarters, 48 x 32, so that every flip and turn shows."""
    image = Image.new("RGB", (48, 32), WHITE)
    for box, colour in (((0, 0, 24, 16), RED), ((24, 0, 48, 16), GREEN), ((0, 16, 24, 32), BLUE)):
        image.paste(colour, box)
    return image


def test_an_image_is_taken_for_what_a_viewer_shows_whatever_its_type_is_said_to_be(echo: Service) -> None:
    """All else that decoding minds is in `tests/workers/engine/test_codec.py`."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    turned = file_of(colours(), "JPEG", exif=exif.tobytes(), quality=100)
    pixels = result_pixels(echo.generate(input_image_base64="data:image/png;base64," + encoded(turned)))
    assert pixels.shape == (48, 32, 3)
    assert pixels[5, 5].tolist() == pytest.approx(BLUE, abs=8)
    assert pixels[5, 30].tolist() == pytest.approx(RED, abs=8)


def sent(service: Service, body: bytes) -> httpx.Response:
    """The answer to a body of JSON that no library would write."""
    return service.client.post("/generation/", content=body, headers={"Content-Type": "application/json"})


def check(answer: httpx.Response, status: int, problem: str, field: str | None = None) -> None:
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:contour:problem:{problem}"), answer.text
    assert [error["field"] for error in answer.json().get("errors", [])] == ([field] if field else [])


def with_more(more: bytes) -> bytes:
    """A good body with something put before its fields."""
    return b"{" + more + b"," + json.dumps(good_request()).encode()[1:]


def test_of_a_duplicate_key_the_last_counts(echo: Service) -> None:
    body = json.dumps(good_request(request_id=5)).encode()
    assert sent(echo, with_more(b'"request_id": 4')).json()["request_id"] == 7
    assert sent(echo, body[:-1] + b', "request_id": 6}').json()["request_id"] == 6
    check(sent(echo, body[:-1] + b', "text": 1}'), 422, "invalid-field", "text")


@pytest.mark.parametrize("more", [b'"x": 1e300', b'"x": ' + b"9" * 4000, b'"x": ' + b"[" * 500 + b"]" * 500, b'"": {}'])
def test_unknown_fields_may_be_any_json(echo: Service, more: bytes) -> None:
    assert sent(echo, with_more(more)).status_code == 200


PROMPTS = {
    "nothing": ("", 200),
    "spaces": (" " * 100, 200),
    "emoji of several code points": ("👩‍👩‍👧‍👦🏳️‍🌈" * 100, 200),
    "control characters": ("".join(map(chr, range(32))) + "\x7f\x85\u2028", 200),
    "right to left, and overrides": ("\u202emotnoc \u202d مربع أحمر על רקע כחול", 200),
    "what is no character": ("\ufffe\uffff\U0010ffff", 200),
    "as many characters as are taken, of four bytes": ("🎈" * 10_000, 200),
    "one more": ("a" * 10_001, 422),
    "100 KB": ("a red circle " * 8000, 422),
    "100 KB of emoji": ("🎈" * 25_600, 422),
}


@pytest.mark.parametrize(("text", "status"), PROMPTS.values(), ids=PROMPTS.keys())
def test_any_prompt_within_the_limit_is_taken(echo: Service, text: str, status: int) -> None:
    answer = echo.generate(text=text)
    assert answer.status_code == status
    if status == 422:
        check(answer, 422, "invalid-field", "text")


def test_the_requests_above_ended_no_worker_and_logged_no_error(echo: Service) -> None:
    assert [worker["restarts"] for worker in echo.readiness()["workers"]] == [0, 0]
    assert "Traceback" not in "".join(echo.log)
