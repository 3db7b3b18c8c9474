"""Fields of the interfaces that others have made popular: every number is understood or refused, and all is bounded."""

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import inspect

from app.api.automatic1111.options import Options
from app.api.automatic1111.parse import Body, parse
from app.api.automatic1111.structs import ControlNetUnit, JobName, Txt2ImgRequest
from app.api.openai.structs import EditForm
from app.errors import Faults
from app.params import Rules
from app.settings import load
from tests.service.automatic import ENCODED, body
from tests.service.memory import peak_bytes
from tests.service.running import ROOT, Service, png

MIB = 2**20
LONGEST_ERROR = 4096  # bytes
NUMBERS = (inspect.IntType, inspect.FloatType)
UNBOUNDED = {  # by their types: prompts and the seed have bounds of their own, images that of the body
    "Txt2ImgRequest": {"prompt", "negative_prompt", "seed", "infotext"},  # the last is refused unless it is empty
    "ControlNetUnit": {
        *("image", "input_image", "mask", "mask_image", "effective_region_mask"),
        *("advanced_weighting", "batch_images", "ipadapter_input"),
    },
}
NO_NUMBERS = ["nan", "-nan", "inf", "-Infinity", "1e999", "-1e999", "9" * 600, "-" + "9" * 600, "9" * 5000, "1_0"]
ODD = ["1e300", "-1e300", "1e-300", "-0.0", "0.5", str(2**31), str(2**63), str(2**64), "true", "[]", "{}", ""]


def kinds(node: inspect.Type) -> Sequence[inspect.Type]:
    """The types that a union is of, or the one that it is."""
    return node.types if isinstance(node, inspect.UnionType) else (node,)


def fields_of(struct: type[msgspec.Struct]) -> Sequence[inspect.Field]:
    found = inspect.type_info(struct)
    assert isinstance(found, inspect.StructType)
    return found.fields


def numeric(struct: type[msgspec.Struct]) -> list[str]:
    """The names of the fields that may be numbers."""
    names = [field.name for field in fields_of(struct) if any(isinstance(kind, NUMBERS) for kind in kinds(field.type))]
    assert len(names) > 5
    return names


def of_unit(name: str, value: object) -> dict[str, Any]:
    """A request with one field of its unit replaced."""
    fields: dict[str, Any] = {name: value}
    return body(**fields)


def refused(response: httpx.Response, *statuses: int) -> str:
    assert response.status_code in statuses, response.text[:500]
    assert len(response.content) <= LONGEST_ERROR
    return response.text


def answered(response: httpx.Response, *statuses: int) -> None:
    """With an image, or refused."""
    if response.status_code != 200:
        refused(response, *statuses)


def post(service: Service, path: str, content: bytes) -> httpx.Response:
    return service.client.post(path, content=content, headers={"content-type": "application/json"})


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", numeric(Txt2ImgRequest))
def test_whatever_is_sent_as_a_number_of_txt2img_is_understood_or_refused(echo: Service, name: str) -> None:
    def ask(value: str) -> httpx.Response:
        text = json.dumps(body({name: "VALUE"})).replace('"VALUE"', value)
        return post(echo, "/sdapi/v1/txt2img", text.encode())

    check_numbers(ask)


@pytest.mark.parametrize("name", numeric(ControlNetUnit))
def test_whatever_is_sent_as_a_number_of_a_unit_is_understood_or_refused(echo: Service, name: str) -> None:
    def ask(value: str) -> httpx.Response:
        text = json.dumps(of_unit(name, "VALUE")).replace('"VALUE"', value)
        return post(echo, "/sdapi/v1/txt2img", text.encode())

    check_numbers(ask)


def check_numbers(ask: Any) -> None:
    for value in NO_NUMBERS:
        refused(ask(json.dumps(value)), 422)
    for value in (*NO_NUMBERS, "NaN", "Infinity"):
        refused(ask(value), 422, 400)  # some of these are not JSON
    for value in ODD:
        answered(ask(value), 422, 400)
        answered(ask(json.dumps(value)), 422)


@pytest.mark.parametrize("name", numeric(EditForm))
def test_whatever_is_sent_as_a_number_of_an_edit_is_understood_or_refused(echo: Service, name: str) -> None:
    def ask(value: str) -> httpx.Response:
        data = {"prompt": "a circle", name: value}
        return echo.client.post("/v1/images/edits", data=data, files={"image": png(64, 64)})

    for value in NO_NUMBERS:
        refused(ask(value), 400)
    for value in ODD:
        answered(ask(value), 400)


# --------------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("struct", [Txt2ImgRequest, ControlNetUnit, JobName])
def test_every_text_list_object_and_number_is_bounded_by_its_type(struct: type[msgspec.Struct]) -> None:
    for field in fields_of(struct):
        if field.name not in UNBOUNDED.get(struct.__name__, set()):
            assert list(unbounded(field.type)) == [], field.name


def unbounded(node: inspect.Type) -> Iterator[inspect.Type]:
    """What is of any size in a type."""
    match node:
        case inspect.UnionType():
            for kind in node.types:
                yield from unbounded(kind)
        case inspect.IntType() | inspect.FloatType():
            yield from () if node.ge is not None and node.le is not None else (node,)
        case inspect.StrType():
            yield from () if node.max_length is not None else (node,)
        case inspect.ListType():
            yield from () if node.max_length is not None else (node,)
            yield from unbounded(node.item_type)
        case inspect.DictType():
            yield from () if node.max_length is not None else (node,)
            yield from (*unbounded(node.key_type), *unbounded(node.value_type))
        case inspect.StructType():
            for field in node.fields:
                yield from unbounded(field.type)
        case inspect.AnyType():
            yield node
        case _:
            pass


