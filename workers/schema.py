"""Dataclasses as a schema of settings: check values, read the text of variables, describe types in words.

Bounds are `msgspec.Meta`. `Meta.extra` has two marks: a `secret` is never shown; `needed` text may not be empty, and an
empty variable for it is an error instead of "not set". Its `words` describe a type with a pattern.
"""

import ast
import difflib
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from inspect import cleandoc, getsource
from itertools import pairwise
from typing import Any, Final, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from workers import yamlfile
from workers.yamlfile import Key, NotYamlError

PREFIX, SEPARATOR = "CONTOUR_", "__"  # of variables
SHOWN_CHARS = 60  # of a wrong value, in a message
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
CREDENTIALS = re.compile(r"//[^/@\s]+@")  # in a URL


class NotSet:
    """The type of NOT_SET."""


NOT_SET: Final = NotSet()


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with a key; `text` follows the key's name in the message."""

    key: Key
    text: str


def variable(key: Key) -> str:
    """Return the name of the variable that overrides a key."""
    return PREFIX + SEPARATOR.join(key).upper()


def hints(schema: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with their bounds."""
    return get_type_hints(schema, include_extras=True)


def section_in(kind: Any) -> type | None:
    """Return the type itself, or the member of `X | None`, that is a dataclass."""
    if get_origin(kind) is list:
        return None
    return next((t for t in (kind, *get_args(kind)) if isinstance(t, type) and is_dataclass(t)), None)


def meanings(schema: type) -> dict[str, str]:
    """Read the docstring below each field of a dataclass from its source."""
    found: dict[str, str] = {}
    for each in reversed(schema.__mro__[:-1]):
        (source,) = ast.parse(textwrap.dedent(getsource(each))).body
        for field, text in pairwise(getattr(source, "body", ())):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    found[name] = " ".join(cleandoc(said).split())
    return found


def about(schema: type) -> str:
    """Return the docstring of a dataclass on one line."""
    return " ".join((schema.__doc__ or "").split())


def marked(kind: Any, mark: str) -> bool:
    """Return whether a type, or a part of it, is marked in `Meta.extra`."""
    metas = [each for each in get_args(kind) if isinstance(each, msgspec.Meta)]
    return any((meta.extra or {}).get(mark) for meta in metas) or any(marked(each, mark) for each in get_args(kind))


# ---------------------------------------------------------------------------------------------------------- variables


def typed(text: str, kind: Any) -> Any:
    """Read the text of a variable as a value of a type; NOT_SET if it is empty and the type has no empty value.

    Text stays as it is. Numbers, truth values and words are recognised without the spaces around them; other text is
    returned for the checks to refuse. Lists, mappings and sections are YAML. Raises NotYamlError.
    """
    members = _members(kind)
    texts = [member for member in members if isinstance(member, inspect.StrType)]
    if not text.strip() and not marked(kind, "needed"):
        may_be_empty = texts and len(members) == 1 and not texts[0].min_length
        return text if texts and (text or may_be_empty) else NOT_SET
    if texts:
        return text
    words = (inspect.BoolType, inspect.IntType, inspect.FloatType, inspect.LiteralType, inspect.NoneType)
    if all(isinstance(member, words) for member in members):
        return _word(text.strip(), members)
    if isinstance(members[0], inspect.AnyType):
        return _anything(text)
    return yamlfile.read(text)[0]


def _members(kind: Any) -> tuple[inspect.Type, ...]:
    info = inspect.type_info(kind)
    info = info.type if isinstance(info, inspect.Metadata) else info
    if isinstance(info, inspect.UnionType):
        return tuple(each.type if isinstance(each, inspect.Metadata) else each for each in info.types)
    return (info,)


def _word(text: str, members: Iterable[inspect.Type]) -> Any:
    for member in members:
        match member:
            case inspect.LiteralType(values=values) if text in map(str, values):
                return next(value for value in values if str(value) == text)
            case inspect.BoolType() if text.lower() in WORDS:
                return WORDS[text.lower()]
            case inspect.IntType() | inspect.FloatType() if (number := _number(text)) is not None:
                return number
    return text


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _anything(text: str) -> Any:
    """Read text of any type: as YAML, unless that is text too or not YAML."""
    try:
        value = yamlfile.read(text)[0]
    except NotYamlError:
        return text
    return text if isinstance(value, str) else value


# ----------------------------------------------------------------------------------------------------------- checking


def problems(kind: Any, found: Any, key: Key) -> Iterator[Problem]:
    """Check a value against a type; mappings are checked key by key."""
    schema = section_in(kind)
    if get_origin(kind) is list and isinstance(found, list):
        for n, item in enumerate(found):
            yield from problems(get_args(kind)[0], item, (*key, str(n)))
    elif schema is None or (found is None and schema is not kind):
        yield from _value_problems(kind, found, key)
    elif not isinstance(found, dict):
        advice = "" if any(map(_is_needed, fields(schema))) else "; leave it out for the defaults"
        yield Problem(key, f"is {show(found)}, but must have keys ({_listed(schema)}){advice}")
    else:
        yield from _key_problems(schema, found, key)


def _key_problems(schema: type, found: dict[Any, Any], key: Key) -> Iterator[Problem]:
    known = hints(schema)
    for name, value in found.items():
        if name in known:
            yield from problems(known[name], value, (*key, name))
        else:
            word = str(name).lower()
            if now := next((each for each, kind in known.items() if _former_name(kind) == word), None):
                text = f"is called {now} now (as a variable, {variable((*key, now))})"
            else:
                meant = _elsewhere(word, schema, key) or nearest(word, known)
                text = f"is not a setting{meant} Allowed: {_listed(schema)}"
            yield Problem((*key, str(name)), text)
    for field in fields(schema):
        if _is_needed(field) and field.name not in found:
            yield Problem((*key, field.name), f"is missing: it must be {allowed(known[field.name])}")


def _former_name(kind: Any) -> str | None:
    """The name of a key in the previous release."""
    extras = [each.extra or {} for each in get_args(kind) if isinstance(each, msgspec.Meta)]
    return next((extra["former"] for extra in extras if "former" in extra), None)


def _is_needed(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _elsewhere(name: str, schema: type, key: Key) -> str:
    """The end of a sentence about an unknown key: the one of that name, or path, in a section below. Empty if none."""
    words = re.sub(r"[.-]", "_", name)
    below = next((below for below in _keys(schema) if words in (below[-1], "_".join(below))), None)
    if below is None:
        return ""
    meant = (*key, *below)
    return f"; did you mean {'.'.join(meant)} (as a variable, {variable(meant)})?"


def _keys(schema: type) -> Iterator[Key]:
    for name, kind in hints(schema).items():
        yield (name,)
        if (section := section_in(kind)) is not None:
            yield from ((name, *key) for key in _keys(section))


def _value_problems(kind: Any, found: Any, key: Key) -> Iterator[Problem]:
    try:
        msgspec.convert(found, kind)
        fine = not isinstance(found, float) or math.isfinite(found)
    except msgspec.ValidationError:
        fine = False
    if not fine:
        shown = "not shown" if marked(kind, "secret") else show(found)
        yield Problem(key, f"is {shown}, but must be {allowed(kind)}{_advice(kind, found)}")


def _advice(kind: Any, found: Any) -> str:
    """How to write a value of another type as one of this type, if YAML took it for something else."""
    if get_origin(kind) is list and found is not None:
        return "; write a list in brackets: [A, B]"
    texts = any(isinstance(member, inspect.StrType) for member in _members(kind))
    return "; put it in quotes" if texts and isinstance(found, bool | int | float) else ""


# ------------------------------------------------------------------------------------------------------------ wording


def show(value: Any) -> str:
    """Return a value as messages quote it, without credentials of a URL."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case _:
            text = CREDENTIALS.sub("//***@", repr(value))
            return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 3]}..."


