"""Shared by all commands of the project: their names in messages, their flags, their exit codes."""

import argparse
import difflib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

WRONG, INTERRUPTED, UNREAD = 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE  # exit codes


def command(*arguments: object) -> str:
    """Return a command line for Python as a person here would type it: `.venv/bin/python -m workers.fetch my.yaml`."""
    return shlex.join([_interpreter(), *map(str, arguments)])


def _interpreter() -> str:
    """Return the running interpreter: its name if the shell finds it by that, else its path, relative if possible."""
    python = Path(sys.executable or "python")
    for name in ("python", "python3", python.name):
        # Compared by folder: the python of a virtual environment is a link to the system's, but not the same.
        if (found := shutil.which(name)) and Path(found).parent == python.parent and python.samefile(found):
            return name
    with suppress(OSError, ValueError):  # the current folder was deleted, or is another
        relative = python.relative_to(Path.cwd())
        return str(relative) if len(relative.parts) > 1 else f"./{relative}"
    return str(python)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests the flag that a misspelt one was meant to be.

    `module` is run with -m; `words` are those before the flags.
    """

    def __init__(self, module: str, *words: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=command("-m", module, *words), description=description, epilog=epilog)

    def parse_args(  # type: ignore[override]  # every caller is content with a Namespace
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse as argparse does. If something is wrong, print one line and exit with code 2."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"{self._about(unknown[0])} See --help.")
        if problem := getattr(parsed, "config_problem", ""):  # told last: it may be the value of an unknown option
            self.error(problem)
        return parsed

    def _about(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} is an unexpected argument."
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(word.partition("=")[0], options, n=1)
        return f"Unknown option {word!r}{f'; did you mean {near[0]}?' if near else '.'}"


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add `config`, the configuration file, as an argument and as a flag."""
    once: dict[str, Any] = {"type": Path, "action": _Once, "default": Path("configs/demo.yaml"), "metavar": "CONFIG"}
    parser.add_argument("config", nargs="?", help="configuration file in YAML (default: configs/demo.yaml)", **once)
    parser.add_argument("--config", help="the configuration file, as a flag", **once)


class _Once(argparse.Action):
    """Stores a value that must not be given twice."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        if values is self.default:  # which argparse sets where an argument is not given
            return
        given = f"{self.dest}_given"
        if getattr(namespace, given, values) != values:
            text = f"Two configurations were given ({getattr(namespace, given)} and {values}); give one."
            setattr(namespace, f"{self.dest}_problem", text)
        elif values == Path():
            setattr(namespace, f"{self.dest}_problem", "The configuration's name is empty; give a file, see configs/.")
        setattr(namespace, given, values)
        setattr(namespace, self.dest, values)


def leave(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command with the arguments of this process, and exit with its code.

    It exits without a traceback on Ctrl+C (130), and when nobody reads its output any more (141), as under `| head`.
    """
    code: int | str | None
    try:
        code = main(sys.argv[1:])
    except SystemExit as exit_:  # argparse's
        code = exit_.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = UNREAD
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
    sys.exit(UNREAD if _unread() else code)


def _unread() -> bool:
    """Flush what was printed, and return whether nobody reads it. Python must not try that again at its exit."""
    unread = False
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed before the start
        try:
            stream.flush()
        except BrokenPipeError:
            unread = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return unread
