"""YAML for configurations: no key twice, the line of each key, and errors in plain words.

It is YAML as most people know it: `1e-3` is a number, as in YAML 1.2 and JSON, and `2026-01-31` is text, not a date.
"""

import re
from collections.abc import Hashable, Iterator
from typing import Any, TypeAlias

import yaml

Key: TypeAlias = tuple[str, ...]

_FLOAT, _DATE, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("float", "timestamp", "merge"))
# The beginnings of PyYAML's errors, and what a person can do about each.
_ADVICE = {
    "the key": "{}",
    "mapping values are not allowed": "there is a second ':' on a line, or the indentation is wrong; text that begins "
    "with ':' or has ': ' in it needs quotes",
    "expected the node content, but found ':'": "text that begins with ':' needs quotes",
    r"found character '\t'": "there is a tab; indent with spaces",
    "found character": "text that begins with one of @ ` % needs quotes",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
    "found unexpected end of stream": "a quotation mark is not closed",
    "could not find expected ':'": "a key has no ':' behind it, or a line is indented too little",
    "expected <block end>": "the indentation does not fit the lines above",
    "found undefined alias": "text that begins with * needs quotes",
    "expected alphabetic or numeric character": "text that begins with * or & needs quotes",
    "could not determine a constructor": "text that begins with ! needs quotes",
    "found unhashable key": "a key must be text; text with braces or brackets in it needs quotes",
    "but found another document": "there is a second document (---)",
}
_NO_ADVICE = "look at the indentation, the colons and the quotes there"


class NotYamlError(ValueError):
    """A text is not YAML. The message begins with the line and column, if known, and says what to do."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.tag == _MERGE:
                continue
            if name.value in seen:
                problem = f"the key {name.value} appears twice"
                raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what the loader reads: both know the same kinds of numbers."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None if data.isprintable() else '"'  # a line break, as \\n, does not begin a line
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


def _resolve_as_people_do(kind: "type[yaml.SafeLoader | yaml.SafeDumper]") -> None:
    resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != _DATE]
        for first, known in kind.yaml_implicit_resolvers.items()
    }
    kind.yaml_implicit_resolvers = resolvers
    kind.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


_resolve_as_people_do(_Loader)
_resolve_as_people_do(_Dumper)


def read(text: str) -> tuple[Any, dict[Key, int]]:
    """Return the value that a text holds, and the line of each key in it. Raises NotYamlError."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None, {}) if node is None else (loader.construct_document(node), dict(_lines(node)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise NotYamlError(f"{place}: is not YAML: {_advice(error.problem or '')}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYamlError(f", line {line}: is not YAML: it contains a control character") from None
    except RecursionError:
        raise NotYamlError(": is nested without end; an alias (*) refers to a section that contains it") from None
    except ValueError:
        raise NotYamlError(
            ": is not YAML: a number in it cannot be read; put text that begins with 0 in quotes"
        ) from None


def write(value: Any) -> str:
    """Write a value on one line, so that `read` returns it."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return str(text).removesuffix("\n").removesuffix("\n...")


def _lines(node: yaml.Node, key: Key = ()) -> Iterator[tuple[Key, int]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                yield (*key, name.value), name.start_mark.line + 1
                yield from _lines(value, (*key, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for n, item in enumerate(node.value):
            yield from _lines(item, (*key, str(n)))


def _advice(problem: str) -> str:
    return next((text.format(problem) for begin, text in _ADVICE.items() if problem.startswith(begin)), _NO_ADVICE)
