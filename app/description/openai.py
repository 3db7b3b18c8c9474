"""The part of OpenAI's API that is there, described."""

from typing import Any

from app import events
from app.bodies import PICTURES
from app.compat.openai.errors import respond
from app.compat.openai.images import PICTURE
from app.compat.openai.references import FIELDS
from app.compat.openai.structs import (
    CompletedEvent,
    EditForm,
    ErrorAnswer,
    ImagesAnswer,
    Model,
    ModelList,
    PartialImageEvent,
)
from app.description import examples
from app.description.dialect import BEFORE, Dialect, operation
from app.description.fields import FieldSchemas
from app.description.nodes import JSON, Node, answer, example, nullable, responses, schema
from app.errors import Error
from app.params import PARAMS

TAG = "OpenAI"
DIALECT = Dialect(TAG, "OpenAI", respond, ErrorAnswer)
CALLED = {param.openai: name for name, param in PARAMS.items() if param.openai}
BODY, IMAGES = f"{DIALECT.prefix}.EditBody", FIELDS[0]
EVENT = f"{DIALECT.prefix}.EditEvent"
LOOKED_UP = (Error.UNAUTHORIZED, Error.INTERNAL)
ERRORS = tuple(error for error in Error if error not in {*BEFORE, Error.NOT_ACCEPTABLE})


def schemas(fields: FieldSchemas) -> Node:
    """All that the operations refer to."""
    made = DIALECT.schemas([EditForm, ImagesAnswer, PartialImageEvent, CompletedEvent, ModelList, Model])
    form = made[DIALECT.name(EditForm)]
    texts = {name: node for name, node in form["properties"].items() if name not in CALLED.values()}  # said once
    form["properties"] = {PICTURE: fields.file(), **fields.texts(texts, CALLED)}
    form["properties"]["prompt"]["example"] = examples.TEXT
    made[BODY] = _body(form)
    form["required"] = [PICTURE, *form["required"]]
    kinds = {
        "image_edit.partial_image": PartialImageEvent,
        "image_edit.completed": CompletedEvent,
        "error": ErrorAnswer,
    }
    return made | {EVENT: {"title": EVENT, "oneOf": [_event(*kind) for kind in kinds.items()]}}


def _body(form: Node) -> Node:
    """The schema of an edit as JSON, from that of its form: null is "not set", and a reference has the image in it."""
    needed = form["required"]
    texts = {name: node for name, node in form["properties"].items() if name != PICTURE}
    properties = {name: node if name in needed else nullable(node) for name, node in texts.items()}
    url = {**form["properties"][PICTURE], "format": "byte", "minLength": 1}
    url["description"] += " In base64, as a rule within a `data:` URI: no image is fetched from elsewhere."
    reference = {"type": "object", "properties": {"image_url": url}, "required": ["image_url"]}
    return {
        "title": BODY,
        "description": "The body as JSON. `images` has one reference to an image, which has the image in it.",
        "type": "object",
        "properties": {IMAGES: {"type": "array", "items": reference, "minItems": 1, "maxItems": 1}, **properties},
        "required": [IMAGES, *needed],
    }


def operations(security: list[Node]) -> dict[str, Node]:
    """By path."""
    name = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    models, one = _json("The models: there is one.", ModelList), _json("The model.", Model)
    no_pictures = DIALECT.problems([Error.INVALID_FIELD, *LOOKED_UP])
    return {
        "/v1/images/edits": {"post": _edits(security)},
        "/v1/images/generations": {
            "post": _operation("openaiGenerations", "Refused, always.", security, {}, no_pictures)
        },
        "/v1/models": {
            "get": _operation("openaiModels", "The model.", security, {200: models}, DIALECT.problems(LOOKED_UP))
        },
        "/v1/models/{id}": {
            "get": _operation(
                "openaiModel",
                "The model, by its name or by one of OpenAI's that edits take for it.",
                security,
                {200: one},
                DIALECT.problems([Error.NOT_FOUND, *LOOKED_UP]),
                parameters=[name],
            )
        },
    }


def _edits(security: list[Node]) -> Node:
    content = {
        JSON: {"schema": DIALECT.schema(ImagesAnswer)},
        events.MEDIA_TYPE: {"schema": schema(EVENT)},
    }
    encoding = {PICTURE: {"contentType": ", ".join(PICTURES)}}
    least = {IMAGES: [{"image_url": f"data:image/png;base64,{examples.encoded('image/png')}"}], "prompt": examples.TEXT}
    bodies = {
        "multipart/form-data": {"schema": DIALECT.schema(EditForm), "encoding": encoding},
        JSON: {"schema": schema(BODY), "examples": {"least": example(least, "What is needed")}},
    }
    return _operation(
        "openaiEdits",
        "Make pictures that keep the edges of another.",
        security,
        {200: answer("What was made; with `stream`, as events, of which this is one.", content, "X-Request-Id")},
        DIALECT.problems(ERRORS),
        requestBody={"required": True, "content": bodies},
    )


def _operation(
    name: str, summary: str, security: list[Node], answers: dict[int, Node], problems: dict[int, Node], **rest: Any
) -> Node:
    return operation(name, TAG, summary, security, responses=responses(answers, problems), **rest)


def _json(description: str, struct: type) -> Node:
    return answer(description, {JSON: {"schema": DIALECT.schema(struct)}}, "X-Request-Id")


def _event(name: str, struct: type) -> Node:
    encoded = {"type": "string", "contentMediaType": JSON, "contentSchema": DIALECT.schema(struct)}
    return {"type": "object", "properties": {"event": {"const": name}, "data": encoded}, "required": ["event", "data"]}
