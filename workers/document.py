"""A configuration file and the environment variables that override it, checked against dataclasses.

YAML says what it says once: duplicate keys are errors. A variable named `CONTOUR_` and the key's path in upper case,
joined by `__`, overrides that key, with its value read as YAML: `CONTOUR_ENGINE__SAMPLER__STEPS=10`.
"""

import difflib
import functools
import math
import re
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import inspect

PREFIX = "CONTOUR_"
SEPARATOR = "__"
SHOWN_CHARS = 60  # of a wrong value, in a message

# Kubernetes puts such variables into the containers beside a service named contour: they are not ours.
SERVICE_LINK = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")

Key: TypeAlias = tuple[str, ...]
T = TypeVar("T")


class SettingsError(ValueError):
    """The configuration cannot be used; a line for each reason says where it is, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with the value of a key."""

    key: Key
    text: str


class Document:
    """The tree of a configuration file with the overrides in it, and where each value came from."""

    def __init__(self, path: Path, tree: dict[str, Any], origins: Mapping[Key, str]) -> None:
        self.path = path
        self._tree = tree
        self._origins = origins

    @classmethod
    def read(cls, path: Path, environ: Mapping[str, str], verbatim: Collection[Key] = ()) -> "Document":
        """Read a file and apply the overrides; those of `verbatim` are text as it is. Raises SettingsError."""
        try:
            tree = _parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: cannot be read: {error}") from error
        if not isinstance(tree, dict):
            raise SettingsError(f"{path}: must hold keys and values, found {show(tree)}")
        origins: dict[Key, str] = {}
        for name in sorted(filter(lambda name: _is_ours(name, environ[name]), environ), key=len):
            key = tuple(name.removeprefix(PREFIX).lower().split(SEPARATOR))
            text = environ[name]
            _put(tree, key, text if key in verbatim else _parse(text, f"environment variable {name}"), name)
            origins[key] = name
        return cls(path, tree, origins)

    def convert(self, schema: type[T]) -> T:
        """All of it as a dataclass. Raises SettingsError."""
        return self._build(schema, self._tree, ())

    def section(self, name: str, schema: type[T]) -> T:
        """One top-level key of it as a dataclass. Raises SettingsError."""
        return self._build(schema, self._tree.get(name, {}), (name,))

    def refuse(self, problems: list[Problem]) -> None:
        """Raise SettingsError, if there are problems."""
        if problems:
            raise SettingsError("\n".join(f"{self._where(problem.key)} {problem.text}" for problem in problems))

    def _build(self, schema: type[T], found: Any, key: Key) -> T:
        self.refuse(list(_problems(schema, found, key)))
        return msgspec.convert(found, schema)

    def _where(self, key: Key) -> str:
        on_the_way = [origin for origin in self._origins if origin[: len(key)] == key[: len(origin)]]
        if not on_the_way:
            return f"{self.path}: {_dotted(key)}"
        return f"environment variable {self._origins[max(on_the_way, key=len)]}: {_dotted(key)}"


def show(value: Any) -> str:
    """A value as messages quote it."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case _:
            text = repr(value)
            return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 3]}..."


# ------------------------------------------------------------------------------------------------------------ reading


class _Loader(yaml.SafeLoader):
    """Safe YAML without duplicate keys, in which 1e-3 is a number as it is in YAML 1.2 and in JSON."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.tag == "tag:yaml.org,2002:merge":
                continue
            if name.value in seen:
                problem = f"the key {name.value} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{where}{line}: is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{where}: is not YAML: {error}") from error


