"""OpenAI's Images API, by OpenAI's own client, as it comes from PyPI."""

import asyncio
import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent
from PIL import Image

from app.api.openai import structs
from app.errors import Error, Problem
from example.demo_model.scenes import flat_scenes
from example.demo_model.scoring import colours
from tests.service.running import Pixels, Service, file_of, pixels_of, png, until

KEY = "openai-2cf24dba5fb0a30e"
PROMPT = "a circle"
IMAGE = file_of(np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8))
MAGIC = {"png": b"\x89PNG", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}


def client(service: Service, retries: int = 0, key: str = KEY) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key=key, max_retries=retries)


def file_in(encoded: str | None) -> bytes:
    assert encoded is not None
    return base64.b64decode(encoded, validate=True)


def pixels(encoded: str | None) -> Pixels:
    return pixels_of(file_in(encoded))


@pytest.fixture
def ours(echo: Service) -> Iterator[OpenAI]:
    with client(echo) as made:
        yield made


@pytest.fixture(scope="module")
def slow() -> Iterator[Service]:
    """One slot, ten steps of 0.1 s, a queue for one; with a key."""
    overrides = {"ENGINE__ECHO__STEPS": 10, "ENGINE__ECHO__STEP_SECONDS": 0.1, "ENGINE__SLOTS": 1}
    limits = {"WORKERS__CPU_WORKERS": 1, "SCHEDULER__MAX_QUEUE": 1, "SERVER__API_KEY": KEY}
    with Service("echo", **limits, **overrides) as service:
        yield service.wait_until_ready()


def test_an_image_comes_back_as_a_png_and_is_told_of(ours: OpenAI) -> None:
    answer = ours.images.edit(image=IMAGE, prompt=PROMPT)
    assert answer.data is not None
    assert np.array_equal(pixels(answer.data[0].b64_json), pixels_of(IMAGE))
    assert file_in(answer.data[0].b64_json).startswith(MAGIC["png"])
    assert (answer.output_format, answer.size, answer.background) == ("png", "96x64", "opaque")
    assert answer.model_extra == {"model": "echo"}
    assert abs(answer.created - time.time()) < 60


def test_the_asynchronous_client_gets_the_same(echo: Service) -> None:
    async def ask() -> str | None:
        async with AsyncOpenAI(base_url=f"{echo.url}/v1", api_key=KEY, max_retries=0) as ours:
            answer = await ours.images.edit(image=("in.png", IMAGE, "image/png"), prompt=PROMPT)
            assert answer.data is not None
            with pytest.raises(openai.BadRequestError, match="n is 0"):
                await ours.images.edit(image=IMAGE, prompt=PROMPT, n=0)
            return answer.data[0].b64_json

    assert np.array_equal(pixels(asyncio.run(ask())), pixels_of(IMAGE))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_format_is_what_was_asked_for(ours: OpenAI, kind: Any) -> None:
    answer = ours.images.edit(image=IMAGE, prompt=PROMPT, output_format=kind)
    assert answer.data is not None
    assert answer.output_format == kind
    assert file_in(answer.data[0].b64_json).startswith(MAGIC[kind])


def test_a_url_has_the_image_in_it(ours: OpenAI) -> None:
    answer = ours.images.edit(image=IMAGE, prompt=PROMPT, response_format="url", output_format="webp")
    assert answer.data is not None
    kind, _, encoded = (answer.data[0].url or "").partition(",")
    assert kind == "data:image/webp;base64"
    assert answer.data[0].b64_json is None
    assert file_in(encoded).startswith(MAGIC["webp"])


def test_several_images_each_say_their_seed(ours: OpenAI) -> None:
    answer = ours.images.edit(image=[IMAGE], prompt=PROMPT, n=3, extra_body={"seed": 41})
    assert [each.model_extra for each in answer.data or []] == [{"seed": 41}, {"seed": 42}, {"seed": 43}]


def test_without_a_seed_one_is_drawn(ours: OpenAI) -> None:
    drawn = {(ours.images.edit(image=IMAGE, prompt=PROMPT).data or [])[0].model_extra["seed"] for _ in range(3)}  # type: ignore[index]
    assert len(drawn) == 3
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_extra_fields_of_common_clients_do_no_harm(ours: OpenAI) -> None:
    answer = ours.images.edit(
        image=IMAGE,
        prompt=PROMPT,
        model="gpt-image-1",
        size="1024x1024",
        quality="high",
        background="auto",
        input_fidelity="high",
        output_compression=80,
        user="somebody",
    )
    told = (answer.model_extra or {}).pop("warnings")
    assert (answer.size, answer.model_extra) == ("96x64", {"model": "echo"})
    assert [each.split()[0] for each in told] == ["quality", "input_fidelity", "output_compression", "size"]


