"""How every process of the service logs: lines on standard error.

Whatever a client sends, it cannot write a line there: what does not print is escaped, and tracebacks are indented.
"""

import logging

INDENT = "    "


def configure(level: str) -> None:
    """Set up logging in this process; `level` is a name such as "info"."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(capture=True)
    # Its news is ours as well, and said once.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def escaped(text: str) -> str:
    """Text without characters that move the cursor or end a line: they are written as in a string of Python."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class _Formatter(logging.Formatter):
    """A record begins a line at its very start; all that follows of it is indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escaped(super().formatMessage(record).rstrip("\n"))

    def formatException(self, ei: object) -> str:  # noqa: N802
        return _indented(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join(INDENT + escaped(line) for line in text.split("\n"))
