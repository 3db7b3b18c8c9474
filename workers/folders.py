"""Where the service writes: one folder, so that all the rest of the file system may be read-only."""

import os
import tempfile
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


def replace_file(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all; its path."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return path