def nearest(name: str, names: Iterable[str]) -> str:
    """End a sentence about an unknown name with the most similar known one, if any is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {matches[0]}?" if matches else "."


def allowed(kind: Any) -> str:
    """Describe the values of a type."""
    return _describe(inspect.type_info(kind))


def _listed(schema: type) -> str:
    return ", ".join(field.name for field in fields(schema))


def _describe(kind: inspect.Type) -> str:  # noqa: C901, PLR0911, PLR0912 - one case for each type
    match kind:
        case inspect.Metadata():
            return (kind.extra or {}).get("words") or _describe(kind.type)
        case inspect.UnionType():
            return " or ".join(map(_describe, kind.types))
        case inspect.LiteralType():
            return "one of " * (len(kind.values) > 1) + ", ".join(map(str, kind.values))
        case inspect.IntType():
            return f"a whole number{_range(kind)}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.StrType():
            length = f" of at most {kind.max_length} characters" if kind.max_length else ""
            return "text" + " that is not empty" * bool(kind.min_length) + length
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.ListType():
            return f"a list of: {_describe(kind.item_type)}"
        case inspect.TupleType():
            return "[" + ", ".join(map(_describe, kind.item_types)) + "]"
        case inspect.DataclassType():
            return f"keys ({_listed(kind.cls)})"
        case inspect.DictType():
            return "a mapping of names to values"
        case _:
            return type(kind).__name__.removesuffix("Type").lower()


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = f" from {kind.ge}" * (kind.ge is not None) + f" above {kind.gt}" * (kind.gt is not None)
    high = f" up to {kind.le}" * (kind.le is not None) + f" below {kind.lt}" * (kind.lt is not None)
    return low + high
