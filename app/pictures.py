"""A client's picture: out of its base64, and what its own header says of it. Nothing is decoded for that."""

import contextlib

import msgspec
import pybase64

from app.errors import Error, Problem
from app.fields import Rules
from workers.engine.contract import BadPictureError
from workers.engine.header import Header, output_size, read_header

JSON_NAME = "input_image_base64"
QUOTE = ord('"')
DECODING_SECONDS = {"PNG": 21e-9, "JPEG": 3e-9, "WebP": 15e-9}  # a pixel: python -m tests.bench.decoding
WHITESPACE = b" \t\r\n\v\f"


def decoded(encoded: msgspec.Raw, name: str = JSON_NAME) -> bytes:
    """Decode standard base64 in a JSON string; a `data:` prefix and whitespace are tolerated. Raises Problem."""
    json = memoryview(encoded)
    if json[0] == QUOTE:
        # What nearly everybody sends needs no JSON decoding: base64 has no escapes.
        with contextlib.suppress(ValueError):
            return pybase64.b64decode(json[1:-1], validate=True)
    return from_base64(_text(encoded, name), name)


def from_base64(text: str, name: str) -> bytes:
    """The same, of a string. Raises Problem, which blames the field `name`."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        # As bytes: to translate a text that is not ASCII takes seconds, in which nobody else is heard.
        return pybase64.b64decode(text.encode("ascii").translate(None, WHITESPACE), validate=True)
    except ValueError:
        raise Problem(Error.INVALID_FIELD, f"{name} is not standard base64 (RFC 4648, 4).", name) from None


def measured(picture: bytes, rules: Rules, blamed: str | None) -> Header:
    """What the image's header declares. Raises Problem for one that is too large or too long, and for other files."""
    if len(picture) > rules.max_picture_bytes:
        raise too_large(f"The picture has {len(picture)} bytes", rules.max_picture_bytes, "bytes", blamed)
    try:
        header = read_header(picture)
    except BadPictureError as error:
        raise Problem(Error.INVALID_PICTURE, str(error), blamed) from None
    if header.width * header.height > rules.max_pixels:
        what = f"The picture is {header.width} x {header.height} pixels"
        raise too_large(what, rules.max_pixels, "pixels in all", blamed)
    try:
        output_size(header.width, header.height, rules.sizing)
    except BadPictureError as error:
        raise Problem(Error.INVALID_PICTURE, str(error), blamed) from None
    return header


def effort(header: Header, steps: int | None, rules: Rules) -> tuple[float, float]:
    """What a picture takes beside one of the nominal size and number of steps: (work, length) of its job."""
    width, height = output_size(header.width, header.height, rules.sizing)
    return width * height / rules.sizing.short_side**2, (steps or rules.steps) / rules.steps


def decoding_seconds(header: Header) -> float:
    """About how long a thread decodes an image of this size, and makes it smaller."""
    return header.width * header.height * DECODING_SECONDS[header.format]


def too_large(what: str, limit: int, unit: str, field: str | None = None) -> Problem:
    """The problem of something that is larger than is taken."""
    return Problem(Error.TOO_LARGE, f"{what}; at most {limit} {unit} are taken.", field)


def _text(encoded: msgspec.Raw, name: str) -> str:
    try:
        return msgspec.json.decode(encoded, type=str)
    except msgspec.ValidationError as error:
        raise Problem(Error.INVALID_FIELD, f"{error} - at `$.{name}`.", name) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(Error.BROKEN_JSON, f"{error}.") from None
