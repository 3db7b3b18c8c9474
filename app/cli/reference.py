"""docs/configuration.md, made from the schema: each key with its variable, type, range, default and meaning."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_origin

from app.settings import Settings
from workers import yamlfile
from workers.schema import about, allowed, hints, meanings, section_in, variable
from workers.yamlfile import Key

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
    """The page."""
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
