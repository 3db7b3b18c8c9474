"""Every bad request gets its documented error, and the next good one its image."""

import base64
import dataclasses
import json
import struct
import zlib
from collections.abc import Iterator, Mapping

import httpx
import pytest

from tests.service.running import Service, good_request, png

JSON = {"content-type": "application/json"}
PROBLEM_FIELDS = {"type", "title", "status", "detail"}


@dataclasses.dataclass(frozen=True)
class Bad:
    """What is sent, and what must come back: status, last part of the problem's type, and the field it names."""

    name: str
    body: bytes
    status: int
    problem: str
    field: str | None = None
    method: str = "POST"
    path: str = "/generation/"
    headers: Mapping[str, str] = dataclasses.field(default_factory=lambda: JSON)


def json_with(**fields: object) -> bytes:
    return json.dumps(good_request(**fields)).encode()


def json_without(name: str) -> bytes:
    return json.dumps({key: value for key, value in good_request().items() if key != name}).encode()


def image(data: bytes) -> bytes:
    return json_with(input_image_base64=base64.b64encode(data).decode())


def declared(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png(8, 8)[33:]
    )


def fields() -> Iterator[Bad]:
    wrong: Mapping[str, list[object]] = {
        "request_id": ["abc", None, True, 1.5, [1], {}],
        "text": [None, 5, ["a"], "x" * 10_001],
        "input_image_base64": [None, 7, "***", "QUJDR", "é"],
        "random_seed": ["", "0x10", None, False, 0.5, -(2**63) - 1, 2**64, str(2**64)],
    }
    for name, values in wrong.items():
        yield Bad(f"no {name}", json_without(name), 422, "invalid-field", name)
        for value in values:
            yield Bad(f"{name} {value!r:.24}", json_with(**{name: value}), 422, "invalid-field", name)


def with_more(more: bytes) -> bytes:
    """A good body with something put before its fields."""
    return b"{" + more + b"," + json_with()[1:]


# Others are in test_messages.py, with the words that they are told.
MALFORMED = {
    "nothing": b"",
    "half a body": json_with()[:-10],
    "deep nesting": b'{"a":' * 100_000,
    "deep nesting in a field that is ignored": with_more(b'"x": ' + b"[" * 50_000 + b"]" * 50_000),
    "deep nesting in the image": with_more(b'"input_image_base64": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "an overlong slash": b'{"text": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"text": "\xed\xa0\x80"}',
    "half a surrogate": b'{"text": "\\udc00"}',
}


def bodies() -> Iterator[Bad]:
    for name, body in MALFORMED.items():
        yield Bad(name, body, 400, "malformed-json")
    for field in ("request_id", "random_seed"):
        for number in (b"9" * 5000, b'"%b"' % (b"9" * 5000), b"1e400"):
            name = f"{field} {number[:5]!r}, {len(number)} digits"
            yield Bad(name, with_more(b'"%b": %b' % (field.encode(), number)), 422, "invalid-field", field)
    yield Bad("a huge body", b" " * (33 * 2**20), 413, "too-large")


def images() -> Iterator[Bad]:
    blamed = "input_image_base64"
    yield Bad("no image at all", image(b""), 422, "invalid-image", blamed)
    yield Bad("text for an image", image(b"hello, world"), 422, "invalid-image", blamed)
    yield Bad("a GIF", image(b"GIF89a" + bytes(50)), 422, "invalid-image", blamed)
    yield Bad("an SVG", image(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 422, "invalid-image", blamed)
    yield Bad("an image cut in its header", image(png(64, 64)[:20]), 422, "invalid-image", blamed)
    yield Bad("an image cut in its pixels", image(png(640, 480)[:-200]), 422, "invalid-image", blamed)
    yield Bad("an image of no size", image(declared(0, 64)), 422, "invalid-image", blamed)
    yield Bad("a bomb", image(declared(60_000, 60_000)), 413, "too-large", blamed)
    yield Bad("an image over the limit", image(declared(1001, 1000)), 413, "too-large", blamed)
    yield Bad("an image of too many bytes", image(png(8, 8) + bytes(17 * 2**20)), 413, "too-large", blamed)


def protocol() -> Iterator[Bad]:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        yield Bad(f"{method} an image", b"", 405, "method-not-allowed", method=method)
    yield Bad("POST to health", b"", 405, "method-not-allowed", path="/healthz")
    for path in ("/nothing", "/generation/1", "/generation//", "/Generation/"):
        yield Bad(f"path {path}", json_with(), 404, "not-found", path=path)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", "image/bmp", ""):
        yield Bad(f"type {kind!r}", json_with(), 415, "unsupported-media-type", headers={"content-type": kind})


BAD = [*fields(), *bodies(), *images(), *protocol()]


def test_there_are_at_least_forty() -> None:
    assert len({bad.name for bad in BAD}) == len(BAD) >= 40


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_request_gets_its_error_and_the_next_good_one_its_image(echo: Service, bad: Bad) -> None:
    response = echo.client.request(bad.method, bad.path, content=bad.body, headers=bad.headers)
    check(response, bad)
    assert echo.generate().status_code == 200


def check(response: httpx.Response, bad: Bad) -> None:
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert (response.status_code, problem["type"]) == (bad.status, f"urn:contour:problem:{bad.problem}"), problem
    assert problem.keys() >= PROBLEM_FIELDS
    assert problem["status"] == bad.status
    assert problem["detail"]
    if bad.field is not None:
        assert [error["field"] for error in problem["errors"]] == [bad.field]
    if bad.status == 405:
        assert response.headers["allow"]


def test_no_bad_request_cost_a_worker(echo: Service) -> None:
    for bad in BAD:
        if len(bad.body) < 2**20:
            echo.client.request(bad.method, bad.path, content=bad.body, headers=bad.headers)
    assert [worker["restarts"] for worker in echo.readiness()["workers"]] == [0, 0]
