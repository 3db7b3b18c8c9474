"""What was made of what, in a file beside the pictures of a folder: so that nothing is made twice, and nothing lost.

A line is written when a picture is on the disk, and before it has its name: so a file whose hash is in it was made
here, and one that was changed, or came from elsewhere, was not. A line that was cut off is passed over.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from app.cli.errors import CommandError
from workers.engine.config import EngineConfig
from workers.engine.contract import Options
from workers.folders import leftovers

NAME = "contour.jsonl"
# Keys of `engine` that change how a picture is made, and not what it looks like.
MEANS = ("slots", "speed", "faults", "onnx", "runtime")


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what a picture looks like; `picture` is the SHA-256 of the input, `engine` a digest."""

    prompt: str
    seed: int
    options: Options
    picture: str
    engine: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that was made: its name and SHA-256, of which picture, and how. `first_seed` is that of its command."""

    file: str
    sha256: str
    source: str
    first_seed: int
    recipe: Recipe


class Ledger:
    """The entries of a folder; who holds it is the only one to write there."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        """Take a folder, made if need be, for files of these names. Raises CommandError."""
        self._path = folder / NAME
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b", buffering=0)
        except OSError as error:
            raise CommandError(f"{folder} cannot be written to: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise CommandError(f"{folder}: another command makes pictures there; wait for it") from None
        for path in leftovers(folder, names):
            path.unlink(missing_ok=True)
        self._entries: list[Entry] = []
        self._by_file: dict[str, list[Entry]] = {}
        for entry in self._read():
            self._note(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> list[Entry]:
        self._file.seek(0)
        data = self._file.read()
        if data and not data.endswith(b"\n"):
            self._file.write(b"\n")  # or what comes next would be part of what was cut off
        return [entry for line in data.splitlines() if (entry := _entry(line)) is not None]

    def seed(self, prompt: str, options: Options, engine: str) -> int | None:
        """The seed with which the same was last asked for here."""
        for entry in reversed(self._entries):
            if (entry.recipe.prompt, entry.recipe.options, entry.recipe.engine) == (prompt, options, engine):
                return entry.first_seed
        return None

    def has(self, target: Path, recipe: Recipe) -> bool:
        """Whether a file is there that was made just so."""
        return any(entry.recipe == recipe for entry in self._of(target))

    def owns(self, target: Path) -> bool:
        """Whether a file is as it was made here."""
        return bool(self._of(target))

    def enter(self, entry: Entry) -> None:
        """Write an entry; from any thread."""
        with self._lock:
            self._file.write(msgspec.json.encode(entry) + b"\n")
            os.fsync(self._file.fileno())
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._by_file.setdefault(entry.file, []).append(entry)

    def _of(self, target: Path) -> list[Entry]:
        entries = self._by_file.get(named(target), [])
        found = digest(target.read_bytes()) if entries and target.is_file() else None
        return [entry for entry in entries if entry.sha256 == found]


def _entry(line: bytes) -> Entry | None:
    try:
        return msgspec.json.decode(line, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def named(path: Path) -> str:
    """A file's name as it can be written: names need not be text."""
    return os.fsencode(path.name).decode(errors="backslashreplace")


def digest(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_of(engine: EngineConfig) -> str:
    """A digest of what decides what a configuration's pictures look like."""
    means = {name: getattr(EngineConfig(), name) for name in MEANS}
    return digest(msgspec.json.encode(replace(engine, **means), order="deterministic"))
