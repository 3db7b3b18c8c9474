"""`python -m app config [CONFIG]`: the configuration that is in force, and where each value comes from.

The output is a configuration file: `python -m app config > my.yaml` keeps what is set by variables now. Secrets are
left out. Exit codes: 0 printed; 2 the configuration or the command is wrong.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import Any, get_args, get_origin

import msgspec

from app.settings import Settings, SettingsError, read
from workers import yamlfile
from workers.config import locate
from workers.console import WRONG, Parser, add_configuration
from workers.document import Document
from workers.schema import about, allowed, hints, marked, meanings, section_in, variable
from workers.yamlfile import Key


def run(arguments: Sequence[str]) -> int:
    """Print the configuration, or the reference; the exit code."""
    given: argparse.Namespace = _parser().parse_args(arguments)
    if given.reference:
        print(reference(), end="")
        return 0
    flags = {f"server.{name}": getattr(given, name) for name in ("host", "port") if getattr(given, name) is not None}
    try:
        settings, document = read(given.config, os.environ, flags)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return WRONG
    print("\n".join(effective(settings, document)))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "app",
        "config",
        description="Print the configuration in effect as YAML, with the origin of each value.",
    )
    add_configuration(parser)
    parser.add_argument("--host", help="as in serve: overrides server.host")
    parser.add_argument("--port", help="as in serve: overrides server.port")
    parser.add_argument(
        "--reference", action="store_true", help="print docs/configuration.md, which explains every key"
    )
    return parser


def effective(settings: Settings, document: Document) -> Iterator[str]:
    """The lines of a configuration file that says the same from any folder, each value with its origin."""
    settings = replace(settings, engine=locate(settings.engine, document.path.parent))
    yield f"# {_printable(str(document.path))}, with its overrides."
    if settings.server.api_key is not None:
        yield "# server.api_key is not shown: set it again where you use this file, or the service is open to all."
    for section in fields(settings):
        yield ""
        yield from _lines(getattr(settings, section.name), Settings, (section.name,), document)


def _lines(value: Any, owner: type, key: Key, document: Document) -> Iterator[str]:
    indent, name = "  " * (len(key) - 1), key[-1]
    if is_dataclass(value):
        yield f"{indent}{name}:"
        for field in fields(value):
            yield from _lines(getattr(value, field.name), type(value), (*key, field.name), document)
        return
    origin = _printable(document.origin(key))
    if marked(hints(owner)[name], "secret") and value is not None:
        yield f"{indent}{name}: null  # not shown; {origin}"
    else:
        yield f"{indent}{name}: {yamlfile.write(msgspec.to_builtins(value))}  # {origin}"


def _printable(text: str) -> str:
    """Text that can stand in a comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# ---------------------------------------------------------------------- docs/configuration.md, made from the schema


HEAD = """\
# Configuration

<!-- Made by `python -m app config --reference`; a test compares. The meanings are written in the schema. -->

A YAML file (`configs/` has some) sets what differs from the defaults. A variable overrides a key of the file, and a
flag (`--host`, `--port`) overrides both. `python -m app config CONFIG` prints what is in force, and where each value
comes from.

A variable's name is `CONTOUR_` and the path of the key in upper case, joined by `__`. The key's type says how it is
read: for text it is that text, as it is; for a number, a truth value (`true`/`false`, `yes`/`no`, `on`/`off`, `1`/`0`)
or one of several words it is that; for a list, a mapping or a whole section it is YAML or JSON. An empty variable is
not set, with two exceptions: text that may be empty is emptied (`CONTOUR_ENGINE__PROMPT__SUFFIX=`), and an empty
`server.api_key` or `server.api_key_file` is refused, so that a lost key never opens the service.

A name that is not listed here is refused, with the nearest one. Relative paths of weights and of `api_key_file` count
from the configuration file; `~` is the home folder.
"""
MIB = 2**20


def reference() -> str:
    return "\n".join([HEAD, *_sections(Settings, ())])


def _sections(schema: type, key: Key) -> Iterator[str]:
    """A section with its table, then the sections in it."""
    known, meaning = hints(schema), meanings(schema)
    rows = [
        _row((*key, field.name), known[field.name], field, meaning[field.name])
        for field in fields(schema)
        if field.name in meaning  # of most sections their own heading tells
    ]
    if rows:
        yield f"## `{'.'.join(key)}`\n\n{about(schema)}\n"
        yield "\n".join(["| key, variable | values | default | meaning |", "|---|---|---|---|", *rows, ""])
    for field in fields(schema):
        kind = known[field.name]
        listed = get_origin(kind) is list
        if (section := section_in(get_args(kind)[0] if listed else kind)) is not None:
            yield from _sections(section, (*key, f"{field.name}[]" if listed else field.name))


def _row(key: Key, kind: Any, field: "Field[Any]", meaning: str) -> str:
    named = f"`{'.'.join(key)}`" + ("" if any("[]" in part for part in key) else f"<br>`{variable(key)}`")
    cells = [cell.replace("|", r"\|") for cell in (named, allowed(kind), _default(field), meaning)]
    return f"| {' | '.join(cells)} |"


def _default(field: "Field[Any]") -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING:
        return "none: it must be set"
    size = f" ({value // MIB} MiB)" if field.name.endswith("_bytes") and isinstance(value, int) and value >= MIB else ""
    return "not set" if value is None else f"`{yamlfile.write(value)}`{size}"
