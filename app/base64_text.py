"""Base64 as people send it, and what they send in its place.

Taken: standard and URL-safe base64, with or without padding, with white space anywhere, percent-encoded, and all of it
as a `data:` URI (RFC 2397, RFC 4648). All else is refused by what it is.
"""

import re

import pybase64

from app.errors import Error, Problem, quoted
from workers.engine.file_kinds import OTHER, kind_of

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


def decode(text: str, name: str) -> bytes:
    """The bytes of a text, which the client calls `name`. Raises Problem."""
    text = text.removeprefix("\ufeff")  # as Windows begins files of text
    if not text.strip():
        raise Problem(Error.INVALID_IMAGE, f"{name} is empty; {SEND}.", name)
    media_type, data = _parted(text, name)
    image = _decoded(data)
    if image is None:
        raise Problem(Error.INVALID_FIELD, f"{name} {_mistaken(data) or _at_fault(data)}", name)
    checked(image, data, name)
    if media_type and not image.startswith(IMAGES):
        detail = f"{name} is a data: URI of {quoted(media_type)} that holds {kind_of(image)}; send a PNG, JPEG or WebP."
        raise Problem(Error.INVALID_IMAGE, detail, name)
    return image


def checked(image: bytes, text: str, name: str) -> None:
    """Raises Problem where something else than base64 happens to be made of its letters alone."""
    if image.startswith(IMAGES):
        return
    if detail := _mistaken(text, short=len(text) < SMALL_CHARS):
        raise Problem(Error.INVALID_FIELD, f"{name} {detail}", name)
    words = text.strip() if len(text) < SMALL_CHARS else ""
    if kind_of(image) == OTHER and (0 < len(words) < WORD_CHARS or " " in words):
        raise Problem(Error.INVALID_FIELD, f"{name} is {quoted(text)}, which is not an image; {SEND}.", name)


def _parted(text: str, name: str) -> tuple[str, str]:
    """The media type of a data: URI, empty for other texts, and what is to be decoded. Raises Problem."""
    start = text[:URI_HEAD_CHARS].lstrip()
    if start[: len(URI)].lower() != URI:
        return "", text
    head, comma, _ = start.partition(",")
    if not comma:
        raise Problem(Error.INVALID_FIELD, f"{name} is a data: URI without data; {_example()}.", name)
    media_type, *parameters = head[len(URI) :].lower().replace(" ", "").split(";")
    data = text.partition(",")[2]
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
    """The same, where a reader of forms has made a space of each plus: of lines the first two would be equally long."""
    data = data.strip()
    first = data.find(b" ")
    if first < 0 or b"+" in data or len(data) % 4 or data.find(b" ", first + 1) == 2 * first + 1:
        return data
    return data.replace(b" ", b"+")


def _mistaken(text: str, *, short: bool = True) -> str | None:  # noqa: PLR0911, C901 - one for each mistake
    """What a text is that is not base64, and what to do. `short`: it may be a path without a dot, or a word."""
    start = text[:SHORT_CHARS]
    if HEXADECIMAL.match(start):
        return "is an image in hexadecimal; encode the file's bytes as base64."
    if "base64," in start[:URI_HEAD_CHARS]:
        return f"has other text before its base64; {_example()}."
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
        return f"is JSON in a text; {SEND}."
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
        return f"is not base64: its character {bare.index('=') + 1} is '=', which is only at the end of base64."
    return f"is not base64: {len(bare)} letters are one too many or too few. It was cut off, or has lost some."
