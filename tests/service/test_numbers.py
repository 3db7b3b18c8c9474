"""Numbers that are none, or too large to be one, in every form of a request: refused in plain words."""

import json
from pathlib import Path

import httpx
import pytest

from tests.cli.command import generate
from tests.service.running import Service, good_request, png

NUMBERS = ("temperature", "guidance_scale", "control_scale", "steps", "random_seed", "canny_low", "priority")
NO_NUMBERS = ("nan", "NaN", "inf", "-Infinity", "1e400", "-1e400", "0x10", "1_0", "five", "9" * 700)


def with_value(field: str, value: str) -> str:
    """A body of JSON with a field of a value that is written so."""
    return json.dumps(good_request(**{field: "HERE"})).replace('"HERE"', value)


def post_json(service: Service, path: str, body: str) -> httpx.Response:
    return service.client.post(path, content=body, headers={"content-type": "application/json"})


def is_plain(text: str, field: str) -> bool:
    return text.startswith(f"{field} is ") and "; it must be " in text and len(text) < 300


@pytest.mark.parametrize("field", NUMBERS)
def test_invalid_numbers_are_refused_by_name_in_form_query_and_json(echo: Service, field: str) -> None:
    for value in NO_NUMBERS:
        given = {"text": "a", field: value}
        answers = (
            echo.client.post("/generation/", data=given, files={"input_image": png(64, 64)}),
            echo.client.post("/generation/", params=given, content=png(64, 64), headers={"content-type": "image/png"}),
            echo.generate(**{field: value}),
        )
        for answer in answers:
            assert answer.status_code == 422, (value, answer.text)
            assert is_plain(answer.json()["detail"], field), answer.text


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_that_is_too_large_in_json_is_refused_by_name(echo: Service, field: str) -> None:
    for value in ("1e400", "-1e400", "9" * 400, "true"):
        answer = post_json(echo, "/generation/", with_value(field, value))
        assert answer.status_code == 422, (value, answer.text)
        assert is_plain(answer.json()["detail"], field), answer.text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_pythons_nan_and_infinity_are_not_json(echo: Service, value: str) -> None:
    for path in ("/generation/", "/edges"):
        answer = post_json(echo, path, with_value("canny_low", value))
        assert answer.status_code == 400
        assert f"found '{value}'. JSON has no such number; leave the field out." in answer.json()["detail"]


@pytest.mark.parametrize("field", ["steps", "temperature", "n", "seed", "output_compression", "partial_images"])
def test_openais_interface_refuses_them_too(echo: Service, field: str) -> None:
    for value in NO_NUMBERS:
        form = {"prompt": "a", "output_format": "jpeg", field: value}
        answer = echo.client.post("/v1/images/edits", data=form, files={"image": png(64, 64)})
        assert answer.status_code == 400, (value, answer.text)
        assert is_plain(answer.json()["error"]["message"], field), answer.text


def test_so_does_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(64, 64))
    for value in ("nan", "inf", "1e400"):
        done = generate(path, "--temperature", value)
        assert done.returncode == 2
        assert "it must be above 0 and at most 1" in done.stderr
