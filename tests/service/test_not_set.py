"""Unset options are as configured, in each form of unset: missing, null, an empty field, an empty file."""

from typing import Any

import pytest

from app.api.automatic1111.detect import DetectRequest
from app.api.automatic1111.structs import ControlNetUnit, Txt2ImgRequest
from app.api.openai.structs import EditForm
from app.params import RequestOptions
from tests.service.automatic import ENCODED, body
from tests.service.running import Service, good_request, png

OPTIONAL = RequestOptions.__struct_fields__
FILE = {"input_image": ("x.png", png(64, 64), "image/png")}
EDIT = {"image": ("x.png", png(64, 64), "image/png")}


@pytest.mark.parametrize("field", OPTIONAL)
def test_a_field_that_is_not_set_is_as_configured(echo: Service, field: str) -> None:
    whole = echo.generate().content
    assert echo.generate(**{field: None}).content == echo.generate(**{field: ""}).content == whole
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


@pytest.mark.parametrize("field", [*EditForm.__struct_fields__, "mask"])
def test_a_field_of_an_edit_in_json_that_is_empty_is_not_set(echo: Service, field: str) -> None:
    edit = {"prompt": "x", "images": [{"image_url": f"data:image/png;base64,{ENCODED}"}], field: ""}
    made = echo.client.post("/v1/images/edits", json=edit)
    assert made.status_code == 200, made.text


@pytest.mark.parametrize("field", sorted({*Txt2ImgRequest.__struct_fields__} - {"alwayson_scripts"}))
def test_a_field_of_txt2img_that_is_empty_is_not_set(echo: Service, field: str) -> None:
    made = [echo.client.post("/sdapi/v1/txt2img", json=body({"seed": 1, field: each})) for each in (None, "")]
    assert [each.status_code for each in made] == [200, 200], made[1].text
    assert field == "seed" or made[0].json()["images"] == made[1].json()["images"]


@pytest.mark.parametrize("field", sorted({*ControlNetUnit.__struct_fields__} - {"image"}))
def test_a_field_of_a_unit_that_is_empty_is_not_set(echo: Service, field: str) -> None:
    made = [echo.client.post("/sdapi/v1/txt2img", json=body({"seed": 1}, **{field: each})) for each in (None, "")]
    assert [each.status_code for each in made] == [200, 200], made[1].text
    assert made[0].json()["images"] == made[1].json()["images"]


@pytest.mark.parametrize("field", sorted({*DetectRequest.__struct_fields__} - {"controlnet_input_images"}))
def test_a_field_of_detect_that_is_empty_is_not_set(echo: Service, field: str) -> None:
    given = {"controlnet_module": "canny", "controlnet_input_images": [ENCODED]}
    made = [echo.client.post("/controlnet/detect", json=given | {field: each}) for each in (None, "")]
    assert [each.status_code for each in made] == [200, 200], made[1].text
    assert made[0].content == made[1].content


def test_other_faults_are_told_beside_a_field_that_is_empty(echo: Service) -> None:
    refused = echo.generate(steps="", canny_low="", temperature="x", priority=11)
    assert [each["field"] for each in refused.json()["errors"]] == ["temperature", "priority"]


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


def test_required_fields_may_not_be_null_and_only_the_prompt_empty(echo: Service) -> None:
    for field in good_request():
        assert echo.generate(**{field: None}).status_code == 422
        assert echo.generate(**{field: ""}).status_code == (200 if field == "text" else 422)


def test_scripts_edges_and_settings_that_are_empty_are_not_set(echo: Service) -> None:
    refused = echo.client.post("/sdapi/v1/txt2img", json={"prompt": "x", "alwayson_scripts": ""})
    assert (refused.status_code, "0 ControlNet units are enabled" in refused.text) == (422, True)
    edges = {"input_image_base64": ENCODED}
    made = [echo.client.post("/edges", json=edges | each) for each in ({}, {"canny_low": "", "canny_high": ""})]
    assert made[0].content == made[1].content
    assert echo.client.post("/sdapi/v1/options", json={"enable_pnginfo": "", "sd_vae": ""}).status_code == 200
