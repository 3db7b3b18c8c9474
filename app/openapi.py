"""`/openapi.json`: the service's own description (OpenAPI 3.1), made from the structs and tables that it works by."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from app import __version__
from app.bodies import PICTURES
from app.edges import PNG, EdgesRequest
from app.errors import MEDIA_TYPE, Error, ProblemBody
from app.fields import SEED_MAX, SEED_MIN, GenerationRequest, Range, Rules
from app.generation import GenerationAnswer
from app.health import Aliveness, Readiness
from app.metrics import OF_CONNECTIONS, OF_EDGES
from app.pictures import JSON_NAME
from app.settings import ServerConfig, Settings

Node: TypeAlias = dict[str, Any]

JSON = "application/json"
ANYWHERE = tuple(error for error in Error if error in {*OF_CONNECTIONS, Error.METHOD, Error.INTERNAL})
EDGES = tuple(error for error in Error if error in {*ANYWHERE, *OF_EDGES})
GENERATION = tuple(error for error in Error if error is not Error.NOT_FOUND)
LATER = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
STRUCTS = (GenerationRequest, GenerationAnswer, EdgesRequest, ProblemBody, Aliveness, Readiness)
DIGITS = r"^-?(0|[1-9][0-9]*)$"

HEADERS: Mapping[str, Node] = {
    "X-Request-Id": {"description": "The request's name in the log.", "schema": {"type": "string"}},
    "Server-Timing": {"description": "The stages, in milliseconds.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "Allow": {"description": "The methods that are taken.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "How to bring an API key.", "schema": {"type": "string"}},
}
KEYS: Mapping[str, Node] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the service asks for one."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, in a header of its own."},
}
PREFER: Node = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=SECONDS`: how long the client is prepared to wait (RFC 7240). Anything else is ignored.",
    "schema": {"type": "string"},
    "example": "wait=30",
}


class Description:
    """Says what it was constructed with."""

    def __init__(self, settings: Settings) -> None:
        self._body = msgspec.json.encode(describe(settings))

    async def respond(self, request: Request) -> Response:
        """200, always."""
        return Response(self._body, media_type=JSON)


def describe(settings: Settings) -> Node:
    """The whole description."""
    config = settings.server
    _, schemas = msgspec.json.schema_components(STRUCTS, ref_template="#/components/schemas/{name}")
    properties = schemas["GenerationRequest"]["properties"]
    properties |= _request_fields(config)
    for name, allowed in Rules.of(settings).ranges.items():
        properties[name] = _within(properties[name], allowed)
    schemas["EdgesRequest"]["properties"][JSON_NAME] = properties[JSON_NAME]
    title = {"title": "Contour", "version": __version__, "license": {"name": "Apache-2.0"}}
    return {
        "openapi": "3.1.0",
        "info": title | {"description": "A prompt and a picture in, a new picture with the same edges out."},
        "paths": {
            "/generation/": {"post": _generation("generate", config)},
            "/generation": {"post": _generation("generateWithoutSlash", config)},
            "/edges": {"post": _edges("edges", settings)},
            "/edges/": {"post": _edges("edgesWithSlash", settings)},
            "/healthz": {"get": _get("health", "Is the process there?", {200: _json("It is.", "Aliveness")})},
            "/readyz": {"get": _get("readiness", "Can it make pictures now?", _readiness())},
            "/metrics": {"get": _get("metrics", "Figures for Prometheus.", {200: _metrics()})},
            "/openapi.json": {"get": _get("description", "This description.", {200: _document()})},
        },
        "components": {"schemas": schemas, "headers": dict(HEADERS), "securitySchemes": dict(KEYS)},
    }


def _request_fields(config: ServerConfig) -> Node:
    """What the struct does not say: limits that are checked after it, and the picture, which it leaves undecoded."""
    seeds = {"type": "integer", "minimum": SEED_MIN, "maximum": SEED_MAX}
    return {
        "request_id": {"description": "It comes back with the answer.", "anyOf": [{"type": "integer"}, _digits()]},
        "text": {"description": "The prompt.", "type": "string", "maxLength": config.max_text_chars},
        "input_image_base64": {
            "description": f"A PNG, JPEG or WebP in standard base64, of at most {config.max_picture_bytes} bytes and "
            f"{config.max_pixels} pixels; a `data:` prefix and whitespace are tolerated.",
            "type": "string",
            "format": "byte",
            "minLength": 1,
        },
        "random_seed": {"description": "The same seed gives the same picture.", "anyOf": [seeds, _digits()]},
    }


def _within(node: Node, allowed: Range) -> Node:
    """A number's schema with its range, wherever in it the number is."""
    if node.get("type") in {"integer", "number"}:
        low = "exclusiveMinimum" if allowed.open else "minimum"
        return node | {low: allowed.low, "maximum": allowed.high}
    return node | {"anyOf": [_within(each, allowed) for each in node.get("anyOf", [])]} if "anyOf" in node else node


