"""Generated requests to the interfaces that others have made popular: each is answered or refused, and costs nothing.

After each of them a good request gets its image, and at the end nothing runs, no worker is lost and nothing was logged
as unexpected.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.automatic1111.detect import DetectRequest
from app.api.automatic1111.structs import ControlNetUnit, JobName, Txt2ImgRequest
from app.api.openai.structs import EditForm
from tests.service.automatic import ENCODED, body
from tests.service.running import Service, png, until

EXAMPLES = 150  # of each test; thousands were run while this was written
LONGEST_ERROR = 4096  # bytes
TASK = "task(fuzz)"

turn = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)


def few(struct: type[msgspec.Struct]) -> "st.SearchStrategy[dict[str, Any]]":
    """One or two fields of a struct with any values: with more, nothing but the first would ever be looked at."""
    return st.dictionaries(st.sampled_from(struct.__struct_fields__), st.deferred(lambda: plain | odd), max_size=2)


special = st.sampled_from(
    [None, True, "nan", "-inf", "1e999", "9" * 600, 9**700, -(9**700), 2**63, 1e308, "null", "\ud800", "x" * 300, "\0"]
)
plain = special | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
odd = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
unit = few(ControlNetUnit).map(lambda fields: {"module": "canny", "image": ENCODED, **fields})
script = st.fixed_dictionaries({"args": st.lists(unit | odd, max_size=2)}) | odd
known = st.sampled_from(
    ["controlnet", "Seed", "Sampler", "Refiner", "ADetailer", "FABRIC", "Dynamic Prompts", "ReActor"]
)
scripts = st.dictionaries(known | st.text(max_size=5), script, max_size=3) | odd
detect = few(DetectRequest).map(
    lambda fields: {"controlnet_module": "canny", "controlnet_input_images": [ENCODED], **fields}
)
settings_ = st.sampled_from(["sd_model_checkpoint", "save_it", "sd_vae", "samples_format", "jpeg_quality", "emphasis"])
overrides = st.dictionaries(settings_ | st.text(max_size=5), odd)
of_scripts = unit.map(lambda fields: {"controlnet": {"args": [fields]}})
txt2img = st.builds(
    lambda fields, given: {**body(), **fields, **given},
    few(Txt2ImgRequest),
    st.fixed_dictionaries({}, optional={"alwayson_scripts": of_scripts | of_scripts | scripts})
    | st.fixed_dictionaries({"override_settings": overrides}),
)
names = st.fixed_dictionaries({}, optional=dict.fromkeys([*JobName.__struct_fields__, "skip_current_image"], plain))
bytes_of_text = plain.map(lambda value: str(value).encode("utf-8", "surrogatepass")) | st.binary(max_size=20)
form = st.dictionaries(st.sampled_from([*EditForm.__struct_fields__, "mask", "unknown"]), bytes_of_text, max_size=6)


@pytest.fixture(scope="module")
def calm(echo: Service) -> Iterator[Service]:
    """The service; afterwards nothing is left of what was asked of it."""
    yield echo
    until(lambda: echo.sample("contour_jobs_running") == 0)
    assert [worker["restarts"] for worker in echo.readiness()["workers"]] == [0, 0]
    assert "Traceback" not in "".join(echo.log)


def check(service: Service, response: httpx.Response) -> None:
    """It is answered, or refused in a few words; and the next is served."""
    assert response.status_code < 500, response.text[:500]
    assert response.headers["x-request-id"]
    if response.is_error:
        assert len(response.content) <= LONGEST_ERROR
        assert response.json()
    good = service.client.post("/sdapi/v1/txt2img", json=body({"force_task_id": TASK}))
    assert (good.status_code, len(good.json()["images"])) == (200, 1)


def post(service: Service, path: str, asked: Any) -> httpx.Response:
    """NaN and infinite numbers are written as Python does, which is not JSON."""
    return service.client.post(path, content=json.dumps(asked), headers={"content-type": "application/json"})


@turn
@given(asked=txt2img)
def test_any_txt2img_is_answered_or_refused(calm: Service, asked: Any) -> None:
    check(calm, post(calm, "/sdapi/v1/txt2img", asked))


@turn
@given(asked=detect | odd)
def test_any_images_to_detect_in_are_answered_or_refused(calm: Service, asked: Any) -> None:
    check(calm, post(calm, "/controlnet/detect", asked))


@turn
@given(asked=overrides | odd)
def test_any_settings_are_answered_or_refused(calm: Service, asked: Any) -> None:
    check(calm, post(calm, "/sdapi/v1/options", asked))


@turn
@given(query=names, asked=names | odd)
def test_any_name_of_a_job_is_answered_or_refused(calm: Service, query: dict[str, Any], asked: Any) -> None:
    texts = {name: str(value).encode("utf-8", "surrogatepass") for name, value in query.items()}
    check(calm, calm.client.get(f"/sdapi/v1/progress?{encoded(texts)}"))
    check(calm, post(calm, f"/sdapi/v1/interrupt?{encoded(texts)}", asked))


def encoded(texts: dict[str, bytes]) -> str:
    """A query of any bytes."""
    return "&".join(f"{name}=" + "".join(f"%{byte:02x}" for byte in text) for name, text in texts.items())


@turn
@given(fields=form, image=st.just(png(64, 64)) | st.binary(max_size=40), name=st.sampled_from(["image", "image[]"]))
def test_any_edit_is_answered_or_refused(calm: Service, fields: dict[str, bytes], image: bytes, name: str) -> None:
    parts: list[tuple[str, Any]] = [(key, (None, value)) for key, value in {"prompt": b"a circle", **fields}.items()]
    check(calm, calm.client.post("/v1/images/edits", files=[*parts, (name, ("a.png", image))]))


@turn
@given(name=bytes_of_text)
def test_any_name_of_a_model_is_answered_or_refused(calm: Service, name: bytes) -> None:
    path = "/v1/models/" + "".join(f"%{byte:02x}" for byte in name)
    check(calm, calm.client.get(path))
