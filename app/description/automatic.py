"""The part of AUTOMATIC1111's API that is there, described."""

from typing import Any

import msgspec

from app.compat.automatic.catalogue import catalogue
from app.compat.automatic.detect import IMAGES, DetectAnswer, DetectRequest
from app.compat.automatic.errors import respond
from app.compat.automatic.options import Options
from app.compat.automatic.scripts import SCRIPT
from app.compat.automatic.structs import (
    MAX_NAME,
    ControlNetUnit,
    ErrorAnswer,
    Info,
    InterruptAnswer,
    JobName,
    ProgressAnswer,
    Txt2ImgAnswer,
    Txt2ImgRequest,
)
from app.compat.automatic.unit import CANNY, IMAGE, MODULES, NONE
from app.description import examples
from app.description.dialect import BEFORE, Dialect, operation
from app.description.fields import FieldSchemas
from app.description.nodes import BINARY, JSON, Node, answer, example, responses
from app.errors import Error
from app.metrics import OF_EDGES
from app.params import PARAMS
from app.settings import Settings

TAG = "AUTOMATIC1111"
DIALECT = Dialect(TAG, "Automatic", respond, ErrorAnswer)
CALLED = {param.automatic1111 or name: name for name, param in PARAMS.items()}
LOOKED_UP = (Error.UNAUTHORIZED, Error.INTERNAL)
WHICH = (
    "It is named by its `force_task_id` or its request id, and belongs to the same client: the same API key, else the "
    "same address. Without a name it is the latest of the API key, or of the address with `server.shared_progress`."
)
NOT_THERE = {*BEFORE, Error.NOT_FOUND, Error.BROKEN_FORM, Error.NOT_ACCEPTABLE}
TXT2IMG = tuple(error for error in Error if error not in NOT_THERE)
DETECT = tuple(error for error in OF_EDGES if error not in BEFORE)
FOUND = (*LOOKED_UP, Error.INVALID_FIELD)
SETTING = (*FOUND, Error.BROKEN_JSON, Error.TOO_LARGE, Error.MEDIA_TYPE)


def schemas(settings: Settings, fields: FieldSchemas) -> Node:
    """All that the operations refer to."""
    listed = [struct for value in catalogue(settings).values() if (struct := _struct(value))]
    others = [JobName, ProgressAnswer, InterruptAnswer, DetectRequest, DetectAnswer, Options]
    made = DIALECT.schemas([Txt2ImgRequest, Txt2ImgAnswer, Info, ControlNetUnit, *others, *listed])
    body, unit = made[DIALECT.name(Txt2ImgRequest)], made[DIALECT.name(ControlNetUnit)]
    for name in body["properties"].keys() & CALLED.keys():
        body["properties"][name] = fields.json(CALLED[name], body["properties"][name])
    unit["properties"] |= {IMAGE: BINARY | {"format": "byte"}, "module": {"enum": list(MODULES), "default": NONE}}
    unit["required"] = [IMAGE]
    return made


def operations(settings: Settings, security: list[Node]) -> dict[str, Node]:
    """By path."""
    without = {
        "name": "skip_current_image",
        "in": "query",
        "description": "`true`, `1`, `yes` or `on`: without the image.",
        "schema": {"type": "string", "default": "false"},
    }
    return {
        "/sdapi/v1/txt2img": {"post": _txt2img(security)},
        "/sdapi/v1/img2img": {
            "post": _operation(
                "img2img", "Refused, always.", security, {}, DIALECT.problems([Error.INVALID_FIELD, *LOOKED_UP])
            )
        },
        "/controlnet/detect": {"post": _detect(security)},
        "/sdapi/v1/progress": {
            "get": _operation(
                "progress",
                f"How far a job is. {WHICH}",
                security,
                {200: _json("It; zeros where there is none.", DIALECT.schema(ProgressAnswer))},
                DIALECT.problems(FOUND),
                parameters=[*_job_names(), without],
            )
        },
        "/sdapi/v1/interrupt": {
            "post": _operation(
                "interrupt",
                f"End a job. {WHICH} The query names it, or the body.",
                security,
                {200: _json("Done, or why not.", DIALECT.schema(InterruptAnswer))},
                DIALECT.problems(SETTING),
                parameters=_job_names(),
                requestBody={"required": False, "content": {JSON: {"schema": DIALECT.schema(JobName)}}},
            )
        },
        "/sdapi/v1/options": _options(security),
        **{path: {"get": _listed(path, value, security)} for path, value in catalogue(settings).items()},
    }


