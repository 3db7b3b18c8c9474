"""Where prepared weights lie, and what says that they are whole.

    MODELS/model-owner--name-451f4fe16113-float16/    a model as diffusers lays it out, and contour.json
    MODELS/.work/model-owner--name-451f4fe16113/      what is on its way: nothing reads it but the command that makes it
    MODELS/.locks/                                    empty files; who holds one may work on what it names

A folder gets its name when all of it is written, in one step. `contour.json` in it names each file with its size and
SHA-256; a folder without one, or with a file of another size, counts as not there.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workers.engine.config import Lora, Weights
from workers.engine.weights import is_folder
from workers.folders import leftovers, replace_file

MANIFEST = "contour.json"
REVISION_DIGITS = 12  # of a commit, in names: git's own way to shorten one is shorter
DTYPES = ("float16", "float32", "bfloat16")  # which of several that are there is taken, unless one is asked for


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What weights were made of: a repository at a revision, or a file with its size and its time of change (ns)."""

    path: str
    revision: str | None = None
    file: str | None = None
    size: int | None = None
    mtime_ns: int | None = None


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a prepared folder."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a prepared folder holds; the files by their paths in it."""

    origin: Origin
    dtype: str
    files: dict[str, Stored]


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of a prepared folder that is not what it was."""

    file: str
    reason: str


def origin_of(weights: Weights) -> Origin:
    """What (located) weights would be made of now."""
    if not is_folder(weights):
        return Origin(path=weights.path, revision=weights.revision, file=weights.file)
    try:
        status = Path(weights.path).stat()
    except OSError:
        return Origin(path=weights.path)
    return Origin(path=weights.path, size=status.st_size, mtime_ns=status.st_mtime_ns)


def name_of(part: str, weights: Weights) -> str:
    """A name for a part ("model", "controlnet", "loras.0") by what it is made of, fit for a file and for people."""
    kind = "lora" if isinstance(weights, Lora) else part
    if is_folder(weights):
        return f"{kind}-{Path(weights.path).stem}-{hashlib.sha256(weights.path.encode()).hexdigest()[:8]}"
    words = [kind, weights.path.replace("/", "--"), (weights.revision or "")[:REVISION_DIGITS]]
    if weights.file is not None:
        words.append(weights.file.removesuffix(".safetensors").replace("/", "--"))
    return "-".join(words)


def folder_in(models: Path, part: str, weights: Weights, dtype: str) -> Path:
    """Where a part lies when it is prepared in a number format; a LoRA is kept as it is."""
    return models / (name_of(part, weights) + ("" if isinstance(weights, Lora) else f"-{dtype}"))


def find(models: Path, part: str, weights: Weights, dtype: str) -> Path | None:
    """The prepared folder of a (located) part, if it is there and whole: that with `dtype` goes before others."""
    if is_folder(weights) and not weights.path.endswith(".safetensors"):
        return None  # a folder is read where it is
    wanted = dict.fromkeys((dtype, *DTYPES))
    folders = dict.fromkeys(folder_in(models, part, weights, each) for each in wanted if each != "auto")
    return next((folder for folder in folders if is_prepared(folder, weights)), None)


def is_prepared(folder: Path, weights: Weights) -> bool:
    """Whether a folder was made of just these weights, and has all its files by their sizes."""
    manifest = manifest_in(folder)
    return manifest is not None and _fits(manifest.origin, weights) and not any(_missing(folder, manifest))


def _fits(made_of: Origin, weights: Weights) -> bool:
    now = origin_of(weights)
    if now == made_of:
        return True
    return now.size is None and now == Origin(path=made_of.path)  # the original is gone: nothing says it has changed


def manifest_in(folder: Path) -> Manifest | None:
    """What a folder's manifest says; None when there is none that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None


def _missing(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    for name, stored in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            yield Damage(name, error.strerror or str(error))
        else:
            if size != stored.size:
                yield Damage(name, f"has {size} bytes instead of {stored.size}")


def damages(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    """Read all of a folder and compare it with its manifest."""
    missing = list(_missing(folder, manifest))
    yield from missing
    for name, stored in manifest.files.items():
        if name not in {damage.file for damage in missing} and sha256_of(folder / name) != stored.sha256:
            yield Damage(name, "has another content than it had, by its SHA-256")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, origin: Origin, dtype: str) -> None:
    """Describe a folder that is complete, with all of it on the disk when this returns."""
    for path in list(leftovers(folder, {MANIFEST})):  # of an earlier try that was killed
        path.unlink()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {str(path.relative_to(folder)): Stored(size=path.stat().st_size, sha256=_settled(path)) for path in paths}
    manifest = Manifest(origin=origin, dtype=dtype, files=files)
    replace_file(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def _settled(path: Path) -> str:
    sync(path)
    return sha256_of(path)


def sync(path: Path) -> None:
    """Have a file or folder on the disk before anything else happens: it counts on it after a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
