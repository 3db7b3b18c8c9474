"""Fields by the names that other services have for them: the right name is told."""

import base64
import json
from typing import Any

import httpx
import pytest

from tests.service.running import Service, good_request, png

PNG_TYPE = {"content-type": "image/png"}
IMAGE = base64.b64encode(png(64, 64)).decode()


def by_other_names(**names: str) -> dict[str, object]:
    """A good request, with some of its fields by other names."""
    return {names.get(name, name): value for name, value in good_request().items()}


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        ("text", "prompt"),
        ("random_seed", "seed"),
        ("input_image_base64", "image"),
        ("input_image_base64", "input_image"),
        ("input_image_base64", "image_base64"),
        ("request_id", "id"),
    ],
)
def test_a_field_that_is_missing_under_its_name_is_named(echo: Service, ours: str, other: str) -> None:
    answer = echo.client.post("/generation/", json=by_other_names(**{ours: other}))
    assert answer.status_code == 422
    detail = f"{ours} is missing; you sent {other}: call it {ours}."
    assert answer.json()["detail"] == detail
    assert answer.json()["errors"] == [{"field": ours, "detail": detail}]


def test_all_that_are_missing_are_named_at_once(echo: Service) -> None:
    body = by_other_names(text="prompt", random_seed="seed", input_image_base64="image")
    errors = echo.client.post("/generation/", json=body).json()["errors"]
    assert {each["field"]: each["detail"].partition("call it ")[2] for each in errors} == {
        "text": "text.",
        "random_seed": "random_seed.",
        "input_image_base64": "input_image_base64.",
    }


def test_a_form_and_a_query_name_them_too(echo: Service) -> None:
    answers = (
        echo.client.post("/generation/", data={"prompt": "a"}, files={"input_image": png(64, 64)}),
        echo.client.post("/generation/", params={"prompt": "a"}, content=png(64, 64), headers=PNG_TYPE),
    )
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["detail"] == "text is missing; you sent prompt: call it text."


def test_a_form_names_the_image_whatever_it_is(echo: Service) -> None:
    file = echo.client.post("/generation/", data={"text": "a"}, files={"image": png(64, 64)})
    text = echo.client.post("/generation/", data={"text": "a", "image": IMAGE}, files={"x": b""})
    for answer in (file, text):
        assert answer.status_code == 422
        assert (
            answer.json()["detail"] == "The form has no file called input_image. You sent image: call it input_image."
        )


def test_edges_name_the_image_too(echo: Service) -> None:
    answer = echo.client.post("/edges", json={"image": IMAGE})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "input_image_base64 is missing; you sent image: call it input_image_base64."


def warnings(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json().get("warnings")


@pytest.mark.parametrize(
    ("other", "ours"),
    [
        ("negative", "negative_prompt"),
        ("num_inference_steps", "steps"),
        ("cfg_scale", "guidance_scale"),
        ("guidance", "guidance_scale"),
        ("controlnet_conditioning_scale", "control_scale"),
        ("num_images", "number_of_images"),
        ("n", "number_of_images"),
        ("low_threshold", "canny_low"),
        ("format", "output_format"),
    ],
)
def test_an_option_by_another_name_is_ignored_and_told_of(echo: Service, other: str, ours: str) -> None:
    told = [f"{other} was ignored; its name here is {ours}."]
    form = {"text": "a", other: "1"}
    assert warnings(echo.generate(**{other: 1})) == told
    assert warnings(echo.client.post("/generation/", data=form, files={"input_image": png(64, 64)})) == told
    assert warnings(echo.client.post("/generation/", params=form, content=png(64, 64), headers=PNG_TYPE)) == told


def test_unsupported_fields_get_a_warning_with_the_reason(echo: Service) -> None:
    assert warnings(echo.generate(width=512, height=512, strength=0.5)) == [
        "height was ignored: the size follows the image.",
        "strength was ignored: only the edges of the image count; control_scale sets how closely they are kept.",
        "width was ignored: the size follows the image.",
    ]


def test_a_seed_by_another_name_where_none_is_needed_is_told_of(echo: Service) -> None:
    answer = echo.client.post("/generation/", params={"text": "a", "seed": "5"}, content=png(64, 64), headers=PNG_TYPE)
    assert warnings(answer) == ["seed was ignored; its name here is random_seed."]


def test_a_warning_says_which_of_two_names_counts(echo: Service) -> None:
    assert warnings(echo.generate(prompt="b", seed=5, image="x", steps=1, num_inference_steps=9)) == [
        "image was ignored; its name here is input_image_base64.",
        "num_inference_steps was ignored; its name here is steps.",
        "prompt was ignored; its name here is text.",
        "seed was ignored; its name here is random_seed.",
    ]
    form = {"text": "a", "image": "x"}
    told = ["image was ignored; its name here is input_image."]
    assert warnings(echo.client.post("/generation/", data=form, files={"input_image": png(64, 64)})) == told


def test_unset_fields_of_other_names_get_no_warning(echo: Service) -> None:
    assert warnings(echo.generate(seed=None, cfg_scale=None, width=None, image="", negative="")) is None
    form = {"text": "a", "cfg_scale": "", "image": ""}
    assert warnings(echo.client.post("/generation/", data=form, files={"input_image": png(64, 64)})) is None
    encoded = form | {"input_image_base64": IMAGE}
    assert warnings(echo.client.post("/generation/", data=encoded, files={"x": b""})) is None


def test_edges_tell_of_thresholds_by_other_names(echo: Service) -> None:
    told = "low_threshold was ignored; its name here is canny_low."
    body = {"input_image_base64": IMAGE, "low_threshold": 10, "seed": 5, "high_threshold": None}
    answers = (
        echo.client.post("/edges", json=body),
        echo.client.post("/edges", params={"low_threshold": "10", "width": "5"}, content=png(64, 64), headers=PNG_TYPE),
    )
    assert [answer.headers.get_list("x-contour-warning") for answer in answers] == [[told], [told]]


def test_other_unknown_fields_are_ignored_in_silence(echo: Service) -> None:
    answer = echo.client.post("/generation/", json=good_request(user="somebody", metadata={"a": [1]}, priority=1))
    assert warnings(answer) is None


def test_a_header_and_the_last_event_tell_it_too(echo: Service) -> None:
    body = good_request(cfg_scale=3)
    told = "cfg_scale was ignored; its name here is guidance_scale."
    answer = echo.client.post("/generation/", json=body, headers={"accept": "image/png"})
    assert answer.headers["x-contour-warning"] == told
    streamed = echo.client.post("/generation/", json=body, headers={"accept": "text/event-stream"})
    data = streamed.text.strip().rpartition("data: ")[2]
    assert json.loads(data)["warnings"] == [told]


def test_a_file_that_nothing_is_made_of_is_told_of(echo: Service) -> None:
    files = {"input_image": png(64, 64), "mask": png(64, 64)}
    answer = echo.client.post("/generation/", data={"text": "a"}, files=files)
    assert warnings(answer) == ["mask was ignored: the whole image is generated anew."]
