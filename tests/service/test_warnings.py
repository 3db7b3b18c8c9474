"""Warnings about options that were not followed exactly, in every form of the answer."""

import base64
import json
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import pytest

from tests.service.running import Service, file_of, good_request, png

LONG = "a red circle on a blue background, " * 12
CUT = "The prompt has "
PNG_TYPE = {"content-type": "image/png"}
STREAM = {"accept": "text/event-stream"}


def last_event(response: httpx.Response) -> tuple[str, Any]:
    *_, event, data = response.text.strip().splitlines()
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_prompt_that_is_cut_is_told_of_in_json_in_a_form_and_in_a_query(demo: Service) -> None:
    form = {"text": LONG, "steps": "1"}
    answers = (
        demo.generate(text=LONG, steps=1),
        demo.client.post("/generation/", data=form, files={"input_image": png(64, 64)}),
        demo.client.post("/generation/", params=form, content=png(64, 64), headers=PNG_TYPE),
    )
    for answer in answers:
        assert answer.status_code == 200, answer.text
        (warning,) = answer.json()["warnings"]
        assert warning.startswith(CUT)
        assert "; the model reads the first 75. Not read: " in warning


def test_the_unread_part_of_a_prompt_is_quoted_as_it_was_sent(demo: Service) -> None:
    (warning,) = demo.generate(text=f"{LONG} \u00c9toile  \u201cA\u201d", steps=1).json()["warnings"]
    assert json.loads(warning.partition("Not read: ")[2].removesuffix(".")).endswith("\u00c9toile  \u201cA\u201d")


def test_both_texts_and_several_images_are_told_of_once_each(demo: Service) -> None:
    warnings = demo.generate(text=LONG, negative_prompt=LONG, steps=1, number_of_images=2).json()["warnings"]
    assert sorted(warning.partition(" has ")[0] for warning in warnings) == ["The negative prompt", "The prompt"]


@pytest.mark.slow
def test_the_suffix_is_what_is_cut_first() -> None:
    words = "red blue gray star circle heart " * 12
    with Service("demo", ENGINE__PROMPT__SUFFIX=", neon star ring", ENGINE__SAMPLER__STEPS=1) as service:
        answer = service.wait_until_ready().generate(text=words.strip())
    assert answer.json()["warnings"] == [
        'The model reads 75 tokens. The prompt has 72, so the configured suffix was cut. Not read: "ring".'
    ]


def test_the_last_event_of_a_stream_tells_it(demo: Service) -> None:
    answer = demo.client.post("/generation/", json=good_request(text=LONG, steps=1), headers=STREAM)
    name, data = last_event(answer)
    assert name == "done"
    assert data["warnings"][0].startswith(CUT)


def test_an_image_that_is_the_answer_has_it_in_a_header(demo: Service) -> None:
    text = f"{LONG} \u00c9toile 100% \U0001f600"
    answer = demo.client.post("/generation/", json=good_request(text=text, steps=1), headers={"accept": "image/png"})
    header = answer.headers["x-contour-warning"]
    assert header.isascii()
    assert header.isprintable()
    assert unquote(header).startswith(CUT)
    assert unquote(header).endswith('\u00c9toile 100% \U0001f600".')


def test_a_header_is_short_whatever_the_prompt(demo: Service) -> None:
    """Proxies refuse answers with long heads."""
    text = LONG + "\U0001f600" * 2000
    answer = demo.client.post("/generation/", json=good_request(text=text, steps=1), headers={"accept": "image/png"})
    assert answer.status_code == 200
    assert len(answer.headers["x-contour-warning"]) <= 1000
    assert unquote(answer.headers["x-contour-warning"], errors="strict").startswith(CUT)


def test_where_all_is_followed_there_is_no_word(demo: Service) -> None:
    assert "warnings" not in demo.generate(steps=1).json()
    answer = demo.client.post("/generation/", json=good_request(steps=1), headers={"accept": "image/png"})
    assert "x-contour-warning" not in answer.headers
    form = {"prompt": "a red heart", "size": "auto", "quality": "auto", "steps": "1"}
    assert "warnings" not in edits(demo, **form).json()
    assert "warnings" not in last_event(edits(demo, stream="true", **form))[1]


def test_openais_interface_tells_it_too(demo: Service) -> None:
    form = {"prompt": LONG, "size": "1024x1024", "quality": "high", "input_fidelity": "low", "steps": "1"}
    form["output_compression"] = "80"
    expected = [
        "quality is high, which changes nothing here: steps sets it.",
        "input_fidelity is low, which changes nothing here: control_scale sets how closely the edges are kept.",
        "output_compression is 80, which changes nothing in a PNG: ask for jpeg or webp.",
        "size is 1024x1024, but it follows the image: 256x256.",
    ]
    for warnings in (
        edits(demo, **form).json()["warnings"],
        last_event(edits(demo, stream="true", **form))[1]["warnings"],
    ):
        assert warnings[:-1] == expected
        assert warnings[-1].startswith(CUT)
    assert (
        "warnings"
        not in edits(
            demo,
            **form | {"prompt": "a", "size": "256X256", "quality": "", "input_fidelity": "", "output_compression": ""},
        ).json()
    )


@pytest.mark.parametrize(("size", "followed"), [("1:1", True), ("2:2", True), ("16:9", False), ("large", False)])
def test_any_size_that_the_image_does_not_have_is_told_of(demo: Service, size: str, followed: bool) -> None:
    told = edits(demo, prompt="a", size=size, steps="1").json().get("warnings", [])
    assert told == ([] if followed else [f"size is {size}, but it follows the image: 256x256."])


