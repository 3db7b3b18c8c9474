"""A configuration file with its overrides, checked against dataclasses.

A variable named `CONTOUR_` and the key's path in upper case, joined by `__`, overrides that key, and a flag overrides
both: `CONTOUR_ENGINE__SAMPLER__STEPS=10`. The key's type says how its text is read (`schema.typed`). An empty variable
is not set, unless the key is text that may be empty.
"""

import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from workers import yamlfile
from workers.schema import (
    NOT_SET,
    PREFIX,
    SEPARATOR,
    Problem,
    hints,
    nearest,
    problems,
    section_in,
    show,
    typed,
)
from workers.yamlfile import Key, NotYamlError

__all__ = ["Document", "Problem", "SettingsError", "show"]

# Kubernetes puts such variables into the containers beside a service named contour: they are not ours.
SERVICE_LINK = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")

T = TypeVar("T")


class SettingsError(ValueError):
    """The configuration cannot be used. Each line of the message says where, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class Override:
    """A value from outside the file; `source` names the variable or flag."""

    source: str
    key: Key
    text: str


class Document:
    """The tree of a configuration file, its overrides, and where each value came from."""

    def __init__(self, path: Path, tree: dict[str, Any], lines: Mapping[Key, int], overrides: list[Override]) -> None:
        self.path = path
        self._tree = tree
        self._lines = lines
        self._overrides = overrides
        self._applied: dict[Key, Override] = {}

    @classmethod
    def read(cls, path: Path, environ: Mapping[str, str], flags: Mapping[str, str] | None = None) -> "Document":
        """Read a file and find its overrides; `flags` is text by dotted key. Raises SettingsError."""
        try:
            tree, lines = yamlfile.read(path.read_text(encoding="utf-8"))
        except NotYamlError as error:
            raise SettingsError(f"{path}{error}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{path}: cannot be read: it is not UTF-8 text") from None
        except OSError as error:
            raise SettingsError(f"{path}: cannot be read: {_why(error, path)}") from None
        if not isinstance(tree, dict):
            raise SettingsError(f"{path}: must contain keys and values, but is {show(tree)}")
        return cls(path, tree, lines, [*_variables(environ), *_flags(flags or {})])

    def convert(self, schema: type[T]) -> T:
        """Return all of it as a dataclass. Raises SettingsError."""
        for override in self._overrides:
            self._apply(override, schema, ())
        return self._build(schema, self._tree, ())

    def section(self, name: str, schema: type[T]) -> T:
        """Return one top-level key of it as a dataclass. Raises SettingsError."""
        for override in self._overrides:
            if override.key[0] == name:
                self._apply(override, schema, (name,))
        return self._build(schema, self._tree.get(name, {}), (name,))

    def refuse(self, problems: list[Problem]) -> None:
        """Raise SettingsError, if there are problems."""
        if problems:
            raise SettingsError("\n".join(f"{self._where(problem.key)} {problem.text}" for problem in problems))

    def origin(self, key: Key) -> str:
        """Return where the value of a key came from: a file with its line, a variable, a flag, or the default."""
        if not self._has(key):
            return "default"
        if (override := self._override_of(key)) is not None:
            return override.source
        line = next((self._lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self._lines), None)
        return "default" if line is None else f"{self.path}:{line}"

    def _build(self, schema: type[T], found: Any, key: Key) -> T:
        self.refuse(list(problems(schema, found, key)))
        return msgspec.convert(found, schema)

    def _apply(self, override: Override, schema: type, prefix: Key) -> None:
        kind = _kind_at(schema, override.key[len(prefix) :])
        if any("\udc80" <= letter <= "\udcff" for letter in override.text):  # as Python keeps other bytes
            raise SettingsError(f"{override.source}: is not UTF-8 text")
        try:
            value = typed(override.text, kind)
        except NotYamlError as error:
            raise SettingsError(f"{override.source}{error}") from None
        if value is not NOT_SET:
            _put(self._tree, override, value)
            self._applied[override.key] = override

    def _has(self, key: Key) -> bool:
        found: Any = self._tree
        for part in key:
            if not isinstance(found, dict) or part not in found:
                return isinstance(found, list)
            found = found[part]
        return True

    def _override_of(self, key: Key) -> Override | None:
        """Find what overrides a key, a section above it, or something in it."""
        found = [override for each, override in self._applied.items() if each[: len(key)] == key[: len(each)]]
        return max(found, key=lambda override: len(override.key), default=None)

    def _where(self, key: Key) -> str:
        override = self._override_of(key)
        return f"{self.path if override is None else override.source}: {_dotted(key)}"


def _why(error: OSError, path: Path) -> str:
    reason = error.strerror or "unknown reason"
    if error.errno not in (errno.ENOENT, errno.EISDIR) or not path.parent.is_dir():
        return reason
    return f"{reason}{nearest(path.name, [each.name for each in path.parent.glob('*.y*ml')]).removesuffix('.')}"


def _variables(environ: Mapping[str, str]) -> Iterator[Override]:
    """Yield sections before their keys, so that a variable for a key adds to one for its section."""
    for name in sorted(filter(lambda name: _is_ours(name, environ[name]), environ), key=len):
        key = tuple(name.removeprefix(PREFIX).lower().split(SEPARATOR))
        yield Override(f"environment variable {name}", key, environ[name])


def _flags(flags: Mapping[str, str]) -> Iterator[Override]:
    for dotted, text in flags.items():
        key = tuple(dotted.split("."))
        yield Override(f"--{key[-1]}", key, text)


def _is_ours(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return False
    if SEPARATOR in name:
        return True
    return not SERVICE_LINK.fullmatch(name) and not (name.endswith("_PORT") and "://" in value)


def _kind_at(schema: type, key: Key) -> Any:
    """Return the type of a key in a dataclass. An unknown key has any type, and is refused later."""
    kind: Any = schema
    for part in key:
        section = section_in(kind)
        if section is not None:
            kind = hints(section).get(part, Any)
        else:
            kind = get_args(kind)[1] if get_origin(kind) is dict else Any
    return kind


def _put(tree: dict[str, Any], override: Override, value: Any) -> None:
    """Set a value in the tree, making the mappings on the way to it. Raises SettingsError."""
    *path, last = override.key
    for end, part in enumerate(path, 1):
        inner = tree.setdefault(part, {})
        if inner is None:
            inner = tree[part] = {}
        if not isinstance(inner, dict):
            above = override.key[:end]
            what = "is a list: set the whole list" if isinstance(inner, list) else "is a single value and has no keys"
            raise SettingsError(f"{override.source}: {_dotted(above)} {what}")
        tree = inner
    tree[last] = value


def _dotted(key: Key) -> str:
    return ".".join(key)
