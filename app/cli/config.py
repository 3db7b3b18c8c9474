"""`python -m app config [CONFIG]`: the configuration that is in force, and where each value comes from.

The output is a configuration file: `python -m app config > my.yaml` keeps what is set by variables now. Secrets are
left out. Exit codes: 0 printed; 2 the configuration or the command is wrong.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import msgspec

from app.cli.reference import reference
from app.settings import Settings, SettingsError, read
from workers import yamlfile
from workers.config import locate
from workers.console import WRONG, Parser, add_configuration
from workers.document import Document
from workers.schema import hints, marked
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
        description="Print the configuration that is in force as YAML, and where each value comes from.",
    )
    add_configuration(parser)
    parser.add_argument("--host", help="as for serve")
    parser.add_argument("--port", help="as for serve")
    parser.add_argument("--reference", action="store_true", help="print docs/configuration.md: every key, explained")
    return parser


def effective(settings: Settings, document: Document) -> Iterator[str]:
    """The lines of a configuration file that says the same from any folder, each value with its origin."""
    settings = replace(settings, engine=locate(settings.engine, document.path.parent))
    yield f"# {_printable(str(document.path))}, with what overrides it."
    if settings.server.api_key is not None:
        yield "# server.api_key is not shown: set it again where this is used, or the service is open to everybody."
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
