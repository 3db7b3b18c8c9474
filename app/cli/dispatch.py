"""Which command is meant. Only that one's modules are imported: the server's port is bound as soon as before."""

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

# The module of each, whose `run(arguments)` returns the exit code.
COMMANDS = {"serve": "app.command", "generate": "app.cli.generate", "doctor": "app.cli.doctor"}
WRONG, INTERRUPTED, ENDED = 2, 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes


def dispatch(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names, or serve; the exit code."""
    name, rest = _split(arguments)
    if name not in COMMANDS:
        return _unknown(name)
    if name == "serve":
        return _run(name, rest)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ENDED))  # it has not done what it was asked for
    try:
        return _run(name, rest)
    except KeyboardInterrupt:
        return INTERRUPTED


def _split(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    if not arguments or arguments[0].startswith("-"):
        return "serve", arguments
    return arguments[0], arguments[1:]


def _run(name: str, arguments: Sequence[str]) -> int:
    code: int = import_module(COMMANDS[name]).run(arguments)
    return code


def _unknown(name: str) -> int:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    print(f"python -m app: there is no command {name!r}{meant} Commands: {', '.join(COMMANDS)}", file=sys.stderr)
    return WRONG
