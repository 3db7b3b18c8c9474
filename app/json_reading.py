"""Parse JSON into structs, within bounds that are checked first, and explain what is wrong with it."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from app import field_types
from app.errors import Error, Faults, Problem
from app.json_syntax import MARK, broken
from app.params import AS_THEY_ARE
from app.rules import JSON_VALUES

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
        raise field_types.of_value(body, kind, called)
    found = Faults() if faults is None else faults
    made: Any = field_types.of_json(body, kind, found, ranges, called, error)
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
