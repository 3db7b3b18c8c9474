"""The figures of a benchmark so far: in a file after every figure, and as a table."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_WIDTH = 64
_LONG = 12  # entries, from which on a list is for the file alone


class Report:
    """Figures by part and row. The file is replaced whole at each entry: whoever reads it finds no half of one."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.content: dict[str, Any] = {**head, "parts": {}}
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def failed(self) -> bool:
        """Whether a part failed."""
        return any("error" in rows for rows in self.content["parts"].values())

    def enter(self, part: str, row: str, value: object) -> None:
        """Take a row down."""
        self.content["parts"].setdefault(part, {})[row] = value
        self._write()

    def fail(self, part: str, error: Exception) -> None:
        """Take down why a part ended before its time."""
        self.enter(part, "error", f"{type(error).__name__}: {error}")

    def _write(self) -> None:
        unfinished = self._path.with_name(f"{self._path.name}.tmp")
        unfinished.write_text(json.dumps(self.content, indent=2) + "\n")
        unfinished.replace(self._path)


def lines(content: Mapping[str, Any]) -> Iterator[str]:
    """The table: one line a figure, with a title a part."""
    for part, rows in content["parts"].items():
        yield f"\n{part}"
        for row, value in rows.items():
            yield from _lines(row, value, 2)


def _lines(name: str, value: Any, indent: int) -> Iterator[str]:
    title = " " * indent + str(name)
    if isinstance(value, Mapping) and any(isinstance(inner, Mapping | list) for inner in value.values()):
        yield title
        for key, inner in value.items():
            yield from _lines(key, inner, indent + 2)
    elif not (isinstance(value, list) and len(value) > _LONG):
        yield f"{title:<{_WIDTH}} {_figure(value)}"


def _figure(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    if "median" not in value:
        return "  ".join(f"{name} {each}" for name, each in value.items())
    spread = f"{value['median']:>10.2f} ms  [{value['min']:.2f} .. {value['max']:.2f}]" if "min" in value else ""
    rest = {name: each for name, each in value.items() if name not in ("median", "min", "max", "n", "first")}
    others = "".join(f"  {name} {each}" for name, each in rest.items())
    return (spread or f"{value['median']:>10.2f} ms") + others
