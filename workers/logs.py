"""Logging of every process of the service: on standard error, for people on a terminal and as JSON elsewhere.

Nothing that a client sends can forge a line: what does not print is escaped, and tracebacks are indented or part of a
JSON string.
"""

import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

LogFormat: TypeAlias = Literal["human", "json"]

INDENT = "    "
CHATTY = ("PIL", "asyncio")
"""Libraries that write a line for each chunk of a file, or the like, at level DEBUG."""


class Record(ABC):
    """A message with data: people read its `str`, and JSON has its `fields` as well. Log the object itself."""

    __slots__ = ()

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Any]:
        """The data, by name."""


def suitable(wanted: LogFormat | Literal["auto"]) -> LogFormat:
    """Return the format that is wanted; for "auto", the one that suits standard error."""
    if wanted == "auto":
        return "human" if sys.stderr.isatty() else "json"
    return wanted


def configure(level: str, log_format: LogFormat = "human") -> None:
    """Set up logging in this process; `level` is a name such as "info"."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATTERS[log_format]())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLogger().level))
    # The service logs its own start and end.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 worker", "2 workers"."""
    return f"{number} {noun}{'s' * (number != 1)}"


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log how many seconds the context took."""
    began = time.monotonic()
    yield
    logging.getLogger("workers.engine").info("%s in %.2f s", what, time.monotonic() - began)


def escaped(text: str) -> str:
    """Write characters that move the cursor or end a line as a string of Python has them."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class _HumanFormatter(logging.Formatter):
    """A record begins at the start of a line; its further lines are indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escaped(super().formatMessage(record).rstrip("\n"))

    def formatException(self, ei: object) -> str:  # noqa: N802
        return _indented(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


class _JsonFormatter(logging.Formatter):
    """A record is one object on one line, in ASCII, so that no reader takes a character in it for the end of a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if isinstance(record.msg, Record):
            entry |= record.msg.fields
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        return _encode(entry)


_encode = json.JSONEncoder(default=str).encode  # json.dumps makes one anew for each line

_FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {"human": _HumanFormatter, "json": _JsonFormatter}


def _indented(text: str) -> str:
    return "\n".join(INDENT + escaped(line) for line in text.split("\n"))