@pytest.mark.parametrize(
    ("given", "param", "told"),
    [
        ({"n": 9}, "n", "n is 9; it must be from 1 to 8."),
        ({"extra_body": {"steps": 51}}, "steps", "steps is 51; it must be from 1 to 50."),
        ({"extra_body": {"guidance_scale": 51}}, "guidance_scale", "it must be from 0 to 50."),
        ({"extra_body": {"seed": 2**64}}, "seed", "seed is"),
        ({"extra_body": {"random_seed": "x"}}, "random_seed", "random_seed is 'x'; it must be a whole number"),
        ({"prompt": "x" * 10_001}, "prompt", "prompt has 10001 characters; at most 10000 are allowed."),
        ({"image": [IMAGE, IMAGE]}, "image", "has 2 files called image; send one."),
        ({"image": b"no image"}, "image", "must be a PNG, JPEG or WebP file"),
        ({"image": IMAGE[:-30]}, "image", "damaged"),
        ({"mask": IMAGE}, "mask", "Masks are not supported"),
        ({"markup": IMAGE}, "markup", "Markup is not supported"),
        ({"background": "transparent"}, "background", "background is 'transparent'; it must be auto or opaque."),
        ({"output_format": "gif"}, "output_format", "output_format is 'gif'; it must be "),
        ({"stream": True, "n": 2}, "n", "A stream has one image, but n is 2."),
        (
            {"stream": True, "partial_images": 4},
            "partial_images",
            "partial_images is 4; it must be a whole number from 0 to 3.",
        ),
    ],
)
def test_a_wrong_field_gets_400_with_its_name(ours: OpenAI, given: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ours.images.edit(**{"image": IMAGE, "prompt": PROMPT, **given})
    assert refused.value.param == param
    assert told in refused.value.message
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id


def mask(*alpha: int, **options: Any) -> bytes:
    """An image of noise, one column for each alpha."""
    pixels = np.random.default_rng(6).integers(0, 256, (4, len(alpha), 4), np.uint8)
    pixels[..., 3] = alpha
    file = BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "WebP", "lossless": True}], ids=str)
def test_a_mask_that_is_transparent_everywhere_asks_for_nothing(ours: OpenAI, options: dict[str, Any]) -> None:
    assert ours.images.edit(image=IMAGE, mask=mask(0, 0, 0, **options), prompt=PROMPT).data
    for opaque in ((255, 255), (0, 0, 1)):
        with pytest.raises(openai.BadRequestError, match="send one that is all transparent") as refused:
            ours.images.edit(image=IMAGE, mask=mask(*opaque, **options), prompt=PROMPT)
        assert refused.value.param == "mask"


def test_a_mask_that_is_no_image_is_named(ours: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="this is text") as refused:
        ours.images.edit(image=IMAGE, mask=b"no mask", prompt=PROMPT)
    assert refused.value.param == "mask"


def test_other_services_names_get_a_warning_with_openais_name_or_ours(ours: OpenAI) -> None:
    others = {"cfg_scale": 3, "num_images": 2, "width": 512, "user": "somebody", "steps": 1, "scheduler": None}
    answer = ours.images.edit(image=IMAGE, prompt=PROMPT, extra_body=others)
    assert (answer.model_extra or {})["warnings"] == [
        "cfg_scale was ignored; its name here is guidance_scale.",
        "num_images was ignored; its name here is n.",
        "width was ignored: the size follows the image.",
    ]


def test_two_names_of_a_field_must_not_contradict_each_other(ours: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ours.images.edit(image=IMAGE, prompt=PROMPT, n=2, extra_body={"number_of_images": 1, "seed": 1})
    assert "n is 2, but number_of_images is 1" in refused.value.message
    same = {"number_of_images": 2, "seed": 5, "random_seed": 5}
    assert len(ours.images.edit(image=IMAGE, prompt=PROMPT, n=2, extra_body=same).data or []) == 2


def test_an_image_of_nothing_is_refused_in_words(ours: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send one to /v1/images/edits"):
        ours.images.generate(prompt=PROMPT)


def test_a_form_or_json_is_asked_for_where_something_else_comes(echo: Service) -> None:
    response = echo.client.post("/v1/images/edits", content=b"x", headers={"Content-Type": "text/plain"})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "send a form (multipart/form-data) or JSON (application/json)" in response.json()["error"]["message"]


def test_there_is_one_model_and_any_other_is_not_found(ours: OpenAI) -> None:
    assert [model.id for model in ours.models.list()] == ["echo"]
    assert ours.models.retrieve("echo").owned_by == "contour"
    with pytest.raises(openai.NotFoundError) as refused:
        ours.models.retrieve("owner/sdxl")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="There is no model 'sdxl' here; the model is 'echo'"):
        ours.images.edit(image=IMAGE, prompt=PROMPT, model="sdxl")


def test_a_name_of_the_model_that_was_configured_is_its_name() -> None:
    with Service("echo", SERVER__MODEL_NAME="ours/canny") as service, client(service) as named:
        assert [model.id for model in named.models.list()] == ["ours/canny"]
        assert named.models.retrieve("ours/canny").id == "ours/canny"


def test_a_stream_has_partial_images_and_then_the_image(slow: Service) -> None:
    with client(slow) as ours:
        stream = ours.images.edit(image=IMAGE, prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 5})
        *partial, last = list(stream)
    assert len(partial) in {1, 2}  # the last third may be over before it is drawn
    for index, each in enumerate(partial):
        assert isinstance(each, ImageEditPartialImageEvent)
        assert (each.partial_image_index, each.output_format, each.size) == (index, "jpeg", "96x64")
        assert pixels(each.b64_json).shape == (64, 96, 3)
    assert isinstance(last, ImageEditCompletedEvent)
    assert (last.output_format, last.size, last.usage.total_tokens) == ("png", "96x64", 0)
    assert last.model_extra == {"seed": 5, "model": "echo"}
    assert np.array_equal(pixels(last.b64_json), pixels_of(IMAGE))


