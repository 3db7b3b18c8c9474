"""The whole description, and who answers with it."""

from inspect import cleandoc

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app import __version__, events
from app.description import automatic, edges, generation, openai, pages, plain
from app.description.fields import FieldSchemas
from app.description.nodes import HEADERS, JSON, Node
from app.docs import Docs
from app.edges import EdgesRequest
from app.errors import ProblemBody
from app.generation import GenerationAnswer
from app.health import Aliveness, Readiness
from app.http.prefix import HEADER, prefix_of
from app.page import Page, PageSettings
from app.params import GenerationRequest, RequestFields
from app.pictures import JSON_NAME
from app.settings import Settings

STRUCTS = (
    GenerationRequest,
    RequestFields,
    GenerationAnswer,
    EdgesRequest,
    ProblemBody,
    PageSettings,
    Aliveness,
    Readiness,
    *events.NAMES,
)
KEYS: Node = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the service asks for one."},
    "basic": {"type": "http", "scheme": "basic", "description": "The same, as the password."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, in a header of its own."},
}
TAGS = {
    generation.TAG: "A prompt and a picture in, a new picture with the same edges out.",
    openai.TAG: "For clients of OpenAI's API: what there is of it.",
    automatic.TAG: "For clients of AUTOMATIC1111's API: what there is of it.",
    pages.TAG: "What a browser shows.",
    plain.TAG: "For those who run the service.",
}


class Description:
    """Answers with the description of the service, as it is found behind the prefix of a request's proxy."""

    def __init__(self, settings: Settings) -> None:
        self._document = describe(settings)
        self._bodies = {"": msgspec.json.encode(self._document)}
        if prefix := settings.server.root_path:
            self._bodies[prefix] = self._at(prefix)
        self._headers = {"Vary": HEADER} if settings.server.trusted_proxies else {}

    async def respond(self, request: Request) -> Response:
        """200, always."""
        prefix = prefix_of(request.scope)
        body = self._bodies.get(prefix) or self._at(prefix)
        return Response(body, headers=self._headers, media_type=JSON)

    def _at(self, prefix: str) -> bytes:
        return msgspec.json.encode({**self._document, "servers": [{"url": prefix}]})


def describe(settings: Settings) -> Node:
    """The whole description."""
    fields = FieldSchemas(settings)
    _, schemas = msgspec.json.schema_components(STRUCTS, ref_template="#/components/schemas/{name}")
    query = schemas.pop(RequestFields.__name__)
    for body in (schemas[GenerationRequest.__name__], schemas[EdgesRequest.__name__]):
        body["properties"] = fields.body(body["properties"], body["required"])
    schemas[edges.BODY]["properties"][JSON_NAME] = body["properties"][JSON_NAME]
    schemas[generation.FORM] = generation.form(fields, query)
    schemas[generation.EVENT] = generation.event()
    schemas |= openai.schemas(fields) | automatic.schemas(settings, fields)
    for node in schemas.values():
        node["description"] = cleandoc(node.get("description", ""))
    server = settings.server
    keys = KEYS if server.has_keys else {}
    security: list[Node] = [{scheme: []} for scheme in keys]
    title = {"title": "Contour", "version": __version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}}
    return {
        "openapi": "3.1.0",
        "info": title | {"description": "A prompt and a picture in, a new picture with the same edges out."},
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": _paths(settings, fields, query, security),
        "components": {"schemas": schemas, "headers": dict(HEADERS), "securitySchemes": keys},
    }


def _paths(settings: Settings, fields: FieldSchemas, query: Node, security: list[Node]) -> Node:
    return {
        **generation.operations(fields, query, security),
        **edges.operations(fields, query, security),
        **openai.operations(security),
        **automatic.operations(settings, security),
        "/": pages.page("page", "The page for people."),
        "/page/{name}": pages.files("pageFile", "What that page is made of.", Page(settings).media_types),
        "/settings.json": pages.settings(),
        "/docs": pages.page("docs", "This description, to read and to try."),
        "/docs/{name}": pages.files("docsFile", "What that page is made of.", Docs().media_types),
        **plain.operations(),
    }
