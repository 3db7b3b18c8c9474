"""What a browser shows, described."""

from collections.abc import Mapping

from app.description.nodes import ANYWHERE, Node, answer, get, headers, json_answer
from app.description.problems import problems
from app.errors import Error

TAG = "Pages"
BROWSER = ("ETag", "Cache-Control", "Vary", "Content-Security-Policy")


def page(name: str, summary: str) -> Node:
    """A page, as HTML."""
    return {"get": get(name, TAG, summary, _answers({"text/html": {"schema": {"type": "string"}}}), problems(ANYWHERE))}


def files(name: str, summary: str, media_types: Mapping[str, str]) -> Node:
    """The files that a page is made of: what they are, by name."""
    parameter = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "Which file.",
        "schema": {"enum": list(media_types)},
    }
    content = {kind.partition(";")[0]: _file(kind) for kind in media_types.values()}
    errors = problems([*ANYWHERE, Error.NOT_FOUND])
    return {"get": get(name, TAG, summary, _answers(content), errors, [parameter])}


def settings() -> Node:
    """What the page for people must know."""
    found = json_answer("It.", "PageSettings") | {"headers": headers("Cache-Control")}
    return {"get": get("settings", TAG, "What the page for people must know.", {200: found}, problems(ANYWHERE))}


def _answers(content: Node) -> dict[int, Node]:
    known = {"description": "The client has this version (If-None-Match).", "headers": headers(*BROWSER)}
    return {200: answer("It.", content, *BROWSER), 304: known}


def _file(kind: str) -> Node:
    """A text has its charset in its type."""
    return {"schema": {"type": "string"}} if "charset" in kind else {"schema": {"type": "string", "format": "binary"}}