def edits(service: Service, /, *image: bytes, **form: str) -> httpx.Response:
    answer = service.client.post("/v1/images/edits", data=form, files={"image": image[0] if image else png(64, 64)})
    assert answer.status_code == 200, answer.text
    return answer


# --------------------------------------------------------------------------------------------------- formats of images

STARTS = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}


@pytest.mark.parametrize("kind", sorted(STARTS))
def test_the_format_that_is_named_is_that_of_the_file(echo: Service, kind: str) -> None:
    form = {"text": "a", "output_format": kind}
    answers = (
        echo.generate(output_format=kind),
        echo.client.post("/generation/", data=form, files={"input_image": png(64, 64)}),
        echo.client.post("/generation/", params=form, content=png(64, 64), headers=PNG_TYPE),
    )
    for answer in answers:
        assert base64.b64decode(answer.json()["output_image_base64"]).startswith(STARTS[kind])
    answer = echo.client.post("/generation/", json=good_request(output_format=kind), headers={"accept": "image/*"})
    assert answer.headers["content-type"] == f"image/{kind}"
    assert answer.content.startswith(STARTS[kind])
    streamed = echo.client.post("/generation/", json=good_request(output_format=kind), headers=STREAM)
    assert base64.b64decode(last_event(streamed)[1]["output_image_base64"]).startswith(STARTS[kind])


def test_a_format_that_there_is_not_is_refused_with_those_there_are(echo: Service) -> None:
    answer = echo.generate(output_format="gif")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "output_format is 'gif'; it must be jpeg, png or webp."


@pytest.mark.parametrize("accept", ["image/avif", "text/html", "application/json;q=0", "image/jxl, image/avif;q=0.9"])
def test_a_form_of_answer_that_there_is_not_is_refused_with_those_there_are(echo: Service, accept: str) -> None:
    answer = echo.client.post("/generation/", json=good_request(), headers={"accept": accept})
    assert answer.status_code == 406
    assert answer.json()["detail"] == (
        f"Accept is {accept!r}, but this is available only as application/json, image/png, image/jpeg, image/webp, "
        "text/event-stream."
    )


@pytest.mark.parametrize("accept", ["image/avif, image/webp;q=0.5", "*/*;q=0.1", "image/*", "application/*", ""])
def test_a_client_that_accepts_something_is_served(echo: Service, accept: str) -> None:
    assert echo.client.post("/generation/", json=good_request(), headers={"accept": accept}).status_code == 200


def test_a_format_and_an_accept_that_contradict_each_other_are_refused(echo: Service) -> None:
    answer = echo.client.post("/generation/", json=good_request(output_format="webp"), headers={"accept": "image/png"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "output_format is webp, but Accept is 'image/png', which excludes image/webp; leave one out."
    )
    both = {"accept": "image/png, image/webp;q=0.1"}
    answer = echo.client.post("/generation/", json=good_request(output_format="webp"), headers=both)
    assert answer.headers["content-type"] == "image/webp"


def test_edges_are_a_png_or_nothing(echo: Service) -> None:
    def edges(accept: str) -> httpx.Response:
        return echo.client.post("/edges", content=png(64, 64), headers={**PNG_TYPE, "accept": accept})

    assert edges("image/jpeg").status_code == edges("application/json").status_code == 406
    assert edges("image/jpeg").json()["detail"] == "Accept is 'image/jpeg', but this is available only as image/png."
    assert edges("image/*").status_code == edges("*/*").status_code == 200


def test_openais_compression_is_the_quality_of_the_file(echo: Service) -> None:
    noise = file_of(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))

    def size(compression: str, kind: str = "jpeg") -> int:
        answer = edits(echo, noise, prompt="a", output_format=kind, output_compression=compression)
        return len(base64.b64decode(answer.json()["data"][0]["b64_json"]))

    for kind in ("jpeg", "webp"):
        assert size("0", kind) <= size("10", kind) < size("60", kind) < size("100", kind)
        assert size("95", kind) == size("", kind)  # as configured
    assert size("100", "png") > 0


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("output_compression", "101", "output_compression is 101; it must be a whole number from 0 to 100."),
        ("output_format", "avif", "output_format is 'avif'; it must be jpeg, png or webp."),
        ("background", "transparent", "background is 'transparent'; it must be auto or opaque."),
        ("response_format", "file", "response_format is 'file'; it must be b64_json or url."),
        ("n", "0", "n is 0; it must be from 1 to "),
    ],
)
def test_unsupported_options_of_openais_interface_are_refused_by_name(
    echo: Service, field: str, value: str, told: str
) -> None:
    form = {"prompt": "a", field: value}
    answer = echo.client.post("/v1/images/edits", data=form, files={"image": png(64, 64)})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(told)
    assert answer.json()["error"]["param"] == field


def test_fields_in_a_query_that_is_not_looked_at_are_refused(echo: Service) -> None:
    json_body = echo.client.post("/generation/", params={"steps": 5, "x": 1}, json=good_request())
    form = echo.client.post("/generation/", params={"steps": 5}, data={"text": "a"}, files={"input_image": png(64, 64)})
    for answer in (json_body, form):
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "steps"
        assert answer.json()["detail"] == (
            "steps is in the query, which counts only if the body is the image itself. Put it into the body."
        )
    for harmless in ({"steps": ""}, {"x": "1"}):
        assert echo.client.post("/generation/", params=harmless, json=good_request()).status_code == 200
