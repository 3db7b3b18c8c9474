"""What a description is built of: references, contents, headers and answers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from app.errors import Error
from app.metrics import OF_CONNECTIONS

Node: TypeAlias = dict[str, Any]

JSON = "application/json"
BINARY: Node = {"type": "string", "format": "binary"}
OF_MIDDLEWARE = {Error.FOREIGN_ORIGIN, Error.UNKNOWN_HOST}
ANYWHERE = tuple(error for error in Error if error in {*OF_CONNECTIONS, *OF_MIDDLEWARE, Error.METHOD, Error.INTERNAL})

HEADERS: Mapping[str, Node] = {
    "X-Request-Id": {"description": "The request's name in the log.", "schema": {"type": "string"}},
    "Server-Timing": {"description": "The stages, in milliseconds.", "schema": {"type": "string"}},
    "X-Contour-Warning": {
        "description": "Where the request was not followed to the letter; quotes are percent-encoded.",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "Allow": {"description": "The methods that are taken.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to bring an API key.", "schema": {"type": "string"}},
    "Cache-Control": {"description": "Whether this may be kept.", "schema": {"type": "string"}},
    "ETag": {"description": "The version, for If-None-Match.", "schema": {"type": "string"}},
    "Vary": {"description": "What the answer depends on.", "schema": {"type": "string"}},
    "Content-Security-Policy": {"description": "What a page may do.", "schema": {"type": "string"}},
}
PREFER: Node = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=SECONDS`: how long the client is prepared to wait (RFC 7240). Anything else is ignored.",
    "schema": {"type": "string"},
    "example": "wait=30",
}


def schema(name: str) -> Node:
    """A reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def headers(*names: str) -> Node:
    """References to headers, by their names."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def example(value: object, summary: str) -> Node:
    """An Example Object."""
    return {"summary": summary, "value": value}


def json_answer(description: str, name: str) -> Node:
    """A response of JSON by a schema's name."""
    return answer(description, {JSON: {"schema": schema(name)}})


def answer(description: str, content: Node, *header_names: str) -> Node:
    """A response with some content."""
    node: Node = {"description": description, "content": content}
    return node | {"headers": headers(*header_names)} if header_names else node


def get(
    name: str,
    tag: str,
    summary: str,
    answers: Mapping[int, Node],
    problems: Mapping[int, Node],
    parameters: Sequence[Node] = (),
) -> Node:
    """An operation that takes no body."""
    node = {"operationId": name, "tags": [tag], "summary": summary, "responses": responses(answers, problems)}
    return node | {"parameters": list(parameters)} if parameters else node


def responses(answers: Mapping[int, Node], problems: Mapping[int, Node]) -> Node:
    """All responses of an operation, by their status; an answer goes before a problem of the same status."""
    return {str(status): node for status, node in sorted({**problems, **answers}.items())}


def nullable(node: Node) -> Node:
    """A schema, or null."""
    return {"anyOf": [{key: value for key, value in node.items() if key != "default"}, {"type": "null"}]} | (
        {"default": node["default"]} if "default" in node else {}
    )


def by_status(errors: Iterable[Error]) -> dict[int, list[Error]]:
    """Errors, by their status."""
    found: dict[int, list[Error]] = {}
    for error in errors:
        found.setdefault(int(error.status), []).append(error)
    return found
