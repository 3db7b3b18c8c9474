"""Parse JSON into structs, within bounds that are checked first, and say where a text is not JSON and what to send."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from app.errors import Error, Faults, Problem, quoted
from app.params import AS_THEY_ARE, JSON_VALUES
from app.parsing import fields

VALUE_STARTS = (b",", b"[", b"{")  # every value in JSON but the first follows one of these
FEW = 100  # matches that are searched for one by one
# Escapes are decoded slowly. Base64 in lines, or with its slashes escaped as PHP does it, has half as many at most.
ESCAPES, MAX_ESCAPES = (b"\\",), 1_000_000

T = TypeVar("T")


def parsed_json(
    body: bytes,
    decoder: "msgspec.json.Decoder[T]",
    max_values: int | None = JSON_VALUES,
    faults: Faults | None = None,
    ranges: Mapping[str, object] = AS_THEY_ARE,
    called: str = "The body",
) -> T:
    """JSON of at most about `max_values` values. Raises Problem, which names the fields to blame.

    Fields of wrong types are added to `faults` instead, if there are some to add to. `called` is what a message calls
    the JSON.
    """
    # Counted first, because a decoder checks the length of a list only after it has built the list.
    if max_values is not None and _count(body, VALUE_STARTS) > max_values:
        raise Problem(Error.MALFORMED_JSON, f"The JSON has more than {max_values} values; no request needs so many.")
    if len(body) > MAX_ESCAPES and _count(body, ESCAPES) > MAX_ESCAPES:
        raise Problem(Error.MALFORMED_JSON, f"The JSON has more than {MAX_ESCAPES} escaped characters; send UTF-8.")
    body = body.removeprefix(MARK)  # RFC 8259, 8.1
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError as error:
            return _as_far_as_it_is_right(body, decoder, faults, ranges, called, error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise broken(body, error) from None


def _as_far_as_it_is_right(
    body: bytes,
    decoder: "msgspec.json.Decoder[T]",
    faults: Faults | None,
    ranges: Mapping[str, object],
    called: str,
    error: Exception,
) -> T:
    kind: Any = decoder.type
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        raise fields.of_value(body, kind, called)
    found = Faults() if faults is None else faults
    made: Any = fields.of_json(body, kind, found, ranges, called, error)
    if faults is None:
        found.check()
    return cast("T", made)


def _count(body: bytes, characters: Iterable[bytes]) -> int:
    """Count some characters, in a pass for each, so that other threads may run in between."""
    return sum([_count_one(body, character) for character in characters])


def _count_one(body: bytes, character: bytes) -> int:
    """Like `body.count`, but ten times as fast for few matches, as in a body that is nearly all base64."""
    at = -1
    for found in range(FEW):
        at = body.find(character, at + 1)  # memchr, by vectors; count looks at each byte by itself
        if at < 0:
            return found
    return body.count(character)


# ------------------------------------------------------------------------------------------------- what is not JSON

AROUND = 20  # characters shown of the place
MARK = b"\xef\xbb\xbf"  # the byte order mark of UTF-8, which some editors and shells put before a text
POSITION = re.compile(r"\(byte (\d+)\)$")  # in msgspec's messages
SURROGATES = re.compile(rb"\\u(?:d[89ab]..\\u(?=d[c-f])d...|(d[89a-f]..))", re.IGNORECASE | re.DOTALL)
WORD, WORD_BYTES = re.compile(rb"-?[A-Za-z]\w*"), 20
NUMBERS = "Write numbers like 12, 0.5 or -3: no leading zeros or points, no plus sign, no hexadecimal."
LITERALS = {b"none": "null", b"undefined": "null", b"nil": "null", b"true": "true", b"false": "false", b"null": "null"}
FILES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
UTF16, UTF32 = (b"\xff\xfe", b"\xfe\xff"), (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
SPACE = b" \t\r\n"


def broken(body: bytes, error: Exception) -> Problem:
    """The problem for a body that is not JSON; `error` is msgspec's."""
    return Problem(Error.MALFORMED_JSON, _other(body) or _at(body, error))


