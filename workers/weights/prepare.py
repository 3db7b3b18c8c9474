"""Prepares one part of a model for the engine: fetched, checked, converted, published.

All work is done in a private folder, under a lock. Complete downloads stay there until the part is published, so a
command that was killed continues from there.
"""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from workers.engine.config import Lora, Weights
from workers.engine.model_checks import Network, UnsupportedModelError, check_config
from workers.engine.weights import COMPONENTS, is_folder, is_single_file
from workers.folders import make, no_follow
from workers.weights.checkpoints import SD15, SD15_REPOSITORY, convert, is_ready, networks_in, read, shapes_in, write
from workers.weights.messages import FetchError, say
from workers.weights.repository import HALF, Repository, in_folder, open_repository, texts_of, weights_of
from workers.weights.store import find, folder_in, is_prepared, name_of, origin_of, sync, write_manifest

_GIB = 2**30
_PRIVATE, _NOT_PRIVATE = 0o700, 0o077  # modes
_CHECKED: Mapping[str, Mapping[str, Network]] = {
    "model": {"unet/config.json": "UNet", "vae/config.json": "VAE"},
    "controlnet": {"config.json": "ControlNet"},
    "vae": {"config.json": "VAE"},
}


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """The flags of the command, see `workers.fetch`."""

    models: Path
    dtype: str
    source: Path | None = None
    like: Path | None = None
    again: bool = False
    keep: bool = False
    patience: float = 60.0


def prepare(name: str, weights: Weights, options: FetchOptions) -> Path:
    """Prepare a part ("model", "vae", "loras.0") unless it is there; its folder. Raises FetchError, OSError."""
    final = folder_in(options.models, name, weights, options.dtype)
    if not options.again and is_prepared(final, weights):
        return final
    make(options.models)
    known = name_of(name, weights)
    with _locked(options.models, known):
        if options.again or not is_prepared(final, weights):  # another process may just have made it
            _Preparation(name, weights, options, options.models / ".work" / known).run(final)
    return final