def _job_names() -> list[Node]:
    told = "The job's name: the `force_task_id` of its request, or its request id."
    schema = {"type": "string", "maxLength": MAX_NAME}
    return [{"name": name, "in": "query", "description": told, "schema": schema} for name in JobName.__struct_fields__]


def _txt2img(security: list[Node]) -> Node:
    unit = {IMAGE: examples.encoded("image/png"), "module": CANNY, "weight": 1.0}
    asked = {"prompt": examples.TEXT, "seed": 1234, "alwayson_scripts": {SCRIPT: {"args": [unit]}}}
    content = {
        "schema": {
            "allOf": [
                DIALECT.schema(Txt2ImgRequest),
                {
                    "properties": {"alwayson_scripts": _scripts()},
                    "required": ["alwayson_scripts"],
                },
            ]
        },
        "examples": {"least": example(asked, "What is needed")},
    }
    return _operation(
        "txt2img",
        "Make images that keep the edges of the one in ControlNet's arguments.",
        security,
        {200: _json("The images; none, if they were interrupted.", DIALECT.schema(Txt2ImgAnswer))},
        DIALECT.problems(TXT2IMG),
        requestBody={"required": True, "content": {JSON: content}},
    )


def _detect(security: list[Node]) -> Node:
    asked = {"controlnet_module": CANNY, IMAGES: [examples.encoded("image/png")]}
    content = {"schema": DIALECT.schema(DetectRequest), "examples": {"edges": example(asked, "A circle and a square")}}
    return _operation(
        "detect",
        "See the edges of images as the model would.",
        security,
        {200: _json("Their edges.", DIALECT.schema(DetectAnswer))},
        DIALECT.problems(DETECT),
        requestBody={"required": True, "content": {JSON: content}},
    )


def _scripts() -> Node:
    units = {"type": "array", "items": DIALECT.schema(ControlNetUnit), "minItems": 1}
    script = {"type": "object", "properties": {"args": units}, "required": ["args"]}
    return {"type": "object", "properties": {SCRIPT: script}, "required": [SCRIPT]}


def _options(security: list[Node]) -> Node:
    settings = _json("All of them.", DIALECT.schema(Options))
    body = {"schema": {"type": "object"}, "examples": {"none": example({}, "Nothing is changed")}}
    return {
        "get": _operation("options", "The settings.", security, {200: settings}, DIALECT.problems(LOOKED_UP)),
        "post": _operation(
            "setOptions",
            "To set them to what they are changes nothing; anything else is refused.",
            security,
            {200: _json("They are so.", {"type": "null"})},
            DIALECT.problems(SETTING),
            requestBody={"required": True, "content": {JSON: body}},
        ),
    }


def _listed(path: str, value: Any, security: list[Node]) -> Node:
    """What is always the same: its schema is known where it is of structs."""
    node: Node = {"type": "array"} if isinstance(value, list) else {"type": "object"}
    if (struct := _struct(value)) is not None:
        node = {"type": "array", "items": DIALECT.schema(struct)} if isinstance(value, list) else DIALECT.schema(struct)
    elif isinstance(value, dict):
        node["required"] = list(value)
    content = {JSON: {"schema": node, "examples": {"here": example(msgspec.to_builtins(value), "As it is here")}}}
    name = "".join(part.capitalize() for part in path.strip("/").replace("-", "_").replace("/", "_").split("_"))
    found = answer("What there is.", content, "X-Request-Id")
    return _operation(f"list{name}", "What there is.", security, {200: found}, DIALECT.problems(LOOKED_UP))


def _struct(value: Any) -> type | None:
    first = value[0] if isinstance(value, list) and value else value
    return type(first) if isinstance(first, msgspec.Struct) else None


def _operation(
    name: str, summary: str, security: list[Node], answers: dict[int, Node], problems: dict[int, Node], **rest: Any
) -> Node:
    return operation(name, TAG, summary, security, responses=responses(answers, problems), **rest)


def _json(description: str, node: Node) -> Node:
    return answer(description, {JSON: {"schema": node}}, "X-Request-Id")
