"""Explain what is wrong with the values of fields, in the client's terms.

msgspec reads a body in one go, stops at the first value of a wrong type and tells of it in its own words ("Expected
`int | null`, got `str`"). So when it has refused one, each field is read by itself here, and all that are wrong are
told. Only faulty requests come this way, and those with "" for an optional number or the like, which is not set.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from app.errors import Error, Faults, Problem, plain, quoted
from app.parsing import aliases

S = TypeVar("S", bound=msgspec.Struct)

MAX_DECODED_BYTES = 2**16  # of a wrong value in JSON; of a longer one, only its kind is named
MAX_LISTED = 10  # names in a sentence
EMPTY = msgspec.Raw(b'""')
NEUTRAL: Mapping[object, object] = {str: "", int: 0, float: 0.0, msgspec.Raw: EMPTY}
KINDS = {b'"': "text", b"[": "a list", b"{": "an object"}
PATH = re.compile(r"`\$\.(\w{1,100})")  # in msgspec's messages
NUMBER = re.compile(r"-?\d+(\.\d+)?")
IMAGE = "the image file as base64 text"
LEVELS: Mapping[bytes, Any] = {b"[": list[msgspec.Raw], b"{": dict[str, msgspec.Raw]}
NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}


def of_json(
    body: bytes, kind: type[S], faults: Faults, ranges: Mapping[str, object], called: str, error: Exception
) -> S:
    """A struct of JSON that msgspec has refused to make one of; what is wrong is added to `faults`.

    A field that is wrong is then as if it were missing, or has a neutral value if it must not be. An optional field
    that is "" is not set, as in a form, unless it may be text. `ranges` are those of numbers, as they are told;
    `called` is what a message calls the JSON; `error` is msgspec's. Raises Problem where the body is no object, and
    msgspec's DecodeError where it is not JSON.
    """
    try:
        given = given_in(loose(kind).decode(body))
    except msgspec.ValidationError:
        raise Problem(Error.INVALID_FIELD, _no_object(called, msgspec.Raw(body), kind)) from None
    optional = {field.encode_name: field.type for field in _fields(kind) if not field.required}
    unset = {name for name, type_ in optional.items() if given.get(name) == EMPTY and not _fits(EMPTY, type_)}
    made = of_fields({name: value for name, value in given.items() if name not in unset}, kind, faults, ranges)
    name = path[1] if (path := PATH.search(str(error))) else "A field"
    if not faults and name not in unset:  # each last value of a field can be taken, but not all that were given
        detail = f"{name} is given more than once, and at least one value is invalid; send it once."
        faults.add(Problem(Error.INVALID_FIELD, detail, name))
    return made


def of_fields(given: Mapping[str, Any], kind: type[S], faults: Faults, ranges: Mapping[str, object]) -> S:
    """Like `of_json`, for fields by name, each JSON (`msgspec.Raw`) or a text. Unknown fields are ignored.

    Raises msgspec's DecodeError if a value is not JSON, or UnicodeDecodeError if text is not UTF-8.
    """
    values: dict[str, Any] = {}
    for field in _fields(kind):
        name = field.encode_name
        if name not in given:
            if field.required:
                faults.add(missing(field, given))
            else:
                continue
        else:
            try:
                values[field.name] = _converted(given[name], field.type)
                continue
            except msgspec.ValidationError:
                faults.add(Problem(Error.INVALID_FIELD, _wrong(name, given[name], field.type, ranges), name))
        if field.required:
            values[field.name] = NEUTRAL[_bare(field.type)]
    return kind(**values)


def of_value(value: bytes, kind: Any, called: str) -> Problem:
    """The problem for a JSON value of the wrong type. `called` names the value in the sentence."""
    return Problem(Error.INVALID_FIELD, _wrong(called, msgspec.Raw(value), kind))


def missing(field: FieldInfo, given: Collection[str]) -> Problem:
    """The problem for a required field that was not sent; `given` are the names of those that were."""
    name = field.encode_name
    if (other := aliases.called(name, given)) is not None:
        return Problem(Error.INVALID_FIELD, f"{name} is missing; you sent {other}: call it {name}.", name)
    wanted = IMAGE if field.type is msgspec.Raw else _expected(field.type)
    detail = f"{name} is missing." if field.type is str else f"{name} is missing; it must be {wanted}."
    return Problem(Error.INVALID_FIELD, detail, name)


@lru_cache(maxsize=64)
def _fields(kind: type[msgspec.Struct]) -> tuple[FieldInfo, ...]:
    return msgspec.structs.fields(kind)


@lru_cache(maxsize=64)
def loose(kind: type[msgspec.Struct], more: tuple[str, ...] = ()) -> "msgspec.json.Decoder[msgspec.Struct]":
    """A decoder for the fields of a struct and some `more`, with any values. Other fields are not built."""
    names = [*(field.encode_name for field in _fields(kind)), *more]
    fields = [
        (f"field{n}", msgspec.Raw | msgspec.UnsetType, msgspec.field(default=msgspec.UNSET, name=name))
        for n, name in enumerate(names)
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Loose", fields))


def given_in(made: msgspec.Struct) -> dict[str, msgspec.Raw]:
    """The fields that were sent, of what `loose` has decoded."""
    values = {field.encode_name: getattr(made, field.name) for field in _fields(type(made))}
    return {name: value for name, value in values.items() if value is not msgspec.UNSET}


@lru_cache(maxsize=256)
def _decoder(kind: Any) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind, strict=False)


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return value.copy() if kind is msgspec.Raw else _decoder(kind).decode(value)
    return msgspec.convert(value, kind, strict=False)


class _Unshowable:
    """A value that is too large to build, or that Python cannot hold; its `str` says what it is."""

    def __init__(self, raw: msgspec.Raw) -> None:
        self._start = bytes(memoryview(raw)[:200])

    def __str__(self) -> str:
        start = self._start
        if start[:1] in KINDS:
            return f"{KINDS[start[:1]]}, too long to show"
        return f"a number that begins with {start[:20].decode()}" if len(start) > 20 else start.decode()


def _plain(value: Any, kind: Any) -> Any:
    """Decode JSON for a message: Python values; of a list or an object, one level."""
    if not isinstance(value, msgspec.Raw):
        return value
    raw = memoryview(value)
    try:
        if (level := LEVELS.get(bytes(raw[:1]))) is not None and _is_nested(kind):
            return _decoder(level).decode(raw)
        return msgspec.json.decode(raw) if len(raw) <= MAX_DECODED_BYTES else _Unshowable(value)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
        return _Unshowable(value)


def _is_nested(kind: Any) -> bool:
    return any(_names(each)[0] in ("a list", "an object") for each in _alternatives(kind))


def _wrong(path: str, value: Any, kind: Any, ranges: Mapping[str, object] = {}) -> str:
    """A sentence about a value of the wrong type."""
    value = _plain(value, kind)
    for each in _alternatives(kind):
        if (inner := _inner(path, value, each)) is not None:
            return inner
    limits = f" {ranges[path]}" if path in ranges else _limits(kind)
    return f"{path} is {_found(value)}; it must be {_expected(kind)}{limits}."


def _inner(path: str, value: Any, kind: Any) -> str | None:
    """A sentence about what is wrong inside a value of the right kind."""
    bare, length = _bare(kind), _most(kind)
    origin = get_origin(bare) or bare
    if origin in (str, list, dict) and isinstance(value, origin) and length is not None and len(value) > length:
        return f"{path} has {len(value)} {'characters' if origin is str else 'items'}; at most {length} are allowed."
    match value:
        case dict() if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
            return _in_struct(path, value, origin)
        case dict() if origin is dict:
            names, values = get_args(bare)
            for name in value:
                if not _fits(name, names):
                    return f"{path} has a name of {len(name)} characters; at most {_most(names)} are allowed."
            return _first(((f"{path}.{name[:50]}", each) for name, each in value.items()), values)
        case list() if origin is list:
            return _first(((f"{path}[{n}]", each) for n, each in enumerate(value)), *get_args(bare))
        case _:
            return None


def _in_struct(path: str, value: Mapping[str, Any], kind: type[msgspec.Struct]) -> str | None:
    for field in _fields(kind):
        inner = f"{path}.{field.encode_name}"
        if field.encode_name not in value:
            if field.required:
                return f"{inner} is missing."
        elif not _fits(value[field.encode_name], field.type):
            return _wrong(inner, value[field.encode_name], field.type)
    return None


def _first(values: Iterator[tuple[str, Any]], kind: Any) -> str | None:
    return next((_wrong(path, each, kind) for path, each in values if not _fits(each, kind)), None)


def _fits(value: Any, kind: Any) -> bool:
    if _bare(kind) is msgspec.Raw:
        return True
    try:
        _converted(value, kind)
    except (msgspec.DecodeError, UnicodeDecodeError):  # of which ValidationError is one
        return False
    return True


def _no_object(called: str, body: msgspec.Raw, kind: type[msgspec.Struct]) -> str:
    value = _plain(body, str)
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return f"{called} is a JSON string that contains JSON: it was encoded twice. Send the object itself."
    needed = [field.encode_name for field in _fields(kind) if field.required]
    names = f" with {', '.join(needed[:MAX_LISTED])}" if needed else ""
    return f"{called} is {_found(value)}; send a JSON object{names}."


def _found(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            number = NUMBER.fullmatch(value)  # a form has them as texts
            return plain(value) if number else quoted(value) if value else "empty"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _Unshowable():
            return str(value)
        case _:
            return quoted(value)


def _expected(kind: Any) -> str:
    names = dict.fromkeys(name for each in _alternatives(kind) for name in _names(each))
    *most, last = names or ["something else"]
    return f"{', '.join(most)} or {last}" if most else last


def _names(kind: Any) -> list[str]:
    bare = _bare(kind)
    if get_origin(bare) is Literal:
        return [str(value) if isinstance(value, str) else _found(value) for value in get_args(bare)]
    origin = get_origin(bare) or bare
    return [NAMES.get(origin, "an object")]


def _limits(kind: Any) -> str:
    """The range of a number, if its type has one."""
    (each, *others) = _alternatives(kind)
    found: dict[str, Any] = {}
    for meta in get_args(each)[1:] if get_origin(each) is Annotated and not others else ():
        found |= {name: getattr(meta, name) for name in ("ge", "le") if getattr(meta, name, None) is not None}
    return f" from {found['ge']:.10g} to {found['le']:.10g}" if found.keys() >= {"ge", "le"} else ""


def _most(kind: Any) -> int | None:
    metas = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    return next((meta.max_length for meta in metas if getattr(meta, "max_length", None) is not None), None)


def _alternatives(kind: Any) -> list[Any]:
    """The types that a value may have, without null, which means that the field is left out."""
    if get_origin(kind) in (Union, UnionType):
        return [each for one in get_args(kind) if one is not NoneType for each in _alternatives(one)]
    return [kind]


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
