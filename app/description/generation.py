"""`POST /generation/`, described: the forms of its body, the forms of its answer, and its errors."""

from app import events
from app.bodies import FORM_FILE, PICTURES
from app.description import examples
from app.description.fields import FieldSchemas
from app.description.nodes import BINARY, JSON, PREFER, Node, answer, responses, schema
from app.description.problems import problems
from app.errors import Error
from app.generation import FORMATS

TAG = "Pictures"
ERRORS = tuple(error for error in Error if error is not Error.NOT_FOUND)
FORM = "GenerationForm"  # the schema of the body as a form
WORDS = """A body of JSON has all fields in it, the picture as base64. A form has them as parts, and the picture as the
file `input_image`. The picture itself as the body has the others in the query, where `text` is needed then; with other
bodies, fields in the query are refused. `Accept` chooses the answer: JSON, a picture, or events while it is made."""
EVENT = "GenerationEvent"
EVENTS = """Server-sent events (`Accept: text/event-stream`), of which this is one: how it comes along, then `done` with
the ordinary answer or `error` with the ordinary problem, as the last. What is wrong with the request itself is answered
without a stream, by its status. Lines that begin with a colon are to be ignored. Closing the connection cancels."""


def operations(fields: FieldSchemas, query: Node, security: list[Node]) -> dict[str, Node]:
    """Both spellings of the path. `query` has the schemas of the fields that may be in the query."""
    names = {"/generation/": "generate", "/generation": "generateWithoutSlash"}
    return {path: {"post": _operation(name, fields, query, security)} for path, name in names.items()}


def form(fields: FieldSchemas, generated: Node) -> Node:
    """The schema of the body as a form, from that of its texts."""
    properties = fields.texts(generated["properties"])
    properties["text"]["example"] = examples.TEXT
    return {
        "title": FORM,
        "description": "The body as a form; unknown fields are ignored.",
        "type": "object",
        "properties": {FORM_FILE: fields.file(), **properties},
        "required": [FORM_FILE, *generated["required"]],
    }


def event() -> Node:
    """The schema of an event: before OpenAPI 3.2, a stream's schema is that of each event in it."""
    kinds = {name: struct.__name__ for struct, name in events.NAMES.items()}
    kinds |= {"done": "GenerationAnswer", "error": "ProblemBody"}
    return {"title": EVENT, "description": EVENTS, "oneOf": [_event(*kind) for kind in kinds.items()]}


def _event(name: str, data: str) -> Node:
    encoded = {"type": "string", "contentMediaType": JSON, "contentSchema": schema(data)}
    return {"type": "object", "properties": {"event": {"const": name}, "data": encoded}, "required": ["event", "data"]}


def parameters(fields: FieldSchemas, generated: Node) -> list[Node]:
    """The fields in the query."""
    texts = fields.texts(generated["properties"])
    return [parameter(name, texts[name]) for name in dict.fromkeys([*generated["required"], *texts])]


def parameter(name: str, node: Node) -> Node:
    """A parameter of the query, from its schema."""
    return {"name": name, "in": "query", "description": node.pop("description"), "schema": node}


def _operation(name: str, fields: FieldSchemas, query: Node, security: list[Node]) -> Node:
    node = {
        "operationId": name,
        "tags": [TAG],
        "summary": "Make a picture that keeps the edges of another.",
        "description": WORDS,
        "parameters": [PREFER, *parameters(fields, query)],
        "requestBody": {"required": True, "content": _bodies()},
        "responses": responses({200: _made()}, problems(ERRORS)),
    }
    return node | {"security": security} if security else node


def _bodies() -> Node:
    kinds = {"contentType": ", ".join(PICTURES)}
    return {
        JSON: {"schema": schema("GenerationRequest"), "examples": examples.requests()},
        "multipart/form-data": {"schema": schema(FORM), "encoding": {FORM_FILE: kinds}},
        **{kind: {"schema": BINARY, "examples": examples.file(kind)} for kind in PICTURES},
    }


def _made() -> Node:
    content = {
        JSON: {"schema": schema("GenerationAnswer"), "examples": examples.answers()},
        **{kind: {"schema": BINARY, "examples": examples.file(kind)} for kind in FORMATS},
        events.MEDIA_TYPE: {"schema": schema(EVENT), "examples": examples.stream()},
    }
    return answer("What was made.", content, "X-Request-Id", "Server-Timing", "X-Contour-Warning", "Cache-Control")
