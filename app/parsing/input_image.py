"""A client's image: decode its base64, and read size and format from its header, without decoding pixels.

Base64 may be standard or URL-safe, with or without padding, with white space anywhere, percent-encoded, and within a
`data:` URI (RFC 2397, RFC 4648). For anything else the error names what was sent.
"""

import contextlib
import re
from dataclasses import replace

import msgspec
import pybase64

from app.errors import Error, Problem, plain, quoted
from app.params import Rules
from app.parsing.fields import KINDS
from app.parsing.json import broken
from workers.engine.contract import BadImageError
from workers.engine.file_kinds import OTHER, kind_of
from workers.engine.header import Header, output_size, read_header

JSON_NAME = "input_image_base64"
QUOTE = ord('"')
SMALLER = "Scale it down, or save it as a JPEG."


def decoded(encoded: msgspec.Raw, name: str = JSON_NAME) -> bytes:
    """Decode the base64 of the JSON string in the field `name`. Raises Problem."""
    json = memoryview(encoded)
    if json[0] == QUOTE:
        # The fast path of nearly all requests: base64 has no escapes, so it needs no JSON decoding.
        with contextlib.suppress(ValueError):
            image = pybase64.b64decode(json[1:-1], validate=True)
            if image.startswith(IMAGES):
                return image
    return from_base64(_text(encoded, name), name)


def from_file(data: bytes, name: str | None) -> bytes:
    """Accept an image file, or a `data:` URI, which some clients send instead. Raises Problem for the field `name`."""
    if data[: len(URI)].lower() != URI.encode():
        return data
    try:
        return from_base64(data.decode("ascii", "replace"), name or "The body")
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


# ------------------------------------------------------------------------------------------------------------ base64

WHITESPACE = b" \t\r\n\v\f"
TO_STANDARD = bytes.maketrans(b"-_", b"+/")
ESCAPES = (
    (b"%2B", b"+"),
    (b"%2b", b"+"),
    (b"%2F", b"/"),
    (b"%2f", b"/"),
    (b"%3D", b"="),
    (b"%3d", b"="),
    (b"%0A", b""),
)
MAX_ESCAPED_BYTES = 4 * 2**20  # of a text in which escapes are looked for: a hostile one takes 50 ns a byte
IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
URI = "data:"
URI_HEAD_CHARS = 300  # within which a data: URI has its comma
SHORT_CHARS = 4096  # of a path or a URL
SMALL_CHARS = 300  # fewer than any useful image has in base64
WORD_CHARS = 40  # of a text that is rather a word than a file
URL = re.compile(r"\s*(?:(?!file:)[a-z][a-z0-9+.-]+:/|blob:|www\.)\S", re.IGNORECASE)
HOST = re.compile(r"\s*(?://)?\w[\w-]*(?:\.[\w-]+)+(?::\d+)?/\S*\s*")  # a URL without its scheme
PATH = re.compile(r"\s*(?:file:|~/|\.{1,2}[/\\]|[A-Z]:[/\\]|\\\\|/\w[^\n]*[/.])", re.IGNORECASE)
FILE_NAME = re.compile(r"\s*[^\n<>{}]{1,200}\.[a-z][a-z0-9]{1,4}\s*", re.IGNORECASE)
PLACEHOLDER = re.compile(r"\s*(?:<[^<>=/!?]+>|\{\{[^{}]+\}\}|\$\{?\w+\}?|\.{3}|…)\s*")
HEXADECIMAL = re.compile(
    r"\s*(?:0x|\\x)?(?:89(?:\\x|[ :])?50(?:\\x|[ :])?4e|ff(?:\\x|[ :])?d8(?:\\x|[ :])?ff|52494646)", re.IGNORECASE
)
PYTHON_BYTES = re.compile(r"\s*b['\"]")
BINARY = re.compile("[\x89\ufffd]PNG|[\xff\ufffd][\xd8\ufffd][\xff\ufffd]|.{0,7}[\\x00-\\x08]")
WORDS = ("null", "none", "undefined", "nan", "true", "false", "string", "image", "[object object]", "[object blob]")
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="
SEND = "send the file's bytes as base64"


def from_base64(text: str, name: str) -> bytes:
    """Decode base64. Raises Problem for the field `name`."""
    text = text.removeprefix("\ufeff")  # as Windows begins files of text
    if not text.strip():
        raise Problem(Error.INVALID_IMAGE, f"{name} is empty; {SEND}.", name)
    media_type, data = _parted(text, name)
    image = _decoded(data)
    if image is None:
        raise Problem(Error.INVALID_FIELD, f"{name} {_mistaken(data) or _at_fault(data)}", name)
    _refuse_lookalike(image, data, name)
    if media_type and not image.startswith(IMAGES):
        detail = f"{name} is a data: URI of {quoted(media_type)} that holds {kind_of(image)}; send a PNG, JPEG or WebP."
        raise Problem(Error.INVALID_IMAGE, detail, name)
    return image


