"""`/openapi.json`: the API's description (OpenAPI 3.1), made from what the service works by.

Schemas are made from the structs and the table of options (`app.schemas`), problems from the table of errors, in the
words of each interface; openapi.yaml has the rest, with gaps that are filled here.
"""

import asyncio
import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from string import Template
from typing import Any

import msgspec
import yaml
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from app import __version__
from app.api.automatic1111 import structs as automatic
from app.api.automatic1111.options import catalogue
from app.api.automatic1111.structs import MAX_NAME
from app.api.generation import JSON
from app.api.openai import structs as openai
from app.errors import Error, Problem, joined, respond
from app.http import events
from app.http.prefix import HEADER, prefix_of
from app.http.static_files import DOCS, PAGE, StaticFolder
from app.lifecycle import ErrorRenderer
from app.metrics import OF_CONNECTIONS, OF_EDGES
from app.parsing.bodies import IMAGE_TYPES
from app.schemas import BINARY, Node, Schemas, reference, struct_of
from app.settings import Settings

OVERLAY = Path(__file__).with_suffix(".yaml")
# What every request can get, before its endpoint is reached: spec in our own words, whatever the interface.
BEFORE = frozenset({*OF_CONNECTIONS, Error.FOREIGN_ORIGIN, Error.UNKNOWN_HOST, Error.METHOD})
SETS = {error.slug: {error} for error in Error} | {"all": set(Error), "edges": set(OF_EDGES)}
GAPS = {200, 304, 503, "query", "body", "bodyRequired", "errors"}
HEADERS = {error: "Retry-After" for error in Error if error.status in (429, 503)}
HEADERS |= {Error.METHOD: "Allow", Error.UNAUTHORIZED: "WWW-Authenticate"}
# How an API renders a problem, and the schema of its body.
OURS = "ProblemBody"
INTERFACES: Mapping[str, tuple[ErrorRenderer, str]] = {
    "OpenAI": (openai.respond, "OpenAI.ErrorAnswer"),
    "AUTOMATIC1111": (automatic.respond, "Automatic.ErrorAnswer"),
}
WITH_KEY = {"Images", *INTERFACES}  # tags of what asks for an API key


