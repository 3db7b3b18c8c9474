"""The only folder that the service writes to; the rest of the file system may be read-only."""

import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

PRIVATE, NOT_SHARED = 0o700, 0o755  # modes of folders
OTHERS_WRITE = 0o022
ROOT = 0
# Compilers keep their work where these variables say, else in these folders of the cache (see `workers.worker_main`).
COMPILER_CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "ORT_TENSORRT_CACHE_PATH": "tensorrt",
    "OPENVINO_CACHE_PATH": "openvino",
}


def prepare(cache: str) -> Path:
    """Make the folder for the compilers' work, and for temporary files where there is no other place for them.

    Raises OSError or RuntimeError when it cannot be made or written to, or when others can write to it.
    """
    folder = Path(cache).expanduser().absolute()
    for each in (folder, *(compiler_cache(variable, folder) for variable in COMPILER_CACHES)):
        make(each, PRIVATE)
        refuse_if_shared(each)
    with tempfile.TemporaryFile(dir=folder):
        pass
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # torch wants one as soon as its compiler is imported
        temporary = folder / "tmp"
        make(temporary, PRIVATE)
        os.environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = None  # so that tempfile looks again
    return folder


def compiler_cache(variable: str, cache: Path) -> Path:
    """The folder where a compiler keeps its work."""
    return Path(os.environ.get(variable) or cache / COMPILER_CACHES[variable])


def make(folder: Path, mode: int = NOT_SHARED) -> None:
    """Make a folder and its missing parents. Others cannot write to them, whatever the umask."""
    if folder.exists():
        return
    make(folder.parent)
    folder.mkdir(mode, exist_ok=True)


def existing(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def refuse_if_shared(folder: Path) -> None:
    """Raise PermissionError for a folder that other users can write to: code in it is executed."""
    status = folder.stat()
    if status.st_uid not in {os.geteuid(), ROOT}:
        reason = (
            f"{folder} belongs to user {status.st_uid}: choose a folder of your own, because code in it is executed"
        )
    elif status.st_mode & OTHERS_WRITE:
        reason = f"other users can write to {folder}, and code in it is executed: chmod go-w {shlex.quote(str(folder))}"
    else:
        return
    raise PermissionError(reason)


def no_follow(path: str, flags: int) -> int:
    """Open a file whose name others may know (an opener for `open`); fail where they have put a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def replace_file(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, and return its path.

    A process that is killed meanwhile may leave a file, which `leftovers` finds.
    """
    # An unpredictable name of a new file, so that no link that another user put there is followed.
    new = path.with_name(f".{path.name}.{secrets.randbelow(10**9)}")
    with new.open("xb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    return path


def leftovers(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """Yield the unfinished files of these names that killed writers left."""
    for path in folder.iterdir():
        found = re.fullmatch(r"\.(.+)\.\d+", path.name)
        if found and found[1] in names:
            yield path
