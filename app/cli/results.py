"""The output folder. One command at a time writes there.

Each image has its parameters in its metadata (`workers.engine.metadata`). Existing results, and the seed of an
interrupted command, are read from there, so no other file is needed.
"""

import fcntl
import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from app.cli.plan import SUFFIXES, CommandError
from app.params import OutputOptions, RequestFields, engine_options
from app.settings import Settings
from app.startup import about
from workers.engine.contract import Format, Task
from workers.engine.metadata import (
    AUTOMATIC,
    EXIF_IFD,
    KEYWORD,
    THRESHOLDS,
    UNICODE,
    USER_COMMENT,
    VERSION,
    Metadata,
    Provenance,
    fitted,
    holds,
)
from workers.folders import leftovers

_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
_OURS = re.compile(rf", {VERSION}: Contour [^,]*$")
_SEED = re.compile(r", Seed: (-?\d+)")
_THRESHOLDS = re.compile(rf", Threshold A: (\d+), Threshold B: (\d+)(?=.*, {THRESHOLDS}: {AUTOMATIC})")
_OF_ONE_IMAGE = re.compile(rf", (Seed: -?\d+|Size: \d+x\d+|Input hash: [0-9a-f]+)|{_THRESHOLDS.pattern}")


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """An image's metadata without the version of the program: the text, and the size (width, height)."""

    text: str
    size: tuple[int, int]

    @property
    def seed(self) -> int:
        found = _SEED.search(_last_line(self.text))
        assert found is not None
        return int(found[1])

    @property
    def thresholds(self) -> tuple[int, int] | None:
        """The edge detector's thresholds (low, high) if the image decided them."""
        found = _THRESHOLDS.search(_last_line(self.text))
        return (int(found[1]), int(found[2])) if found else None


def read(path: Path) -> ImageMetadata | None:
    """Read the metadata of an image that this program has made and no other has changed, else None."""
    try:
        file = path.read_bytes()
        with Image.open(BytesIO(file), formats=("PNG", "JPEG", "WEBP")) as image:
            text = str(image.info.get(KEYWORD, "")) if image.format == "PNG" else _comment(image)
            size = image.size
    except _UNREADABLE:
        return None
    if not (_OURS.search(text) and _SEED.search(_last_line(text)) and holds(file, text)):
        return None
    return ImageMetadata(without_version(text), size)


def _comment(image: Image.Image) -> str:
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    return comment.removeprefix(UNICODE).decode("utf-16-be", "replace") if isinstance(comment, bytes) else ""


def without_version(text: str) -> str:
    """The text as another version of this program would write it."""
    return _OURS.sub("", text)


class SharedParams:
    """The parameters that all images of a command share: everything but the input and the seed."""

    def __init__(self, settings: Settings, fields: RequestFields, file_format: Format) -> None:
        self._text = fields.text
        self._format = file_format
        self._options = engine_options(fields, OutputOptions(file_format), "full")
        self._metadata = Metadata(settings.engine, about(settings))

    def task(self, image: bytes, seed: int) -> Task:
        return Task(image, self._text, seed, self._options)

    def made(self, found: ImageMetadata, image: bytes, seed: int) -> bool:
        """Whether an image was made by this recipe from this input and seed."""
        return found.text == self._infotext(self.task(image, seed), found.size, found.thresholds)

    def former_seed(self, folder: Path) -> int | None:
        """The seed of the newest image in a folder that was made by this recipe, from any input."""
        wanted = _request(self._infotext(self.task(b"", 0), (0, 0)))
        found = map(read, _newest_first(folder, SUFFIXES[self._format]))
        return next((each.seed for each in found if each is not None and _request(each.text) == wanted), None)

    def _infotext(self, task: Task, size: tuple[int, int], thresholds: tuple[int, int] | None = None) -> str:
        text = self._metadata.infotext(replace(Provenance.of(task), thresholds=thresholds), size)
        return without_version(fitted(text) if self._format == "jpeg" else text)


def _newest_first(folder: Path, suffix: str) -> Iterable[Path]:
    entries = (entry for entry in os.scandir(folder) if entry.name.endswith(suffix) and entry.is_file())
    files = [(entry.stat().st_mtime, entry.path) for entry in entries]
    return (Path(path) for _, path in sorted(files, reverse=True))


def _request(text: str) -> str:
    line = _last_line(text)
    return text.removesuffix(line) + _OF_ONE_IMAGE.sub("", line)


def _last_line(text: str) -> str:
    return text.rpartition("\n")[2]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder and lock it against our other commands. Raises CommandError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CommandError(f"{folder} cannot be written to: {error.strerror or error}") from None
    try:
        _lock(folder, descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(f"{folder}: another command is writing images there; wait until it has finished") from None
    except OSError:
        return  # a file system without locks: two commands at once would only do the same work twice


def tidy(folder: Path, names: Collection[str]) -> None:
    """Remove unfinished files of killed commands."""
    for path in list(leftovers(folder, names)):
        path.unlink(missing_ok=True)