def _refuse_lookalike(image: bytes, text: str, name: str) -> None:
    """Raise Problem for something else that happens to have only letters of base64, such as a file's name."""
    if image.startswith(IMAGES):
        return
    if detail := _mistaken(text, short=len(text) < SMALL_CHARS):
        raise Problem(Error.INVALID_FIELD, f"{name} {detail}", name)
    words = text.strip() if len(text) < SMALL_CHARS else ""
    if kind_of(image) == OTHER and (0 < len(words) < WORD_CHARS or " " in words):
        raise Problem(Error.INVALID_FIELD, f"{name} is {quoted(text)}, which is not an image; {SEND}.", name)


def _parted(text: str, name: str) -> tuple[str, str]:
    """The media type of a data: URI, empty for other texts, and the data to decode. Raises Problem."""
    start = text[:URI_HEAD_CHARS].lstrip()
    if start[: len(URI)].lower() != URI:
        return "", text
    head, comma, _ = start.partition(",")
    data = text.partition(",")[2] if comma else ""
    if not data or data.isspace():
        raise Problem(Error.INVALID_FIELD, f"{name} is a data: URI without data; {_example()}.", name)
    media_type, *parameters = head[len(URI) :].lower().replace(" ", "").split(";")
    if "base64" not in parameters and not (_decoded(data) or b"").startswith(IMAGES):
        detail = f"{name} is a data: URI of {quoted(media_type or 'text/plain')} that is not base64; {_example()}."
        raise Problem(Error.INVALID_FIELD, detail, name)
    return media_type, data


def _example() -> str:
    return "send data:image/png;base64,... or the base64 alone"


def _decoded(text: str) -> bytes | None:
    try:
        # As bytes: translating a text that is not ASCII takes seconds, and blocks the other threads.
        data = text.encode("ascii")
        if b"%" in data and len(data) <= MAX_ESCAPED_BYTES:
            for escape, character in ESCAPES:  # each in one pass: a library would build a list of all of them
                data = data.replace(escape, character)
        data = _with_plus(data).translate(TO_STANDARD, WHITESPACE).rstrip(b"=")
        return pybase64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ValueError:
        return None


def _with_plus(data: bytes) -> bytes:
    """Restore each plus that a form parser turned into a space, unless the spaces separate lines of equal length."""
    data = data.strip()
    first = data.find(b" ")
    if first < 0 or b"+" in data or len(data) % 4 or data.find(b" ", first + 1) == 2 * first + 1:
        return data
    return data.replace(b" ", b"+")


def _mistaken(text: str, *, short: bool = True) -> str | None:  # noqa: PLR0911, C901 - one for each mistake
    """Say what a text is that is not base64, and what to send. `short`: it may be a path without a dot, or a word."""
    start = text[:SHORT_CHARS]
    if HEXADECIMAL.match(start):
        return "is an image in hexadecimal; encode the file's bytes as base64."
    if "base64," in start[:URI_HEAD_CHARS]:
        return f"has text before its base64; {_example()}."
    if URL.match(start) or (short and HOST.fullmatch(start)):
        return f"is a URL; this service does not fetch images: {SEND}."
    if PYTHON_BYTES.match(start):
        return "is how Python prints bytes (b'...'); send base64.b64encode(data).decode()."
    if BINARY.match(start):
        return "holds the bytes of a file as text; encode them as base64."
    if not short:
        return None
    if (PATH.match(start) or FILE_NAME.fullmatch(start)) and len(text) < SHORT_CHARS and "\n" not in text.strip():
        return f"is a path; this service cannot read your files: {SEND}."
    if PLACEHOLDER.fullmatch(start):
        return f"is {quoted(text)}, which is a placeholder; {SEND}."
    if text.strip().lower() in WORDS:
        return f"is {quoted(text)}; {SEND}."
    if start.lstrip()[:1] in ("{", "["):
        return f"is JSON, not an image; {SEND}."
    if start.lstrip()[:1] == "<":
        return f"is {kind_of(start.lstrip().encode('utf-8', 'replace'))} as text; {SEND} of a PNG, JPEG or WebP."
    return None


def _at_fault(text: str) -> str:
    data = text.encode("utf-8", "replace")
    # Not by a regular expression: one that reads megabytes keeps all other threads waiting.
    if outside := data.translate(None, LETTERS + WHITESPACE)[:4]:
        letter = outside.decode("utf-8", "ignore")[:1] or "?"
        at = text.find(letter) + 1
        return f"is not base64: its character {at} is {quoted(letter)}, and base64 has A-Z, a-z, 0-9, + and /."
    bare = text.rstrip().rstrip("=")
    if "=" in bare:
        return f"is not base64: its character {bare.index('=') + 1} is '=', which may only stand at the end of base64."
    return f"is not base64: no base64 has {len(bare)} characters. Some were lost, or the end was cut off."