class Description:
    """Answers with the description of the service, as it is found behind the prefix of a request's proxy.

    The first request has it made, in a thread: at the start it would be a fifth of the time until the port is bound.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._headers = {"Vary": HEADER} if settings.server.trusted_proxies else {}

    @cached_property
    def _document(self) -> Node:
        return describe(self._settings)

    async def respond(self, request: Request) -> Response:
        body = await asyncio.to_thread(self._at, prefix_of(request.scope))
        return Response(body, headers=self._headers, media_type=JSON)

    def _at(self, prefix: str) -> bytes:
        return msgspec.json.encode(self._document | ({"servers": [{"url": prefix}]} if prefix else {}))


def describe(settings: Settings) -> Node:
    overlay, schemas = _overlay(), Schemas(settings)
    keys = overlay["securitySchemes"] if settings.server.has_keys else {}
    operations = {**overlay["operations"]}
    operations["AUTOMATIC1111"] = operations["AUTOMATIC1111"] | _lists(settings)
    operations["Pages"] = operations["Pages"] | {
        f"GET {path}": _files(operations["Pages"][f"GET {path}"], media_types)
        for path, media_types in (
            ("/page/{name}", StaticFolder(PAGE).media_types),
            ("/docs/{name}", StaticFolder(DOCS).media_types),
        )
    }
    paths: dict[str, Node] = {}
    for tag, of_tag in operations.items():
        for name, spec in of_tag.items():
            method, path = name.split()
            node = paths.setdefault(path, {})[method.lower()] = _operation(tag, spec, schemas)
            if keys and tag in WITH_KEY:
                node["security"] = [{scheme: []} for scheme in keys]
    return {
        "openapi": "3.1.0",
        "info": overlay["info"] | {"version": __version__},
        "tags": [{"name": name, "description": text} for name, text in overlay["tags"].items()],
        "paths": paths,
        "components": {
            "schemas": _merged(schemas.named, overlay["schemas"]),
            "headers": overlay["headers"],
            "securitySchemes": keys,
        },
    }


def example_of(error: Error) -> Problem:
    """An example of an error, word by word."""
    spec = _overlay()["problems"][error.slug]
    each = [{"detail": spec}] if isinstance(spec, str) else spec if isinstance(spec, list) else [spec]
    return joined([Problem(error, **one) for one in each])


@cache
def _overlay() -> Node:
    png, jpeg = (base64.b64encode((DOCS / f"example.{suffix}").read_bytes()).decode() for suffix in ("png", "jpg"))
    filled = Template(OVERLAY.read_text(encoding="utf-8")).safe_substitute(
        png=png, jpeg=jpeg, files=", ".join(IMAGE_TYPES), metrics=CONTENT_TYPE_LATEST, name=MAX_NAME
    )
    read: Node = yaml.load(filled, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    return read


def _merged(node: Node, more: Node) -> Node:
    """A node with all that another has besides or says otherwise."""
    both = {name: _merged(node.get(name, {}), each) if isinstance(each, dict) else each for name, each in more.items()}
    return node | both


def _operation(tag: str, spec: Mapping[Any, Any], schemas: Schemas) -> Node:
    answers = {str(status): _answer(*each) for status, each in spec.items() if isinstance(status, int)}
    node: Node = {"tags": [tag]} | {name: each for name, each in spec.items() if name not in GAPS}
    if "query" in spec:
        node["parameters"] = [*spec.get("parameters", ()), *_in_query(spec["query"], schemas)]
    if "body" in spec:
        node["requestBody"] = {"required": spec.get("bodyRequired", True), "content": _content(spec["body"])}
    problems = _problems(spec.get("errors", ""), *INTERFACES.get(tag, (respond, OURS)))
    return node | {"responses": dict(sorted({**problems, **answers}.items()))}


def _in_query(names: str, schemas: Schemas) -> Iterator[Node]:
    """Parameters for some options, or all; the prompt, which is needed, comes first."""
    for name in names.split() if names != "all" else dict.fromkeys(["text", *schemas.query]):
        node = {**schemas.query[name]}
        yield {"name": name, "in": "query", "description": node.pop("description"), "schema": node}


def _answer(description: str, content: Node, names: str = "") -> Node:
    node: Node = {"description": description} | ({"content": _content(content)} if content else {})
    return node | {"headers": _headers(names.split())} if names else node


def _headers(names: Iterable[str]) -> Node:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _content(kinds: Mapping[str, Any]) -> Node:
    return {kind: _media(kind, spec) for names, spec in kinds.items() for kind in names.split(", ")}


def _media(kind: str, spec: Any) -> Node:
    if spec == "file":
        suffix = kind.removeprefix("image/").replace("jpeg", "jpg")
        file = {"summary": "A circle and a square", "externalValue": f"docs/example.{suffix}"}
        return {"schema": BINARY, "examples": {"image": file}}
    if isinstance(spec, str):
        return {"schema": reference(spec)}
    schema = reference(spec["schema"]) if isinstance(spec["schema"], str) else spec["schema"]
    examples = {name: _example(kind, *each) for name, each in spec.get("examples", {}).items()}
    return {**spec, "schema": schema, **({"examples": examples} if examples else {})}


def _example(kind: str, summary: str, value: Any) -> Node:
    if kind == events.MEDIA_TYPE:
        spec = [events.encode_event(name, msgspec.json.encode(data)) for each in value for name, data in each.items()]
        value = b"".join(spec).decode()
    return {"summary": summary, "value": value}


def _files(spec: dict[Any, Any], media_types: Mapping[str, str]) -> dict[Any, Any]:
    """The files that a page is made of. A text has its charset in its type."""
    schema = {"enum": list(media_types)}
    parameter = {"name": "name", "in": "path", "required": True, "description": "Which file.", "schema": schema}
    content = {kind.partition(";")[0]: "text" if "charset" in kind else "binary" for kind in media_types.values()}
    return spec | {"parameters": [parameter], 200: [spec[200][0], content, spec[200][2]]}


def _lists(settings: Settings) -> Node:
    """The operations of AUTOMATIC1111's interface whose answers never change."""
    found: Node = {}
    for path, value in catalogue(settings).items():
        example = ["The answer of this service", msgspec.to_builtins(value)]
        found[f"GET {path}"] = {
            "operationId": "list" + "".join(part.capitalize() for part in re.split("[/_-]", path)),
            "summary": "A list of what this service has.",
            200: ["The list.", {JSON: {"schema": _of(value), "examples": {"here": example}}}, "X-Request-Id"],
            "errors": "unauthorized",
        }
    return found


def _of(value: object) -> Node:
    """The schema of a value, which is known where it is of structs."""
    struct = struct_of(value)
    one = {} if struct is None else reference(f"Automatic.{struct.__name__}")
    if isinstance(value, list):
        return {"type": "array"} | ({"items": one} if one else {})
    return one or {"type": "object"} | ({"required": list(value)} if isinstance(value, dict) else {})


def _problems(words: str, render_error: ErrorRenderer, schema: str) -> Node:
    """A response for each status that an endpoint's errors have, or those before it is reached."""
    named = {*BEFORE, Error.INTERNAL}
    for word in words.split():
        named = named - SETS[word[1:]] if word.startswith("-") else named | SETS[word]
    ours = named if schema == OURS else BEFORE
    found: dict[str, Node] = {}
    for errors, render, name in ((ours, respond, OURS), (named - ours, render_error, schema)):
        by_status: dict[int, dict[Error, Response]] = {}
        for error in (each for each in Error if each in errors):
            response = render(example_of(error))
            by_status.setdefault(response.status_code, {})[error] = response
        for status, spec in by_status.items():
            node, before = _problem(spec, name), found.get(str(status), {"description": ""})
            both = f"{before['description']} {node['description']}".strip()
            found[str(status)] = _merged(before, node) | {"description": both}
    return found


def _problem(spec: Mapping[Error, Response], name: str) -> Node:
    schema = reference(name)
    if name == OURS:
        kinds = {"type": {"enum": [error.type for error in spec]}, "status": {"const": int(next(iter(spec)).status)}}
        schema = {"allOf": [schema, {"properties": kinds}]}
    examples = {
        error.slug: {"summary": error.title, "value": msgspec.json.decode(bytes(response.body))}
        for error, response in spec.items()
    }
    media_type = next(iter(spec.values())).media_type or JSON
    return {
        "description": "; ".join(f"{error.title} (`{error.slug}`)" for error in spec) + ".",
        "headers": _headers(["X-Request-Id", *(HEADERS[error] for error in spec if error in HEADERS)]),
        "content": {media_type: {"schema": schema, "examples": examples}},
    }
