"""`python -m app generate` and `doctor` as processes, for tests."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.service.running import PATIENCE, ROOT, surroundings

ECHO = ("--config", "configs/echo.yaml")
PROMPT = "a red heart"


def run(*arguments: object, **overrides: object) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end. Overrides are settings, as for a Service."""
    return subprocess.run(
        [sys.executable, "-m", "app", *map(str, arguments)],
        cwd=ROOT,
        env=surroundings(**overrides),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE,
        check=False,
    )


@contextmanager
def running(*arguments: object, **overrides: object) -> "Iterator[subprocess.Popen[str]]":
    """A command while it runs, in a process group of its own; killed in the end, if need be."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *map(str, arguments)],
        cwd=ROOT,
        env=surroundings(**overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def generate(image: Path, *arguments: object, **overrides: object) -> "subprocess.CompletedProcess[str]":
    """Make images of an image or a folder, by echo."""
    return run("generate", image, PROMPT, *ECHO, *arguments, **{"WORKERS__CPU_WORKERS": 1} | overrides)


def doctor(*arguments: object, **overrides: object) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The exit code, and the findings of each check."""
    done = run("doctor", "--json", *arguments, **overrides)
    assert done.stderr == "", done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["can_serve"] == (done.returncode == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for finding in told["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return done.returncode, found


def lines_of(process: "subprocess.CompletedProcess[str]") -> list[str]:
    """What it named on its standard output."""
    return process.stdout.splitlines()
