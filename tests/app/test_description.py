"""/openapi.json agrees with the structs and tables that it describes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from starlette.routing import Route

from app.application import Application
from app.errors import Error
from app.openapi import describe, example_of
from app.settings import ServerConfig, Settings, load

CONFIG = Path(__file__).parents[2] / "configs" / "echo.yaml"
OTHERS = ("/v1/", "/sdapi/", "/controlnet/")  # paths of interfaces that others have made
DOCUMENT = describe(load(CONFIG, {}))


def media_types(node: object, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All Media Type Objects that have a schema and examples, with the type."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "content":
                yield from ((kind, each) for kind, each in value.items() if "examples" in each)
            yield from media_types(value, key)


def validator(schema: dict[str, Any]) -> OAS31Validator:
    """Of a schema that may refer to others of the document."""
    resource = DRAFT202012.create_resource(DOCUMENT)
    return OAS31Validator(_from_the_root(schema), registry=Registry().with_resource("urn:document", resource))


def _from_the_root(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: f"urn:document{value}" if key == "$ref" else _from_the_root(value) for key, value in node.items()}
    return [_from_the_root(each) for each in node] if isinstance(node, list) else node


def test_it_is_openapi_3_1() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_a_document_that_is_not_is_seen() -> None:
    wrong = DOCUMENT | {"info": {}}
    assert list(OpenAPIV31SpecValidator(wrong).iter_errors())


def test_every_route_is_described_and_nothing_else_is() -> None:
    app = Application(load(CONFIG, {}), {"CUDA_VISIBLE_DEVICES": ""}, None, 1).asgi
    routes = [route for route in app.routes if isinstance(route, Route)]
    there = {
        (route.path.replace(":path}", "}"), method)
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method.upper()) for path, node in DOCUMENT["paths"].items() for method in node}
    assert len(routes) == len(app.routes)
    # Each path answers with a slash at its end as well; only those that people write in both ways are described twice.
    twice = {(f"{path}/", method) for path, method in described if "{" not in path and path != "/"}
    assert described <= there <= described | twice


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for node in DOCUMENT["paths"].values() for operation in node.values()]
    assert len(names) == len(set(names))
    known = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {tag for node in DOCUMENT["paths"].values() for each in node.values() for tag in each["tags"]} == known


def test_examples_are_as_their_schemas_want_them() -> None:
    checked = 0
    for kind, node in media_types(DOCUMENT["paths"]):
        for example in node["examples"].values():
            if kind.endswith("json"):
                checked += 1
                assert [error.message for error in validator(node["schema"]).iter_errors(example["value"])] == []
    assert checked >= 20


def test_an_example_that_is_not_is_seen() -> None:
    schema = DOCUMENT["paths"]["/generation/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert [error.message for error in validator(schema).iter_errors({"text": "a circle"})]


def test_the_example_of_a_stream_is_of_the_events_that_are_described() -> None:
    content = DOCUMENT["paths"]["/generation/"]["post"]["responses"]["200"]["content"]["text/event-stream"]
    events = content["examples"]["stream"]["value"].removesuffix("\n\n").split("\n\n")
    described = {each["properties"]["event"]["const"]: each for each in _resolved(content["schema"])["oneOf"]}
    told = [dict(line.split(": ", 1) for line in event.split("\n")) for event in events]
    assert described.keys() - {"error"} == {event["event"] for event in told}
    for event in told:
        data = described[event["event"]]["properties"]["data"]["contentSchema"]
        assert [error.message for error in validator(data).iter_errors(json.loads(event["data"]))] == []


def _resolved(schema: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


@pytest.mark.parametrize("error", list(Error), ids=lambda error: error.slug)
def test_every_error_has_an_example(error: Error) -> None:
    assert example_of(error).error is error


def _described(path: str, error: Error) -> bool:
    """Whether an error is among the answers of a path."""
    (operation,) = DOCUMENT["paths"][path].values()
    content = operation["responses"].get(str(int(error.status)), {}).get("content", {})
    schema = content.get("application/problem+json", {"schema": {}})["schema"]
    return "allOf" in schema and error.type in schema["allOf"][1]["properties"]["type"]["enum"]


@pytest.mark.parametrize(
    "error", [error for error in Error if error is not Error.NOT_FOUND], ids=lambda error: error.slug
)
def test_every_error_is_described(error: Error) -> None:
    assert _described("/generation/", error)


@pytest.mark.parametrize(
    ("path", "code", "told"),
    [
        ("/v1/images/edits", "400", lambda body: body["error"]["code"] == "invalid_field"),
        ("/v1/images/generations", "400", lambda body: body["error"]["type"] == "invalid_request_error"),
        ("/v1/images/edits", "429", lambda body: body["error"]["code"] == "rate_limit_exceeded"),
        ("/sdapi/v1/txt2img", "422", lambda body: body["error"] == "A field is missing or wrong"),
        ("/sdapi/v1/img2img", "422", lambda body: body["detail"]),
    ],
)
def test_errors_of_others_interfaces_are_described_in_their_words(
    path: str, code: str, told: Callable[[dict[str, Any]], object]
) -> None:
    responses = DOCUMENT["paths"][path]["post"]["responses"]
    content = responses[code]["content"]["application/json"]
    assert any(told(example["value"]) for example in content["examples"].values())
    assert set(responses["405"]["content"]) == {"application/problem+json"}


@pytest.mark.parametrize("path", [path for path in DOCUMENT["paths"] if not path.startswith(OTHERS)])
def test_problems_are_only_described_where_they_can_happen(path: str) -> None:
    (method,) = DOCUMENT["paths"][path]
    assert _described(path, Error.INVALID_FIELD) == (method == "post")
    assert _described(path, Error.NOT_FOUND) == ("{" in path)


def test_limits_are_those_of_the_configuration() -> None:
    document = describe(Settings(server=ServerConfig(max_text_chars=77, max_images=3)))
    schemas = document["components"]["schemas"]
    for name in ("GenerationRequest", "GenerationForm"):
        assert schemas[name]["properties"]["text"]["maxLength"] == 77
        number = schemas[name]["properties"]["number_of_images"]
        assert number.get("anyOf", [number])[0]["maximum"] == 3  # in JSON it may be null, too
    query = {each["name"]: each["schema"] for each in document["paths"]["/generation/"]["post"]["parameters"]}
    assert (query["text"]["maxLength"], query["number_of_images"]["maximum"]) == (77, 3)


def test_keys_are_asked_for_where_the_service_asks_for_one() -> None:
    document = describe(Settings(server=ServerConfig(api_key="secret")))
    assert document["paths"]["/generation/"]["post"]["security"] == [{"bearer": []}, {"basic": []}, {"key": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]
    assert DOCUMENT["components"]["securitySchemes"] == {}
    assert "secret" not in json.dumps(document)