def _digits() -> Node:
    return {"type": "string", "pattern": DIGITS}


# ---------------------------------------------------------------------------------------------------------- operations


def _generation(name: str, config: ServerConfig) -> Node:
    picture = _json("The picture.", "GenerationAnswer") | {"headers": _headers("X-Request-Id", "Server-Timing")}
    body = {"required": True, "content": {JSON: {"schema": _schema("GenerationRequest")}}}
    return {
        "operationId": name,
        "summary": "Make a picture that keeps the edges of another.",
        "parameters": [PREFER],
        "security": _security(config),
        "requestBody": body,
        "responses": _responses({200: picture}, GENERATION),
    }


def _edges(name: str, settings: Settings) -> Node:
    file = {"schema": {"type": "string", "format": "binary"}}
    edges = {"description": "The edges: grey, 255 on an edge and 0 elsewhere.", "content": {PNG: file}}
    return {
        "operationId": name,
        "summary": "See the edges of a picture as the model would.",
        "parameters": [_threshold(each, settings) for each in ("low", "high")],
        "security": _security(settings.server),
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": _schema("EdgesRequest")}} | dict.fromkeys(PICTURES, file),
        },
        "responses": _responses({200: edges | {"headers": _headers("X-Request-Id")}}, EDGES),
    }


def _threshold(name: str, settings: Settings) -> Node:
    allowed = Rules.of(settings).ranges[f"canny_{name}"]
    return {
        "name": f"canny_{name}",
        "in": "query",
        "description": f"The {name} threshold of the edge detector.",
        "schema": _within({"type": "integer", "default": getattr(settings.engine.canny, name)}, allowed),
    }


def _security(config: ServerConfig) -> list[Node]:
    return [{scheme: []} for scheme in KEYS] if config.api_key or config.api_key_file else []


def _get(name: str, summary: str, answers: Mapping[int, Node]) -> Node:
    return {"operationId": name, "summary": summary, "responses": _responses(answers, ANYWHERE)}


def _readiness() -> dict[int, Node]:
    return {
        200: _json("It can.", "Readiness"),
        503: _json("It cannot: it starts, drains or has lost all.", "Readiness"),
    }


def _metrics() -> Node:
    return {"description": "All of them.", "content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}


def _document() -> Node:
    return {"description": "OpenAPI 3.1.", "content": {JSON: {"schema": {"type": "object", "required": ["openapi"]}}}}


# ----------------------------------------------------------------------------------------------------------- responses


def _responses(answers: Mapping[int, Node], errors: Sequence[Error]) -> Node:
    problems = {
        int(status): _problem([error for error in errors if error.status is status]) for status in _statuses(errors)
    }
    return {str(status): node for status, node in sorted((problems | dict(answers)).items())}


def _statuses(errors: Iterable[Error]) -> list[Any]:
    return list({error.status: None for error in errors})


def _problem(errors: Sequence[Error]) -> Node:
    """A response of one status, and all the problems that have it."""
    kinds = {"type": {"enum": [error.type for error in errors]}, "status": {"const": int(errors[0].status)}}
    names = ["X-Request-Id"]
    names += ["Allow"] if Error.METHOD in errors else []
    names += ["Retry-After"] if errors[0].status in LATER else []
    names += ["WWW-Authenticate"] if Error.UNAUTHORIZED in errors else []
    return {
        "description": "; ".join(f"{error.title} (`{error.slug}`)" for error in errors) + ".",
        "headers": _headers(*names),
        "content": {MEDIA_TYPE: {"schema": {"allOf": [_schema("ProblemBody"), {"properties": kinds}]}}},
    }


def _json(description: str, name: str) -> Node:
    return {"description": description, "content": {JSON: {"schema": _schema(name)}}}


def _headers(*names: str) -> Node:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _schema(name: str) -> Node:
    return {"$ref": f"#/components/schemas/{name}"}