@pytest.mark.parametrize("text", ["x" * 8 * MIB, "\0" * 300, "\\" * 300, '"' * 201, "é" * 250, "\U0001f600" * 201])
def test_a_long_text_comes_back_in_no_error(echo: Service, text: str) -> None:
    named = ("script_name", "sampler_name", "scheduler", "refiner_checkpoint", "force_task_id")
    bodies: list[dict[str, Any]] = [body({name: text}) for name in named]
    bodies += [
        body({"styles": [text]}),
        body({"override_settings": {text: 1}}),
        body({"override_settings": {"a": text}}),
    ]
    bodies += [body({"alwayson_scripts": {text: {"args": [1]}}})]
    bodies += [of_unit(name, text) for name in ("module", "model", "control_mode", "image", "weight")]
    for each in bodies:
        refused(echo.client.post("/sdapi/v1/txt2img", json=each), 422)
    for setting in ({text: 1}, {"sd_model_checkpoint": text}, {"sd_vae": [text]}):
        refused(echo.client.post("/sdapi/v1/options", json=setting), 413, 422)
    for name in ("model", "size", "output_format", "response_format", "background", "n", "seed", "stream", "steps"):
        data = {"prompt": "a circle", name: text}
        refused(echo.client.post("/v1/images/edits", data=data, files={"image": png(64, 64)}), 400, 404)


@pytest.mark.parametrize("text", ["x" * 200, "\0" * 200, "\\" * 200, "\U0001f600" * 200])
def test_quotes_are_cut(echo: Service, text: str) -> None:
    bodies = [body({"script_name": text}), body({"styles": [text] * 100}), body({"override_settings": {text: 1}})]
    bodies += [body({"override_settings": {"sd_model_checkpoint": [text] * 100}}), body(module=text), body(model=text)]
    bodies += [body(control_mode=text), body({"alwayson_scripts": {text: {"args": [1]}}})]
    for each in bodies:
        assert "..." in refused(echo.client.post("/sdapi/v1/txt2img", json=each), 422)
    refused(echo.client.get("/v1/models/" + text.replace("\0", "%00")), 404)


def test_the_answer_repeats_only_known_fields(echo: Service) -> None:
    """Unknown fields, the scripts and the image in them are left out; names and settings are small."""
    fields = {"unknown": "x" * MIB, "sampler_name": "s" * 200, "override_settings": {"save_it": ["y" * 200] * 100}}
    answer = echo.client.post("/sdapi/v1/txt2img", json=body({**fields, "styles": [], "send_images": False}))
    assert (answer.status_code, len(answer.content) < 30_000) == (200, True)
    assert answer.json()["parameters"]["override_settings"] == fields["override_settings"]


def test_settings_are_a_small_body(echo: Service) -> None:
    refused(echo.client.post("/sdapi/v1/options", json={"save_it": "x" * 64 * 2**10}), 413)
    refused(echo.client.post("/sdapi/v1/options", json={f"save_{n}": n for n in range(101)}), 422)
    assert echo.client.post("/sdapi/v1/options", json={f"save_{n}": n for n in range(100)}).status_code == 200


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/sdapi/v1/options"])
def test_json_without_its_type_is_refused(echo: Service, path: str) -> None:
    """A page of another origin can send that without asking first."""
    content = json.dumps(body()).encode()
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data; boundary=X"}):
        refused(echo.client.post(path, content=content, headers=headers), 415)


def test_thirty_megabytes_of_odd_json_cost_little_memory() -> None:
    """Each of these took gigabytes, or came back several times as large."""
    size = 31 * MIB
    units = b'{"alwayson_scripts":{"controlnet":{"args":[' + b"{}," * (size // 3) + b"{}]}}}"
    numbers = b'{"alwayson_scripts":{"controlnet":{"args":[{"mask":[' + b"0," * (size // 2) + b"0]}]}}}"
    keys = b'{"override_settings":{' + b",".join(b'"%x":0' % n for n in range(size // 12)) + b"}}"
    deep = b'{"x":' + b"[" * size
    escapes = b'{"script_name":"' + b"\\u00e9" * (size // 6) + b'"}'
    scripts = json.dumps({"alwayson_scripts": {"other": {"args": ["x" * size]}}}).encode()
    image = json.dumps(body(image={"image": ENCODED, "mask": "A" * size})).encode()
    with Service("echo") as service:
        service.wait_until_ready()
        service.generate()
        for content in (units, numbers, keys, deep, escapes, scripts, image):
            refused(post(service, "/sdapi/v1/txt2img", content), 400, 413, 422)
            refused(post(service, "/sdapi/v1/options", content), 413)
            assert service.client.post("/sdapi/v1/txt2img", json=body()).status_code == 200
        assert peak_bytes(service.process.pid) < 800 * MIB


def test_a_waiting_request_holds_no_text_of_its_image() -> None:
    """Nor the body that it came in: waiting requests would take three times their images' memory."""
    settings = load(ROOT / "configs" / "echo.yaml", {})
    request = msgspec.json.decode(json.dumps(body({"init_images": [ENCODED]}, mask=None)), type=Body)
    found = parse(request, Rules.of(settings), Options(sd_model_checkpoint="echo"), Faults())
    assert found.params.image == base64.b64decode(ENCODED)
    assert ENCODED.encode() not in msgspec.json.encode(found.request)