def _is_ours(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return False
    if SEPARATOR in name:
        return True
    return not SERVICE_LINK.fullmatch(name) and not (name.endswith("_PORT") and "://" in value)


def _put(tree: dict[str, Any], key: Key, value: Any, name: str) -> None:
    """Set a value in the tree, making the mappings on the way to it."""
    for end, part in enumerate(key[:-1], 1):
        inner = tree.setdefault(part, {})
        if inner is None:
            inner = tree[part] = {}
        if not isinstance(inner, dict):
            raise SettingsError(f"environment variable {name}: {_dotted(key[:end])} has a value, so it has no keys")
        tree = inner
    tree[key[-1]] = value


# ----------------------------------------------------------------------------------------------------------- checking


def _problems(kind: Any, found: Any, key: Key) -> Iterator[Problem]:
    """All that is wrong with a value that should be of a type. Mappings are checked key by key."""
    schema = _dataclass_in(kind)
    if get_origin(kind) is list and isinstance(found, list):
        for n, item in enumerate(found):
            yield from _problems(get_args(kind)[0], item, (*key, str(n)))
    elif schema is None or (found is None and schema is not kind):
        yield from _value_problems(kind, found, key)
    elif not isinstance(found, dict):
        yield Problem(key, f"is {show(found)}, but must have keys ({_listed(schema)}); leave it out for the defaults")
    else:
        yield from _key_problems(schema, found, key)


def _key_problems(schema: type, found: dict[Any, Any], key: Key) -> Iterator[Problem]:
    hints = get_type_hints(schema, include_extras=True)
    for name, value in found.items():
        if name in hints:
            yield from _problems(hints[name], value, (*key, name))
        else:
            yield Problem((*key, str(name)), f"is not a setting{_nearest(str(name), hints)} Allowed: {_listed(schema)}")
    for field in fields(schema):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in found:
            yield Problem((*key, field.name), f"is missing: it must be {_allowed(hints[field.name])}")


def _value_problems(kind: Any, found: Any, key: Key) -> Iterator[Problem]:
    try:
        msgspec.convert(found, kind)
        fine = not isinstance(found, float) or math.isfinite(found)
    except msgspec.ValidationError:
        fine = False
    if not fine:
        shown = "not shown" if _is_secret(kind) else show(found)
        yield Problem(key, f"is {shown}, but must be {_allowed(kind)}")


def _is_secret(kind: Any) -> bool:
    metas = [each for each in get_args(kind) if isinstance(each, msgspec.Meta)]
    return any((meta.extra or {}).get("secret") for meta in metas) or any(map(_is_secret, get_args(kind)))


def _dataclass_in(kind: Any) -> type | None:
    """The type itself, or the member of `X | None`, that is a dataclass."""
    if get_origin(kind) is list:
        return None
    return next((t for t in (kind, *get_args(kind)) if isinstance(t, type) and is_dataclass(t)), None)


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    matches = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {matches[0]}?" if matches else "."


def _listed(schema: type) -> str:
    return ", ".join(field.name for field in fields(schema))


def _dotted(key: Key) -> str:
    return ".".join(key)


def _allowed(kind: Any) -> str:
    return _describe(inspect.type_info(kind))


@functools.singledispatch
def _describe(kind: inspect.Type) -> str:
    """What values a type takes, in words."""
    return type(kind).__name__.removesuffix("Type").lower()


@_describe.register
def _(kind: inspect.UnionType) -> str:
    return " or ".join(_describe(member) for member in kind.types)


@_describe.register
def _(kind: inspect.LiteralType) -> str:
    return "one of " * (len(kind.values) > 1) + ", ".join(str(value) for value in kind.values)


@_describe.register
def _(kind: inspect.IntType) -> str:
    return f"a whole number{_range(kind)}"


@_describe.register
def _(kind: inspect.FloatType) -> str:
    return f"a number{_range(kind)}"


@_describe.register
def _(kind: inspect.StrType) -> str:
    pattern = f" that matches {kind.pattern}" if kind.pattern else ""
    return "text" + " that is not empty" * bool(kind.min_length) + pattern


@_describe.register
def _(kind: inspect.BoolType) -> str:
    return "true or false"


@_describe.register
def _(kind: inspect.NoneType) -> str:
    return "empty"


@_describe.register
def _(kind: inspect.ListType) -> str:
    return f"a list of: {_describe(kind.item_type)}"


@_describe.register
def _(kind: inspect.TupleType) -> str:
    return "[" + ", ".join(_describe(item) for item in kind.item_types) + "]"


@_describe.register
def _(kind: inspect.DataclassType) -> str:
    return f"keys ({_listed(kind.cls)})"


@_describe.register
def _(kind: inspect.DictType) -> str:
    return "a mapping of names to values"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = f" from {kind.ge}" * (kind.ge is not None) + f" above {kind.gt}" * (kind.gt is not None)
    high = f" up to {kind.le}" * (kind.le is not None) + f" below {kind.lt}" * (kind.lt is not None)
    return low + high
