"""The figures of a benchmark so far: in a file after every figure, and as a table."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_WIDTH = 64
_LONG = 12  # entries, from which on a list is for the file alone
COMPLETE = "complete, s"  # a part's last row
CONCLUSIONS = "verdicts"  # how rows begin that are taken from others
_INCOMPLETE = ("error", "cut off", "skipped")  # of a part: why it is not complete


class Report:
    """Figures by part and row. The file is replaced whole at each entry: whoever reads it finds no half of one.

    With `identity`, it goes on with the file of an earlier run of the same identity, but for what failed there, and for
    parts that were measured by other `methods`, a digest for each part. The file of another run is kept beside it.
    """

    def __init__(
        self,
        path: Path,
        head: Mapping[str, Any],
        identity: Mapping[str, Any] | None = None,
        methods: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {} if identity is None else {"identity": json.loads(json.dumps(identity)), "methods": methods or {}}
        parts = self._earlier(known["identity"], known["methods"]) if known else {}
        self.content: dict[str, Any] = {**head, **known, "parts": parts}
        self._write()

    @property
    def failed(self) -> bool:
        """Whether a part or a row failed."""
        parts: Mapping[str, Mapping[str, Any]] = self.content["parts"]
        return any("error" in rows or any(_failed(row) for row in rows.values()) for rows in parts.values())

    def has(self, part: str, row: str) -> bool:
        """Whether a row was entered."""
        return row in self.content["parts"].get(part, {})

    def enter(self, part: str, row: str, value: object) -> None:
        """Take a row down."""
        self.content["parts"].setdefault(part, {})[row] = value
        self._write()

    def fail(self, part: str, error: Exception) -> None:
        """Take down why a part ended before its time."""
        self.enter(part, "error", failure(error))

    def _earlier(self, identity: Mapping[str, Any], methods: Mapping[str, str]) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text())
            same, before = content["identity"] == identity, content["methods"]
        except (FileNotFoundError, ValueError, KeyError):
            same = False
        if not same:
            if self._path.exists():
                self._path.replace(self._path.with_suffix(".earlier.json"))
            return {}
        return {part: _kept(rows) for part, rows in content["parts"].items() if before.get(part) == methods.get(part)}

    def _write(self) -> None:
        unfinished = self._path.with_name(f"{self._path.name}.tmp")
        unfinished.write_text(json.dumps(self.content, indent=2) + "\n")
        unfinished.replace(self._path)


def _kept(rows: Mapping[str, Any]) -> dict[str, Any]:
    """What need not be measured again. Where something failed, the part is not complete, nor are conclusions final."""
    again = {row for row, value in rows.items() if row in _INCOMPLETE or _failed(value)}
    if again:
        again |= {row for row in rows if row == COMPLETE or row.startswith(CONCLUSIONS)}
    return {row: value for row, value in rows.items() if row not in again}


def failure(error: Exception) -> str:
    """An error in a line or two."""
    return f"{type(error).__name__}: {error}"


def lines(content: Mapping[str, Any]) -> Iterator[str]:
    """The table: one line a figure, with a title a part."""
    for part, rows in content["parts"].items():
        yield f"\n{part}"
        for row, value in rows.items():
            yield from _lines(row, value, 2)


def _failed(row: Any) -> bool:
    return isinstance(row, Mapping) and "error" in row


def _lines(name: str, value: Any, indent: int) -> Iterator[str]:
    title = " " * indent + str(name)
    if isinstance(value, Mapping):
        figure = {key: inner for key, inner in value.items() if not isinstance(inner, Mapping | list)}
        if figure or not value:
            yield f"{title:<{_WIDTH}} {_figure(figure)}"
        else:
            yield title
        for key in [key for key in value if key not in figure]:
            yield from _lines(key, value[key], indent + 2)
    elif not (isinstance(value, list) and len(value) > _LONG):
        yield f"{title:<{_WIDTH}} {value}"


def _figure(value: Mapping[str, Any]) -> str:
    if "low" not in value:
        return "  ".join(f"{name} {each}" for name, each in value.items())
    rest = {name: each for name, each in value.items() if name not in ("median", "low", "high", "min", "max", "first")}
    others = "".join(f"  {name} {each}" for name, each in rest.items())
    return f"{value['median']:>10.3f}  [{value['low']:.3f} .. {value['high']:.3f}]" + others
