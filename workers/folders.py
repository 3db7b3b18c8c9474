"""Where the service writes: one folder, so that all the rest of the file system may be read-only."""

import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path


def prepare(cache: str) -> Path:
    """Make the folder that compilers and, where there is no other place for them, temporary files are kept in.

    Raises OSError or RuntimeError, when it cannot be made or written to.
    """
    folder = Path(cache).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # torch wants one as soon as its compiler is imported
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = None  # it is looked for again
    return folder


def replace_file(path: Path, content: bytes, before: Callable[[], None] = lambda: None) -> Path:
    """Write a file whole or not at all; its path. `before` is called when all of it is on the disk, but not yet there.

    Who is killed meanwhile may leave a file with a name as `leftovers` finds it.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        before()
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return path


def leftovers(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """What is left of files of these names, of writers that were killed."""
    for path in folder.iterdir():
        found = re.fullmatch(r"\.(.+)\.\d+", path.name)
        if found and found[1] in names:
            yield path
