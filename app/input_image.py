"""A client's image: decode its base64, and read size and format from its header, without decoding pixels."""

import contextlib
from dataclasses import replace

import msgspec
import pybase64

from app import base64_text
from app.errors import Error, Problem, plain
from app.field_types import KINDS
from app.json_syntax import broken
from app.rules import Rules
from workers.engine.contract import BadImageError
from workers.engine.header import Header, output_size, read_header

JSON_NAME = "input_image_base64"
QUOTE = ord('"')
DECODING_SECONDS = {"PNG": 21e-9, "JPEG": 3e-9, "WebP": 15e-9}  # a pixel: python -m tests.bench.decoding
SMALLER = "Scale it down, or save it as a JPEG."


def decoded(encoded: msgspec.Raw, name: str = JSON_NAME) -> bytes:
    """Decode the base64 of the JSON string in the field `name`. Raises Problem."""
    json = memoryview(encoded)
    if json[0] == QUOTE:
        # The fast path of nearly all requests: base64 has no escapes, so it needs no JSON decoding.
        with contextlib.suppress(ValueError):
            image = pybase64.b64decode(json[1:-1], validate=True)
            if image.startswith(base64_text.IMAGES):
                return image
    return from_base64(_text(encoded, name), name)


def from_base64(text: str, name: str) -> bytes:
    """Decode base64. Raises Problem for the field `name`."""
    return base64_text.decode(text, name)


def from_file(data: bytes, name: str | None) -> bytes:
    """Accept an image file, or a `data:` URI, which some clients send instead. Raises Problem for the field `name`."""
    if data[: len(base64_text.URI)].lower() != base64_text.URI.encode():
        return data
    try:
        return base64_text.decode(data.decode("ascii", "replace"), name or "The body")
    except Problem as problem:
        raise replace(problem, field=name, errors=()) from None


def measured(image: bytes, rules: Rules, blamed: str | None) -> Header:
    """Read the image's header. Raises Problem for an image that is too large or too long, and for other files."""
    if len(image) > rules.max_image_bytes:
        what = f"The image has {len(image)} bytes"
        raise too_large(what, rules.max_image_bytes, "bytes", "server.max_image_bytes", SMALLER, blamed)
    try:
        header = read_header(image)
    except BadImageError as error:
        raise Problem(Error.INVALID_IMAGE, str(error), blamed) from None
    if header.width * header.height > rules.max_pixels:
        what = f"The image is {header.width} x {header.height}, which is {header.width * header.height} pixels"
        advice = f"Scale it down to at most {_largest(header, rules.max_pixels)}."
        raise too_large(what, rules.max_pixels, "pixels", "server.max_pixels", advice, blamed)
    try:
        output_size(header.width, header.height, rules.engine.size)
    except BadImageError as error:
        raise Problem(Error.INVALID_IMAGE, str(error), blamed) from None
    return header


def _largest(header: Header, max_pixels: int) -> str:
    """The largest accepted size of the same shape; a very long image has at least one row."""
    scale = (max_pixels / (header.width * header.height)) ** 0.5
    width, height = max(int(header.width * scale), 1), max(int(header.height * scale), 1)
    return f"{min(width, max_pixels // height)} x {min(height, max_pixels)}"


def final_size(header: Header, rules: Rules) -> tuple[int, int]:
    """Width and height of the result."""
    if rules.engine.kind == "echo":
        return header.width, header.height
    return output_size(header.width, header.height, rules.engine.size)


def effort(header: Header, steps: int, rules: Rules) -> tuple[float, float, tuple[int, int]]:
    """Work, length and size of the job, relative to an image of nominal size and steps."""
    width, height = size = output_size(header.width, header.height, rules.engine.size)
    return width * height / rules.engine.size.short_side**2, steps / rules.defaults["steps"], size


def decoding_seconds(header: Header) -> float:
    """The estimated time of a thread to decode and shrink an image of this size."""
    return header.width * header.height * DECODING_SECONDS[header.format]


def too_large(what: str, limit: int, unit: str, setting: str, advice: str, field: str | None = None) -> Problem:
    """The problem for something over its limit; `setting` is the key of the limit."""
    return Problem(Error.TOO_LARGE, f"{what}; at most {limit} {unit} are allowed ({setting}). {advice}", field)


def _text(encoded: msgspec.Raw, name: str) -> str:
    try:
        return msgspec.json.decode(encoded, type=str)
    except msgspec.ValidationError:
        found = KINDS.get(bytes(memoryview(encoded)[:1])) or plain(bytes(memoryview(encoded)[:100]).decode())
        raise Problem(
            Error.INVALID_FIELD, f"{name} is {found}; it must be the image file as base64 text.", name
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        detail = broken(bytes(encoded), error).detail
        raise Problem(Error.MALFORMED_JSON, f"In {name}, {detail[:1].lower()}{detail[1:]}") from None
