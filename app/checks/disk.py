"""The folders of the cache, the weights and temporary files: whether they are writable and have room."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app.checks.finding import GIB, Finding, Level, Subject, size
from workers.config import home_folder
from workers.engine.weights import absent
from workers.folders import refuse_if_shared

CACHE_BYTES = GIB  # what compilers make of one model takes less; a guess on the safe side


def check(subject: Subject) -> Iterator[Finding]:
    """Tries to write where the service would, and leaves nothing there."""
    workers = subject.settings.workers
    yield _cache(workers.cache)
    yield _models(subject, workers.models)
    yield _temporary(workers.cache)


def _cache(given: str) -> Finding:
    remedy = "make it writable, or choose another: CONTOUR_WORKERS__CACHE=FOLDER"
    folder = home_folder(given)
    if folder is None:
        return Finding("cache", Level.MISSING, f"workers.cache is {given}, but this user has no home", remedy)
    if flaw := unwritable(folder) or shared(folder):
        return Finding("cache", Level.MISSING, f"workers.cache: {folder} cannot be used: {flaw}", remedy)
    free = shutil.disk_usage(existing(folder)).free
    text = f"{folder} can be written to, {size(free)} free"
    if free < CACHE_BYTES:
        return Finding("cache", Level.WARNING, text, "make room: what compilers make is kept there")
    return Finding("cache", Level.OK, text)


def shared(folder: Path) -> str:
    """The reason if other users can write to the cache, else empty."""
    try:
        if folder.exists():  # one that is not there yet is made for us alone
            refuse_if_shared(folder)
    except OSError as error:
        return str(error)
    return ""


def _models(subject: Subject, given: str) -> Finding:
    """The server only reads this folder; `workers.fetch` writes there."""
    folder = home_folder(given)
    if folder is None:
        return Finding("models", Level.OK, f"workers.models is {given}; this user has no home, so none are there")
    text = f"{folder}, {size(shutil.disk_usage(existing(folder)).free)} free"
    if absent(subject.settings.engine) and (flaw := unwritable(folder)):
        remedy = "choose another: CONTOUR_WORKERS__MODELS=FOLDER, for workers.fetch as well"
        return Finding("models", Level.WARNING, f"{text}, but weights cannot be put there: {flaw}", remedy)
    return Finding("models", Level.OK, text)


def _temporary(cache: str) -> Finding:
    try:
        place = tempfile.gettempdir()
    except FileNotFoundError:  # as `workers.folders` has it
        place = f"a folder in {cache}, as no usual place can be written to"
    return Finding("temporary files", Level.OK, f"go to {place}")


def unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder, or none made there; empty if it can."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def existing(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