def _other(body: bytes) -> str | None:
    """Name the format of a body that does not look like JSON at all."""
    start = body[:100].lstrip()
    if not start:
        return "The body is empty. Send a JSON object."
    if body.startswith((*UTF32, *UTF16)) or b"\0" in body[:4]:
        return "The body is text in UTF-16 or UTF-32. Send it as UTF-8."
    if start.startswith(FILES):
        return "The body is an image file, not JSON. Say so in Content-Type, or send JSON with the file as base64."
    if start.startswith(b"--"):
        return "The body is a form (multipart/form-data), not JSON. Set Content-Type accordingly, as HTTP libraries do."
    if start.startswith(b"<"):
        return "The body is HTML or XML, not JSON. Send a JSON object."
    if re.match(rb"[\w.%+\[\]-]+=", start):
        return "The body is a URL-encoded form, not JSON. Send a JSON object, or a form as multipart/form-data."
    if start[:1] == b"@":
        return (
            "The body is the name of a file, not its content. With curl, use --data @FILE, without quotes around the @."
        )
    return None


def _at(body: bytes, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "The JSON is nested too deeply."
    if isinstance(error, UnicodeDecodeError) or not _is_utf8(body):
        return _not_utf8(body)
    if "truncated" in str(error) or "surrogate" in str(error):
        half = next((found for found in SURROGATES.finditer(body) if found[1]), None)
        if half is not None:
            return (
                f"{_place(body, half.start())} half of a surrogate pair, which is not a character. Send text as UTF-8."
            )
    if (found := POSITION.search(str(error))) is None:
        return f"The JSON is cut off: it ends after {len(body)} bytes, before it is complete."
    at, advice = _advice(body, int(found[1]), str(error))
    return f"{_place(body, at)} found {_shown(body, at)}. {advice}"


def _advice(body: bytes, at: int, error: str) -> tuple[int, str]:
    """The position of a mistake, and what to send there."""
    if "trailing characters" in error:
        return at - 1, "The JSON ends before that; send one JSON value in a request."
    if "escape" in error:
        return body.rfind(b"\\", 0, at + 1), r"In JSON text, write a backslash as \\ (as in C:\\images)."
    here, before = body[at : at + 1], body[:at].rstrip(SPACE)[-1:]
    for applies, advice in (
        ("trailing comma" in error, "Remove the comma before it."),
        (here != b"" and here < b" ", r"In JSON text, write line breaks as \n and tabs as \t."),
        (here == b"'", "JSON uses double quotes, for names and for text."),
        (here in (b"/", b"#"), "JSON has no comments."),
        (here in (b"\xe2", b"\xc2"), 'JSON uses straight double quotes (") and plain spaces.'),
        ("keys" in error, "Put the names of fields in double quotes."),
        ("expected ':'" in error, "Put a colon after the name of the field."),
        ("number" in error or (here.isalpha() and before.isdigit()), NUMBERS),
        ("expected ','" in error, "Put a comma between two fields or values, or close the bracket."),
    ):
        if applies:
            return at, advice
    if (word := _word(body, at)) is not None:
        return word
    return at, NUMBERS if here in (b"+", b"-", b".") else "Put text in double quotes."


def _word(body: bytes, at: int) -> tuple[int, str] | None:
    """The position of a word that is not a JSON value, and what to write. The parser may have read a part of it."""
    first = max(at - WORD_BYTES, 0)
    found = next((each for each in WORD.finditer(body, first, at + WORD_BYTES) if each.end() >= at - 1), None)
    if found is None or found.start() > at:
        return None
    word = found[0].lower().removeprefix(b"-")
    if word in (b"nan", b"inf", b"infinity"):
        return found.start(), "JSON has no such number; leave the field out."
    return found.start(), f"Write {LITERALS[word]}." if word in LITERALS else "Put text in double quotes."


def _shown(body: bytes, at: int) -> str:
    """The word or the character at a place."""
    text = body[at : at + 4 * AROUND].decode("utf-8", "replace")
    found = re.match(r"-?\w+|.", text, re.DOTALL)
    return "the end" if found is None else quoted(found[0], AROUND)


def _place(body: bytes, at: int) -> str:
    """The line and the column, both from 1 as editors count them."""
    line = body.count(b"\n", 0, at) + 1
    column = len(body[body.rfind(b"\n", 0, at) + 1 : at].decode("utf-8", "replace")) + 1
    return f"Line {line}, column {column}:"


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8(body: bytes) -> str:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        byte = body[error.start]
        return f"{_place(body, error.start)} the byte 0x{byte:02X} is not UTF-8. Send text as UTF-8."
    return "The body has half of a surrogate pair, which is not a character. Send text as UTF-8."
