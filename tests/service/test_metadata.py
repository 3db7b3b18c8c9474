"""Metadata of image files, in every form of a request and of an answer, by request and by configuration."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import app
from app.params import SEED_MAX, SEED_MIN
from tests.service.automatic import body, txt2img
from tests.service.running import Service, file_of, good_request, pixels_of
from tests.service.test_progress import streamed
from tests.workers.infotext import SOURCE, infotext_of, parameters_of, source_of

IMAGE = file_of(np.random.default_rng(5).integers(0, 256, (64, 96, 3), np.uint8))
TEXT = 'a red heart, "quoted": \\ <b>&</b>\nSteps: 20\n\N{HEAVY BLACK HEART}'
HASH = hashlib.sha256(IMAGE).hexdigest()[:16]
Ask = Callable[..., list[bytes]]


def files_in(answer: dict[str, Any]) -> list[bytes]:
    encoded = answer.get("output_images_base64", [answer["output_image_base64"]])
    return [base64.b64decode(each, validate=True) for each in encoded]


def by_json(service: Service, **fields: object) -> list[bytes]:
    encoded = base64.b64encode(IMAGE).decode()
    response = service.generate(text=TEXT, input_image_base64=encoded, random_seed=5, **fields)
    assert response.status_code == 200, response.text
    return files_in(response.json())


def by_form(service: Service, **fields: object) -> list[bytes]:
    data = {"text": TEXT, "random_seed": "5"} | {name: str(value) for name, value in fields.items()}
    response = service.client.post("/generation/", data=data, files={"input_image": ("x", IMAGE, "image/png")})
    assert response.status_code == 200, response.text
    return files_in(response.json())


def by_query(service: Service, accept: str = "application/json", **fields: Any) -> list[bytes]:
    response = service.client.post(
        "/generation/",
        params={"text": TEXT, "random_seed": 5, **fields},
        content=IMAGE,
        headers={"Content-Type": "image/png", "Accept": accept},
    )
    assert response.status_code == 200, response.text
    return files_in(response.json()) if accept == "application/json" else [response.content]


def by_stream(service: Service, **fields: object) -> list[bytes]:
    encoded = base64.b64encode(IMAGE).decode()
    seen = streamed(service, text=TEXT, input_image_base64=encoded, random_seed=5, **fields)
    return files_in(seen[-1].data)


def by_openai(service: Service, **fields: object) -> list[bytes]:
    data = {"prompt": TEXT, "seed": "5"} | {name: str(value) for name, value in fields.items()}
    response = service.client.post("/v1/images/edits", data=data, files={"image": ("x.png", IMAGE, "image/png")})
    assert response.status_code == 200, response.text
    return [base64.b64decode(each["b64_json"], validate=True) for each in response.json()["data"]]


def by_openai_json(service: Service, **fields: object) -> list[bytes]:
    url = f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"
    sent = {"prompt": TEXT, "seed": 5, "images": [{"image_url": url}]} | fields
    response = service.client.post("/v1/images/edits", json=sent)
    assert response.status_code == 200, response.text
    return [base64.b64decode(each["b64_json"], validate=True) for each in response.json()["data"]]


FORMS: list[Ask] = [by_json, by_form, by_query, by_stream, by_openai, by_openai_json]


def by_automatic(service: Service, fields: dict[str, Any] | None = None) -> tuple[list[bytes], dict[str, Any]]:
    """The files, and `info`."""
    image = base64.b64encode(IMAGE).decode()
    response = txt2img(service, body({"prompt": TEXT, "seed": 5, **(fields or {})}, image=image))
    assert response.status_code == 200, response.text
    answer = response.json()
    return [base64.b64decode(each) for each in answer["images"]], json.loads(answer["info"])


@pytest.mark.parametrize("ask", FORMS)
def test_by_default_a_file_says_that_a_model_made_it_and_no_more(echo: Service, ask: Ask) -> None:
    (file,) = ask(echo)
    assert (source_of(file), infotext_of(file)) == (SOURCE, None)
    assert b"heart" not in file
    assert np.array_equal(pixels_of(file), pixels_of(IMAGE))


@pytest.mark.parametrize("ask", FORMS)
def test_a_request_may_want_all_of_it_or_nothing(echo: Service, ask: Ask) -> None:
    (full,), (none,) = ask(echo, embed_metadata="full"), ask(echo, embed_metadata="none")
    found = parameters_of(full)
    assert (found["Prompt"], found["Seed"], found["Input hash"]) == (TEXT, "5", HASH)
    assert (found["Size-1"], found["Size-2"], found["Version"]) == ("96", "64", f"Contour {app.__version__}")
    assert (found["Model"], found["Sampler"], found["Steps"], found["CFG scale"]) == ("echo", "UniPC", "1", "7.5")
    assert source_of(full) == SOURCE
    assert (source_of(none), infotext_of(none)) == (None, None)
    assert np.array_equal(pixels_of(full), pixels_of(none))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_files_of_every_format_say_it(echo: Service, kind: str) -> None:
    (full,) = by_query(echo, f"image/{kind}", embed_metadata="full")
    (none,) = by_query(echo, f"image/{kind}", embed_metadata="none")
    assert (parameters_of(full)["Prompt"], source_of(full)) == (TEXT, SOURCE)
    assert np.array_equal(pixels_of(full), pixels_of(none))
    (again,) = by_query(echo, f"image/{kind}", embed_metadata="full")
    assert again == full


@pytest.mark.parametrize("ask", [by_json, by_form, by_stream, by_openai])
def test_each_of_several_images_says_its_own_seed(echo: Service, ask: Ask) -> None:
    number = {"n": 3} if ask is by_openai else {"number_of_images": 3}
    assert [parameters_of(file)["Seed"] for file in ask(echo, embed_metadata="full", **number)] == ["5", "6", "7"]


@pytest.mark.parametrize("seed", [SEED_MIN, -1, 0, 2**32, SEED_MAX])
def test_a_seed_is_told_as_it_was_asked_for(echo: Service, seed: int) -> None:
    answer = echo.generate(random_seed=seed, embed_metadata="full").json()
    assert parameters_of(files_in(answer)[0])["Seed"] == str(seed)
    after_the_last = echo.generate(random_seed=SEED_MAX, number_of_images=2, embed_metadata="full").json()
    assert parameters_of(files_in(after_the_last)[1])["Seed"] == str(SEED_MIN)


def test_a_requests_own_options_are_in_the_metadata(echo: Service) -> None:
    asked = {"steps": 3, "guidance_scale": 2.5, "control_scale": 0.5, "temperature": 0.25}
    thresholds = {"canny_low": 50, "canny_high": 120}
    (file,) = by_json(echo, embed_metadata="full", negative_prompt="fog,\nrain", **asked, **thresholds)
    found = parameters_of(file)
    assert found["Negative prompt"] == "fog,\nrain"
    assert (found["Steps"], found["CFG scale"], found["Temperature"]) == ("3", "2.5", "0.25")
    assert found["ControlNet 0"] == "Module: canny, Model: echo-canny, Weight: 0.5, Threshold A: 50, Threshold B: 120"
    edges = parameters_of(by_json(echo, embed_metadata="full", control_image="edges")[0])
    assert edges["ControlNet 0"] == "Module: none, Model: echo-canny, Weight: 1"


@pytest.mark.parametrize("wrong", ["all", 1, True, ["full"]])
def test_a_value_that_there_is_not_is_refused_with_those_there_are(echo: Service, wrong: object) -> None:
    refused = echo.generate(embed_metadata=wrong)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "embed_metadata")
    assert all(value in refused.json()["detail"] for value in ("full", "source", "none"))


def test_unset_options_are_as_configured(echo: Service) -> None:
    usual = by_json(echo)
    assert by_json(echo, embed_metadata=None) == usual
    for ask in (by_form, by_query, by_openai):
        assert ask(echo, embed_metadata="") == ask(echo)


def test_the_web_uis_clients_get_what_its_files_have(echo: Service) -> None:
    files, info = by_automatic(echo, {"batch_size": 2, "negative_prompt": "fog", "steps": 4, "cfg_scale": 3})
    assert [infotext_of(file) for file in files] == info["infotexts"]
    assert [parameters_of(file)["Seed"] for file in files] == ["5", "6"]
    found = parameters_of(files[0])
    assert (found["Prompt"], found["Negative prompt"], found["Input hash"]) == (TEXT, "fog", HASH)
    assert found["ControlNet 0"] == info["extra_generation_params"]["ControlNet 0"]
    assert (found["Sampler"], found["Model"]) == (info["sampler_name"], info["sd_model_name"])
    assert source_of(files[0]) == SOURCE


def test_the_web_uis_own_setting_leaves_the_text_out(echo: Service) -> None:
    for off in ({"enable_pnginfo": False}, {"enable_pnginfo": "false"}):
        (file,), info = by_automatic(echo, {"override_settings": off})
        assert (source_of(file), infotext_of(file)) == (SOURCE, None)
        assert TEXT in info["infotexts"][0]
    (file,), _ = by_automatic(echo, {"override_settings": {"enable_pnginfo": True}})
    assert parameters_of(file)["Prompt"] == TEXT


@pytest.fixture(scope="module")
def silent() -> Iterator[Service]:
    with Service("echo", SERVER__EMBED_METADATA="none", SERVER__MODEL_NAME='dream, "shaper" #8') as service:
        yield service.wait_until_ready()


def test_the_configuration_says_what_is_usual(silent: Service) -> None:
    files = [file for ask in FORMS for file in ask(silent)] + by_automatic(silent)[0]
    assert [(source_of(file), infotext_of(file)) for file in files] == [(None, None)] * 7
    assert parameters_of(by_json(silent, embed_metadata="full")[0])["Model"] == 'dream, "shaper" #8'


def test_unread_images_of_echo_come_back_unchanged() -> None:
    with Service("echo", ENGINE__ECHO__REENCODE="false", SERVER__EMBED_METADATA="full") as service:
        service.wait_until_ready()
        assert by_json(service) == by_json(service, embed_metadata="source") == [IMAGE]


def test_edges_and_previews_say_nothing(echo: Service) -> None:
    edges = echo.client.post("/edges", content=IMAGE, headers={"Content-Type": "image/png"}).content
    previews = [each.data["jpeg_base64"] for each in streamed(echo, steps=30) if each.name == "preview"]
    for file in [edges, *map(base64.b64decode, previews)]:
        assert (source_of(file), infotext_of(file)) == (None, None)


def test_an_image_that_tells_its_prompt_is_an_input_like_any_other(echo: Service) -> None:
    for kind in ("png", "jpeg", "webp"):
        (file,) = by_query(echo, f"image/{kind}", embed_metadata="full")
        sent = base64.b64encode(file).decode()
        (back,) = files_in(echo.generate(input_image_base64=sent).json())
        assert np.array_equal(pixels_of(back), pixels_of(file))
        assert infotext_of(back) is None  # nothing of the input's


def test_the_longest_prompts_fit(echo: Service) -> None:
    text = "\N{PILE OF POO}" * 10_000
    asked = good_request(text=text, negative_prompt=text, embed_metadata="full")
    for kind in ("png", "webp"):
        answer = echo.client.post("/generation/", json=asked, headers={"Accept": f"image/{kind}"})
        assert (parameters_of(answer.content)["Prompt"], answer.status_code) == (text, 200)
    answer = echo.client.post("/generation/", json=asked, headers={"Accept": "image/jpeg"})
    assert "Prompts cut" in parameters_of(answer.content)


def test_the_small_model_tells_what_made_its_images(demo: Service) -> None:
    (file,) = by_json(demo, embed_metadata="full", steps=2)
    found = parameters_of(file)
    assert (found["Steps"], found["CFG scale"], found["Model"]) == ("2", "2", "demo")
    height, width = pixels_of(file).shape[:2]
    assert (found["Size-1"], found["Size-2"]) == (str(width), str(height))
