"""`python -m app doctor`: what this machine has, what it lacks to serve a configuration, and what to do about it.

Exit codes: 0 it can serve; 1 it cannot; 2 the command is wrong.
"""

import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module

from app.checks.finding import Finding, Level, NotUsableError, Subject
from workers.console import Parser, add_configuration

# Each check by the module in app.checks that has it; one whose module cannot be imported says so.
CHECKS = {
    "configuration": "model",
    "python": "python",
    "devices": "devices",
    "engine": "devices",
    "weights": "model",
    "quantisation": "model",
    "onnx": "model",
    "openvino": "model",
    "port": "machine",
    "limits": "machine",
    "memory": "machine",
    "disk": "machine",
}
COLOURS = {Level.OK: 32, Level.WARNING: 33, Level.MISSING: 31}  # of ECMA-48
LEVEL_COLUMN, CHECK_COLUMN, WIDTH = 9, 17, 120


def run(arguments: Sequence[str]) -> int:
    """Run all checks and print the findings. Returns the exit code."""
    options = _parser().parse_args(arguments)
    findings = []
    for finding in examine(Subject(options.config)):
        findings.append(finding)
        if not options.json:
            print(lines(finding, coloured=_coloured()), flush=True)
    serves = all(finding.level is not Level.MISSING for finding in findings)
    if options.json:
        report = {"can_serve": serves, "findings": [dataclasses.asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=2))
    else:
        print(f"\n{options.config} can{'' if serves else 'not'} be served here.")
    return int(not serves)


def _parser() -> Parser:
    parser = Parser(
        "app",
        "doctor",
        description="Check what this machine has and lacks to serve a configuration, and say what to do about it.",
        epilog="exit codes: 0 it can serve, 1 it cannot, 2 the command is wrong",
    )
    add_configuration(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def examine(subject: Subject, checks: Iterable[str] = CHECKS) -> Iterator[Finding]:
    """Run checks. One that fails itself says so, and the others go on."""
    for name in checks:
        try:
            yield from getattr(import_module(f"app.checks.{CHECKS[name]}"), name)(subject)
        except NotUsableError as error:
            if name == "configuration":
                yield Finding(name, Level.MISSING, str(error), "correct it; configs/ has examples")
        except ImportError as error:  # the check of packages says what to do
            yield Finding(name, Level.WARNING, f"not checked: {error}")
        except Exception as error:  # noqa: BLE001 - the other checks still run
            text = f"internal error in this check: {type(error).__name__}: {error}"
            yield Finding(name, Level.WARNING, text, "see whether another finding explains it")


def lines(finding: Finding, *, coloured: bool) -> str:
    level = f"{finding.level:<{LEVEL_COLUMN}}"
    if coloured:
        level = f"\x1b[{COLOURS[finding.level]}m{level}\x1b[0m"
    margin = " " * (LEVEL_COLUMN + CHECK_COLUMN)
    text = _wrapped(finding.text, margin)
    remedy = f"\n{margin}-> {finding.remedy}" if finding.remedy else ""
    return f"{level}{finding.check:<{CHECK_COLUMN}}{text}{remedy}"


def _wrapped(text: str, margin: str) -> str:
    """Wrap text in a column without breaking words, so that paths can be copied."""
    lines = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, WIDTH - len(margin), break_long_words=False, break_on_hyphens=False)
    ]
    return f"\n{margin}".join(lines)


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
