"""Python and the packages that serving needs, against what is tested together."""

import platform
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from app.checks.finding import Finding, Level, Subject
from workers.console import command

ROOT = Path(__file__).parents[2]
OLDEST = (3, 11)
PINS = "constraints.txt"
INSTALL = f"make install, or: {command('-m', 'pip', 'install', '-c', PINS, '-e', '.')}"
DIGITS_AND_ON = re.compile(r"[\s<>=!~;\[(].*")  # what follows a package's name in a requirement


def python(subject: Subject) -> Iterator[Finding]:
    """Report differences, or one line each if there are none."""
    yield _python()
    yield from packages(ROOT)


def _python() -> Finding:
    text = f"Python {platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < OLDEST:
        return Finding("python", Level.MISSING, text, "install Python 3.11 or newer, then: make install PYTHON=...")
    if sys.platform != "linux":
        return Finding("python", Level.MISSING, text, "Contour needs Linux (memfd, prctl and /proc)")
    return Finding("python", Level.OK, text)


def packages(root: Path) -> Iterator[Finding]:
    """The packages that a project's folder names, against those that are installed."""
    names, pins = _needed(root), _pins(root)
    if not names:
        yield Finding("packages", Level.OK, f"{root} has no pyproject.toml that lists them")
        return
    missing = [name for name in names if _version(name) is None]
    if missing:
        yield Finding("packages", Level.MISSING, f"not installed: {', '.join(missing)}", INSTALL)
    others = {name: found for name in names if (found := _version(name)) and found != pins.get(name, found)}
    if others:
        listed = ", ".join(f"{name} {found} instead of {pins[name]}" for name, found in others.items())
        yield Finding("packages", Level.WARNING, f"versions other than those tested together: {listed}", INSTALL)
    if not missing and not others:
        yield Finding(
            "packages", Level.OK, f"all {len(names)} that serving needs are installed, in the tested versions"
        )


def _needed(root: Path) -> list[str]:
    """The packages that serving needs; empty where nothing says which, as in an image, which has them by hash."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = project["dependencies"]
    except (OSError, KeyError):
        return []
    return [_normal(DIGITS_AND_ON.sub("", text)) for text in wanted]


def _pins(root: Path) -> dict[str, str]:
    try:
        lines = (root / PINS).read_text().splitlines()
    except OSError:
        return {}
    pinned = (line.partition("==") for line in lines if not line.startswith("#"))
    return {_normal(name): version.strip() for name, _, version in pinned}


def _version(name: str) -> str | None:
    """The installed version, without a local part such as +cpu."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