@contextmanager
def _locked(models: Path, name: str) -> Iterator[None]:
    """Keep other processes from the same work. The kernel unlocks it when this one ends, however it ends."""
    path = models / ".locks" / name
    path.parent.mkdir(exist_ok=True)
    with open(path, "a", opener=no_follow) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is preparing {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class _Preparation:
    """A part in the making. In `work`: `originals` as they were downloaded, and `scratch` with what is made of them."""

    name: str
    weights: Weights
    options: FetchOptions
    work: Path

    @property
    def _originals(self) -> Path:
        return self.work / "originals"

    @property
    def _ready(self) -> Path:
        return self.work / "scratch" / "ready"

    def run(self, final: Path) -> None:
        """Make the folder `final`."""
        origin = origin_of(self.weights)  # as it is before it is read
        if self.options.again or not _is_private(self.work):
            _remove(self.work)
        _remove(self._originals / ".cache")  # the library's unfinished downloads, which it would not take up again
        _remove(self.work / "scratch")
        make(self.work, _PRIVATE)
        self._ready.mkdir(parents=True)
        if isinstance(self.weights, Lora):
            self._lora(self.weights)
        elif is_single_file(self.weights):
            self._single_file()
        else:
            self._diffusers()
        write_manifest(self._ready, origin, self.options.dtype)
        if final.exists():
            final.rename(self.work / "scratch" / "replaced")
        self._ready.rename(final)
        sync(final.parent)
        _remove(self.work / "scratch" if self.options.keep else self.work)

    def _lora(self, lora: Lora) -> None:
        path = self._one_file(lora.file, beside=0.0)
        shapes_in(path)
        self._take(path, lora.file)

    def _single_file(self) -> None:
        path, like = self._checkpoint(), self.options.like or SD15
        networks = networks_in(self.name, path)
        if self.name == "model":
            self._copy(in_folder(like, self.weights), ["scheduler/scheduler_config.json"])
            self._tokenizer()
        for kind, prefix in networks.items():
            folder = "" if kind == self.name else f"{kind}/"
            self._write(f"{folder}{COMPONENTS[kind]}.safetensors", convert(path, kind, prefix, like))
            self._take(like / kind / "config.json", f"{folder}config.json")

    def _diffusers(self) -> None:
        repository = self._open(self.weights)
        texts = texts_of(self.name, repository.files)
        chosen = weights_of(self.name, repository.files, self.options.dtype)
        names = [*chain.from_iterable(chosen.values())]
        self._check_room(repository, names, beside=0.5)
        self._copy(repository, texts)
        for text, network in _CHECKED[self.name].items():  # before gigabytes are fetched
            _check_config(self._ready / text, network)
        paths = dict(zip(names, repository.fetch(names, self._originals), strict=True))
        for target, found in chosen.items():
            originals = [paths[name] for name in found]
            if len(originals) == 1 and is_ready(originals[0], self.options.dtype):
                self._take(originals[0], target)
            else:
                self._write(target, read(originals))

    def _open(self, weights: Weights) -> Repository:
        return open_repository(weights, self.options.source, self.options.patience)

    def _checkpoint(self) -> Path:
        if not is_folder(self.weights):
            assert self.weights.file is not None
            return self._one_file(self.weights.file, beside=1.0)
        path = Path(self.weights.path)
        if not path.is_file():
            raise FetchError("there is no such file")
        _check_free(path.stat().st_size, self.options.models)
        return path

    def _one_file(self, file: str, beside: float) -> Path:
        repository = self._open(self.weights)
        if file not in repository.files:
            others = ", ".join(sorted(name for name in repository.files if name.endswith(".safetensors"))) or "none"
            raise FetchError(f"the repository has no {file}; its safetensors files: {others}")
        self._check_room(repository, [file], beside)
        return repository.fetch([file], self._originals)[0]

    def _tokenizer(self) -> None:
        folder = self.options.like or find(self.options.models, "model", SD15_REPOSITORY, self.options.dtype)
        try:
            repository = in_folder(folder, SD15_REPOSITORY) if folder else self._open(SD15_REPOSITORY)
            self._copy(repository, texts_of("tokenizer", repository.files))
        except FetchError as error:
            raise FetchError(
                f"a single-file checkpoint has no tokenizer, so that of {SD15_REPOSITORY.path} is used, but: {error}. "
                "Name a folder that has one with --like",
                error.code,
            ) from error

    def _copy(self, repository: Repository, names: Sequence[str]) -> None:
        """Fetch files and take them as they are."""
        if missing := set(names) - repository.files.keys():
            raise FetchError(f"there is no {min(missing)} in {repository.folder}")
        for name, path in zip(names, repository.fetch(names, self._originals), strict=True):
            self._take(path, name)

    def _take(self, path: Path, name: str) -> None:
        """Add a file to what will be published. What was downloaded is linked: it stays, and takes no space twice."""
        target = self._target(name)
        if self._originals in path.parents:
            with suppress(OSError):  # not every file system has hard links
                os.link(path, target)
                return
        shutil.copyfile(path, target)

    def _write(self, name: str, tensors: Mapping[str, object]) -> None:
        say(f"converting {name} to {self.options.dtype}")
        write(tensors, self.options.dtype, self._target(name), name)  # type: ignore[arg-type]

    def _target(self, name: str) -> Path:
        target = self._ready / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _check_room(self, repository: Repository, names: Sequence[str], beside: float) -> None:
        """Refuse before anything is fetched: all of it must fit, and what is made of it, `beside` times its size."""
        files = [repository.files[name] for name in names]
        missing = sum(file.size for file in files if not file.has_size_of(self._originals / file.path))
        converted = sum(file.size for file in files if HALF not in file.path)
        _check_free(missing + int(beside * converted), self.options.models)


def _is_private(folder: Path) -> bool:
    """Return whether a folder is ours alone: nobody else can have put links into it, which would be followed."""
    status = folder.lstat() if os.path.lexists(folder) else None
    if status is None or not stat.S_ISDIR(status.st_mode):
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & _NOT_PRIVATE


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _check_free(needed: int, models: Path) -> None:
    free = shutil.disk_usage(models).free
    if needed > free:
        raise FetchError(
            f"it needs {needed / _GIB:.2f} GiB, but {models} has {free / _GIB:.2f} GiB free: free some space, or "
            "choose another disk with --to"
        )


def _check_config(path: Path, network: Network) -> None:
    try:
        check_config(network, json.loads(path.read_bytes()))
    except (UnsupportedModelError, ValueError) as error:
        raise FetchError(f"{error}: choose a repository for Stable Diffusion 1.5") from error