def test_a_stream_may_be_of_the_image_alone(slow: Service) -> None:
    with client(slow) as ours:
        (event,) = ours.images.edit(image=IMAGE, prompt=PROMPT, stream=True)
    assert isinstance(event, ImageEditCompletedEvent)


def test_errors_in_a_stream_are_raised(slow: Service) -> None:
    with client(slow) as ours, pytest.raises(openai.APIError, match="damaged") as refused:
        list(ours.images.edit(image=IMAGE[:-30], prompt=PROMPT, stream=True))
    assert refused.value.code == "invalid_image"


def test_leaving_cancels(slow: Service) -> None:
    before = slow.sample("contour_requests_total", outcome="abandoned")
    with client(slow) as ours:
        with ours.images.edit(image=IMAGE, prompt=PROMPT, stream=True, partial_images=3) as stream:
            next(iter(stream))
        with pytest.raises(openai.APITimeoutError):
            ours.with_options(timeout=0.3).images.edit(image=IMAGE, prompt=PROMPT)
    until(lambda: slow.sample("contour_requests_total", outcome="abandoned") == before + 2)
    until(lambda: slow.sample("contour_jobs_running") == 0)


def test_a_wrong_key_is_an_authentication_error(slow: Service) -> None:
    with client(slow, key="wrong") as ours:
        for ask in (ours.models.list, lambda: ours.images.edit(image=IMAGE, prompt=PROMPT)):
            with pytest.raises(openai.AuthenticationError) as refused:
                ask()
            assert refused.value.code == "invalid_api_key"


def test_too_much_is_a_rate_limit_and_the_clients_retries_get_their_images(slow: Service) -> None:
    def ask(retries: int) -> object:
        with client(slow, retries) as ours:
            try:
                return ours.images.edit(image=png(64, 64), prompt=PROMPT)
            except openai.RateLimitError as error:
                return error

    with ThreadPoolExecutor(5) as threads:
        refused = [each for each in threads.map(ask, [0] * 5) if isinstance(each, openai.RateLimitError)]
        answers = list(threads.map(ask, [10] * 4))
    assert refused
    assert {(each.code, each.type) for each in refused} == {("rate_limit_exceeded", "rate_limit_error")}
    assert all(int(each.response.headers["retry-after"]) >= 1 for each in refused)
    assert not any(isinstance(each, openai.RateLimitError) for each in answers)


def test_a_request_that_ended_workers_is_not_to_be_tried_again() -> None:
    response = structs.respond(Problem(Error.WORKER_CRASH, "Two workers ended."))
    assert (response.status_code, response.headers["x-should-retry"]) == (500, "false")
    busy = structs.respond(Problem(Error.BUSY, "Later.", retry_after=2.1))
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "3")
    assert "x-should-retry" not in busy.headers


def test_images_are_counted_and_what_is_looked_up_is_not(slow: Service) -> None:
    def counted() -> tuple[float, float]:
        done = slow.sample("contour_requests_total", outcome="done")
        return done, slow.sample("contour_request_duration_seconds_count", answer="image")

    before = counted()
    with client(slow) as ours:
        ours.models.list()
        ours.images.edit(image=IMAGE, prompt=PROMPT)
    assert counted() == (before[0] + 1, before[1] + 1)
    refusals = slow.sample("contour_requests_total", outcome="unauthorized")
    assert httpx.get(f"{slow.url}/v1/models").status_code == 401
    assert slow.sample("contour_requests_total", outcome="unauthorized") == refusals + 1


def test_the_model_paints_what_the_prompt_says(demo: Service) -> None:
    scene = flat_scenes(1, seed=5)[0]
    with client(demo) as ours:
        answer = ours.images.edit(image=file_of(scene.image), prompt=scene.caption, extra_body={"seed": 9})
        same = ours.images.edit(image=file_of(scene.image), prompt=scene.caption, extra_body={"random_seed": 9})
    assert answer.data is not None
    assert same.data is not None
    image = pixels(answer.data[0].b64_json)
    named = colours(scene, image)
    assert sum(wanted == found for wanted, found in named) >= len(named) - 1 > 0
    assert same.data[0].b64_json == answer.data[0].b64_json
