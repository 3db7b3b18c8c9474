"""Where prepared weights are kept, and how to tell that they are whole.

    MODELS/model-owner--name-451f4fe16113-float16/    a model in the layout of diffusers, and contour.json
    MODELS/.work/model-owner--name-451f4fe16113/      downloads and conversions that have not finished
    MODELS/.locks/                                    empty files, locked by the process that prepares what they name

A folder gets its name when all of it is written, in one step. Its `contour.json` lists each file with its size and
SHA-256. A folder without one, or with a file of another size, counts as missing.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from workers.engine.config import Lora, Weights
from workers.engine.weights import is_folder
from workers.folders import replace_file

MANIFEST = "contour.json"
REVISION_DIGITS = 12  # of a commit, in the names of folders
DTYPES = ("float16", "float32", "bfloat16")  # the order in which they are looked for


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The origin of weights: a repository at a revision, or a file with its size and its time of change (ns)."""

    path: str
    revision: str | None = None
    file: str | None = None
    size: int | None = None
    mtime_ns: int | None = None


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a prepared folder."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a prepared folder; the files by their paths in it."""

    origin: Origin
    dtype: str
    files: dict[str, StoredFile]


def origin_of(weights: Weights) -> Origin:
    """Return what (located) weights would be made of now."""
    if not is_folder(weights):
        return Origin(path=weights.path, revision=weights.revision, file=weights.file)
    with suppress(OSError):
        status = Path(weights.path).stat()
        return Origin(path=weights.path, size=status.st_size, mtime_ns=status.st_mtime_ns)
    return Origin(path=weights.path)


def name_of(part: str, weights: Weights) -> str:
    """Name a part ("model", "vae", "loras.0") by what it is made of, fit for a file and for people."""
    kind = "lora" if isinstance(weights, Lora) else part
    if is_folder(weights):
        return f"{kind}-{Path(weights.path).stem}-{hashlib.sha256(weights.path.encode()).hexdigest()[:8]}"
    words = [kind, weights.path.replace("/", "--"), (weights.revision or "")[:REVISION_DIGITS]]
    if weights.file is not None:
        words.append(weights.file.removesuffix(".safetensors").replace("/", "--"))
    return "-".join(words)


def folder_in(models: Path, part: str, weights: Weights, dtype: str) -> Path:
    """Return the folder of a part in a number format. A LoRA is kept as it is."""
    return models / (name_of(part, weights) + ("" if isinstance(weights, Lora) else f"-{dtype}"))


def find(models: Path, part: str, weights: Weights, dtype: str) -> Path | None:
    """Return the prepared folder of a (located) part if it is whole: the one in `dtype`, else in another format."""
    if is_folder(weights) and not weights.path.endswith(".safetensors"):
        return None  # a folder is read where it is
    wanted = dict.fromkeys((dtype, *DTYPES))
    folders = dict.fromkeys(folder_in(models, part, weights, each) for each in wanted if each != "auto")
    return next((folder for folder in folders if is_prepared(folder, weights)), None)


def is_prepared(folder: Path, weights: Weights) -> bool:
    """Return whether a folder was made of just these weights and has all its files, by their sizes."""
    manifest = manifest_in(folder)
    return manifest is not None and _was_made_of(manifest.origin, weights) and not any(damages(folder, manifest))


def _was_made_of(origin: Origin, weights: Weights) -> bool:
    now = origin_of(weights)
    gone = now.size is None and now == Origin(path=origin.path)  # the original was deleted, so it has not changed
    return now == origin or gone


def manifest_in(folder: Path) -> Manifest | None:
    """Read a folder's manifest; None if there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def damages(folder: Path, manifest: Manifest, *, read: bool = False) -> Iterator[str]:
    """Say what is wrong with the files of a prepared folder: by their sizes, and if `read` by their SHA-256."""
    for name, stored in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"
            continue
        if size != stored.size:
            yield f"{path} has {size} bytes instead of {stored.size}"
        elif read and sha256_of(path) != stored.sha256:
            yield f"{path} has changed since it was written: its SHA-256 is not the one in {MANIFEST}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, origin: Origin, dtype: str) -> None:
    """Describe a folder that is complete. All of it is on the disk when this returns."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        sync(path)
    files = {
        str(path.relative_to(folder)): StoredFile(size=path.stat().st_size, sha256=sha256_of(path)) for path in paths
    }
    manifest = Manifest(origin=origin, dtype=dtype, files=files)
    replace_file(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def sync(path: Path) -> None:
    """Have a file or folder on the disk before anything that depends on it, in case of a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
