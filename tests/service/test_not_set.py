"""Unset options are as configured, in each form of unset: missing, null, an empty field, an empty file."""

from typing import Any

import pytest

from app.params import RequestOptions
from tests.service.running import Service, good_request, png

OPTIONAL = RequestOptions.__struct_fields__
FILE = {"input_image": ("x.png", png(64, 64), "image/png")}
EDIT = {"image": ("x.png", png(64, 64), "image/png")}


@pytest.mark.parametrize("field", OPTIONAL)
def test_a_field_that_is_not_set_is_as_configured(echo: Service, field: str) -> None:
    whole = echo.generate().content
    assert echo.generate(**{field: None}).content == whole
    for empty in ({field: ""}, dict.fromkeys(OPTIONAL, ""), {"request_id": "", "random_seed": "", field: ""}):
        form = echo.client.post("/generation/", data={"text": "x", **empty}, files=FILE)
        query = echo.client.post(
            "/generation/", params={"text": "x", **empty}, content=png(64, 64), headers={"Content-Type": "image/png"}
        )
        assert (form.status_code, query.status_code) == (200, 200), (form.text, query.text)
        assert form.json()["request_id"] == query.json()["request_id"] == 0


@pytest.mark.parametrize(
    "empty",
    [
        {name: ""}
        for name in (
            *OPTIONAL,
            "model",
            "n",
            "seed",
            "size",
            "response_format",
            "output_format",
            "background",
            "stream",
        )
    ]
    + [{"stream": ""}, {"mask": ""}, {"size": "1024X1024"}, {"size": "1:1"}, {"size": "large"}, {"partial_images": ""}],
    ids=str,
)
def test_a_field_of_an_edit_that_is_not_set_is_as_configured(echo: Service, empty: dict[str, Any]) -> None:
    made = echo.client.post("/v1/images/edits", data={"prompt": "x", **empty}, files=EDIT)
    assert made.status_code == 200, made.text
    assert made.json()["output_format"] == "png"


def test_an_empty_file_is_none(echo: Service) -> None:
    empty = ("", b"", "application/octet-stream")
    assert echo.client.post("/v1/images/edits", data={"prompt": "x"}, files=EDIT | {"mask": empty}).status_code == 200
    for path, files in (("/generation/", {"input_image": empty}), ("/v1/images/edits", {"image": empty})):
        refused = echo.client.post(path, data={"text": "x", "prompt": "x"}, files=files)
        assert refused.status_code in {400, 422}
        assert "input_image" in refused.text or "image" in refused.text


def test_a_prompt_may_be_empty(echo: Service) -> None:
    assert echo.generate(text="").status_code == 200
    assert echo.client.post("/generation/", data={"text": ""}, files=FILE).status_code == 200
    missing = echo.client.post("/generation/", files=FILE)
    assert (missing.status_code, missing.json()["errors"][0]["field"]) == (422, "text")


def test_required_fields_may_not_be_null(echo: Service) -> None:
    for field in good_request():
        assert echo.generate(**{field: None}).status_code == 422
