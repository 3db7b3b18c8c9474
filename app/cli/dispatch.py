"""Choose the command by the first argument. Only its modules are imported, so that the server starts fast."""

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from app import __version__
from workers.console import WRONG, command

# The module of each, whose `run(arguments)` returns the exit code.
COMMANDS = {
    "serve": "app.cli.serve",
    "generate": "app.cli.generate",
    "doctor": "app.cli.doctor",
    "config": "app.cli.config",
}
ENDED = 128 + signal.SIGTERM  # an exit code
CONFIGURATION = (".yaml", ".yml")


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names, or serve; the exit code."""
    name, rest = _split(arguments)
    if name in ("--version", "-V"):
        print(f"Contour {__version__}")
        return 0
    if name not in COMMANDS:
        return _unknown(name)
    if name != "serve":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(ENDED))  # it has not done what it was asked for
    code: int = import_module(COMMANDS[name]).run(rest)
    return code


def _split(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The command and its arguments; flags or a configuration without one are for the server."""
    first = arguments[0] if arguments else ""
    if first in ("--version", "-V"):
        return first, ()
    if not first or first.startswith("-") or first.endswith(CONFIGURATION) or "/" in first:
        return "serve", arguments
    return first, arguments[1:]


def _unknown(name: str) -> int:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    print(f"There is no command {name!r}{meant} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
    print(f"usage: {command('-m', 'app')} [COMMAND] [--help]", file=sys.stderr)
    return WRONG
