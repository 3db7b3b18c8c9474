"""`POST /edges`, described."""

from app.bodies import PICTURES
from app.description import examples
from app.description.fields import FieldSchemas
from app.description.generation import TAG, parameter
from app.description.nodes import ANYWHERE, BINARY, JSON, Node, answer, example, responses, schema
from app.description.problems import problems
from app.edges import PNG, EdgesRequest
from app.errors import Error
from app.metrics import OF_EDGES
from app.pictures import JSON_NAME

BODY = EdgesRequest.__name__
THRESHOLDS = ("canny_low", "canny_high")
ERRORS = tuple(error for error in Error if error in {*ANYWHERE, *OF_EDGES})


def operations(fields: FieldSchemas, query: Node, security: list[Node]) -> dict[str, Node]:
    """Both spellings of the path. `query` has the schemas of the fields that may be in the query."""
    names = {"/edges": "edges", "/edges/": "edgesWithSlash"}
    return {path: {"post": _operation(name, fields, query, security)} for path, name in names.items()}


def _operation(name: str, fields: FieldSchemas, query: Node, security: list[Node]) -> Node:
    texts = fields.texts(query["properties"])
    headers = ("X-Request-Id", "X-Contour-Warning")
    found = answer("The edges: grey, 255 on an edge and 0 elsewhere.", {PNG: {"schema": BINARY}}, *headers)
    node = {
        "operationId": name,
        "tags": [TAG],
        "summary": "See the edges of a picture as the model would.",
        "parameters": [parameter(each, texts[each]) for each in THRESHOLDS],
        "requestBody": {"required": True, "content": _bodies()},
        "responses": responses({200: found}, problems(ERRORS)),
    }
    return node | {"security": security} if security else node


def _bodies() -> Node:
    picture = {JSON_NAME: examples.encoded(PNG)}
    return {
        JSON: {"schema": schema(BODY), "examples": {"picture": example(picture, "A circle and a square")}},
        **{kind: {"schema": BINARY, "examples": examples.file(kind)} for kind in PICTURES},
    }
