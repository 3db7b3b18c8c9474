"""One part of a model, from where it is kept to a folder that the engine reads: fetched, checked, converted, published.

All work is done in a folder that nothing reads, under a lock; what an earlier try finished there is taken over.
"""

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from workers.engine.architecture import UnsupportedModelError, check_config
from workers.engine.config import Lora, Weights
from workers.engine.weights import is_folder, is_single_file
from workers.fetching.download import Entry, Patience
from workers.fetching.errors import FetchError, explain
from workers.fetching.parts import PARTS, texts_of, weights_of
from workers.fetching.progress import say
from workers.fetching.single_file import SD15, SD15_REPOSITORY, Component, components_of, convert
from workers.fetching.sources import Folder, Source, source_of
from workers.fetching.store import Origin, find, folder_in, is_prepared, name_of, origin_of, sync, write_manifest
from workers.fetching.tensors import is_ready, read, shapes_in, write
from workers.folders import make, no_follow

_GIB = 2**30
_NETWORKS = {"unet/config.json": "UNet", "config.json": "ControlNet"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person asks for.

    Weights go to the folder `models` in the number format `dtype`. They come from the folder `given` instead of the
    hub; `like` is a model whose configurations and tokenizer single files are converted with. `again`: make anew what
    is there; `keep`: leave what was fetched, for another format; `patience`: seconds for which a silent hub is tried.
    """

    models: Path
    dtype: str
    given: Path | None = None
    like: Path | None = None
    again: bool = False
    keep: bool = False
    patience: float = 60.0


def prepare(name: str, weights: Weights, options: Options) -> Path:
    """Have a part ("model", "controlnet", "loras.0") ready, if it is not; its folder.

    Raises FetchError, HfHubHTTPError, httpx.HTTPError and OSError.
    """
    final = folder_in(options.models, name, weights, options.dtype)
    if not options.again and is_prepared(final, weights):
        return final
    make(options.models)
    known = name_of(name, weights)
    with _locked(options.models, known):
        if options.again or not is_prepared(final, weights):  # another process may just have made it
            _Making(name, weights, options, options.models / ".work" / known).run(final)
    return final


@contextmanager
def _locked(models: Path, name: str) -> Iterator[None]:
    """Keep other processes from working on the same; the kernel unlocks it when this one ends, however it ends."""
    path = models / ".locks" / name
    path.parent.mkdir(exist_ok=True)
    with open(path, "a", opener=no_follow) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process, which is preparing {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, slots=True)
class _Making:
    """A part on its way. In `work`: `originals` as they came, `ready` files in folders by format, and `scratch`."""

    name: str
    weights: Weights
    options: Options
    work: Path

    @property
    def _originals(self) -> Path:
        return self.work / "originals"

    @property
    def _ready(self) -> Path:
        return self.work / self.options.dtype

    @property
    def _scratch(self) -> Path:
        return self.work / "scratch"

    def run(self, final: Path) -> None:
        """Make the folder `final`."""
        origin = origin_of(self.weights)  # as it is before it is read
        if self.options.again:
            shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._ready.mkdir(parents=True, exist_ok=True)
        self._scratch.mkdir(0o700)  # new, so that there is nothing in it which others have put there
        if isinstance(self.weights, Lora):
            self._lora(self.weights)
        elif is_single_file(self.weights):
            self._single_file()
        else:
            self._diffusers()
        self._publish(final, origin)

    # ------------------------------------------------------------------------------------------------ kinds of weights

    def _lora(self, lora: Lora) -> None:
        path = self._fetched(lora.file, beside=0.0)
        shapes_in(path)
        self._place(path, self._ready / lora.file)

    def _single_file(self) -> None:
        shutil.rmtree(self._ready)  # an earlier try may have had another original
        path = self._checkpoint()
        like = self.options.like or SD15
        components = components_of(self.name, path)
        if self.name == "model":
            self._copy(Folder(like), ["scheduler/scheduler_config.json"])
            self._tokenizer()
        for component in components:
            self._component(path, component, like)

    def _diffusers(self) -> None:
        source, part = self._source(self.weights), PARTS[self.name]
        files = source.files()
        chosen = {f"{stem}.safetensors": found for stem, found in weights_of(part, files, self.options.dtype).items()}
        texts = texts_of(part, files)
        left = {target: found for target, found in chosen.items() if not (self._ready / target).is_file()}
        self._check_room(source, [files[name] for found in left.values() for name in found], beside=0.5)
        self._copy(source, texts, files)
        self._check_configs(texts)
        for target, names in left.items():
            self._convert([source.get(files[name], self._originals) for name in names], self._ready / target)

    # ------------------------------------------------------------------------------------------------------ their files

    def _source(self, weights: Weights) -> Source:
        return source_of(weights, self.options.given, Patience(self.options.patience))

    def _checkpoint(self) -> Path:
        if not is_folder(self.weights):
            assert self.weights.file is not None
            return self._fetched(self.weights.file, beside=1.0)
        path = Path(self.weights.path)
        if not path.is_file():
            raise FetchError("there is no such file")
        _check_free(path.stat().st_size, self.options.models)
        return path

    def _fetched(self, file: str, beside: float) -> Path:
        """One file of the repository; what is made of it takes `beside` times its size."""
        source = self._source(self.weights)
        files = source.files()
        if file not in files:
            others = ", ".join(sorted(name for name in files if name.endswith(".safetensors"))) or "none"
            raise FetchError(f"the repository has no {file}; its safetensors files: {others}")
        self._check_room(source, [files[file]], beside)
        return source.get(files[file], self._originals)

    def _tokenizer(self) -> None:
        prepared = find(self.options.models, "model", SD15_REPOSITORY, self.options.dtype)
        try:
            folder = self.options.like or prepared
            source = Folder(folder) if folder else self._source(SD15_REPOSITORY)
            files = source.files()
            self._copy(source, texts_of(PARTS["tokenizer"], files), files)
        except (FetchError, OSError, httpx.HTTPError) as error:
            taken = SD15_REPOSITORY
            reason = error if isinstance(error, FetchError) else explain(error, taken, self.options.models)
            raise FetchError(
                f"a checkpoint in one file has no tokenizer, so that of {taken.path} is taken, but: {reason}. "
                "A folder that has one can be named by --like",
                reason.code,
            ) from error

    def _copy(self, source: Source, names: Iterable[str], files: Mapping[str, Entry] | None = None) -> None:
        """Take over files as they are."""
        files = source.files() if files is None else files
        for name in names:
            if name not in files:
                raise FetchError(f"there is no {name} in {source}")
            self._place(source.get(files[name], self._originals), self._ready / name)

    def _component(self, path: Path, component: Component, like: Path) -> None:
        say(f"converting the {component.name} to {self.options.dtype}")
        target = self._ready / component.target
        self._write(target, component.name, convert(path, component, like))
        config = like / component.config / "config.json"
        self._place(config, target.with_name("config.json"))

    def _convert(self, paths: list[Path], target: Path) -> None:
        """One file in the number format that is wanted, of one or more in any."""
        if len(paths) == 1 and is_ready(paths[0], self.options.dtype):
            self._place(paths[0], target)
            return
        what = str(target.relative_to(self._ready))
        say(f"converting {what} to {self.options.dtype}")
        self._write(target, what, read(paths))
        self._drop(paths)

    def _write(self, target: Path, what: str, tensors: Mapping[str, object]) -> None:
        scratch = self._scratch / target.name
        write(tensors, self.options.dtype, scratch, what)  # type: ignore[arg-type]
        self._finish(scratch, target)

    def _place(self, path: Path, target: Path) -> None:
        """Move what was fetched, copy what is another's."""
        if self._originals in path.parents and not self.options.keep:
            self._finish(path, target)
        else:
            scratch = self._scratch / target.name
            shutil.copyfile(path, scratch)
            self._finish(scratch, target)

    def _finish(self, path: Path, target: Path) -> None:
        """Give a file its place, where being there means being whole."""
        sync(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)

    def _drop(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if self._originals in path.parents and not self.options.keep:
                path.unlink()

    # ---------------------------------------------------------------------------------------------------------- checks

    def _check_room(self, source: Source, entries: list[Entry], beside: float) -> None:
        """Refuse before anything is fetched: all of it must fit, and beside the largest what is made of that."""
        needed = sum(source.room(entry, self._originals) for entry in entries)
        largest = max((entry.size for entry in entries), default=0)
        _check_free(needed + int(beside * largest), self.options.models)

    def _check_configs(self, texts: Iterable[str]) -> None:
        for text in texts:
            if text in _NETWORKS:
                _check_config(self._ready / text, _NETWORKS[text])

    def _publish(self, final: Path, origin: Origin) -> None:
        write_manifest(self._ready, origin, self.options.dtype)
        if final.exists():
            replaced = self._scratch / "replaced"
            final.rename(replaced)
        self._ready.rename(final)
        sync(final.parent)
        for folder in (self._scratch,) if self.options.keep else (self.work,):
            shutil.rmtree(folder)


def _check_free(needed: int, models: Path) -> None:
    free = shutil.disk_usage(models).free
    if needed > free:
        raise FetchError(
            f"it takes {needed / _GIB:.2f} GiB, but {models} has {free / _GIB:.2f} GiB free: make room, or choose "
            "another disk by --to"
        )


def _check_config(path: Path, network: str) -> None:
    try:
        check_config(network, json.loads(path.read_text()))  # type: ignore[arg-type]
    except (UnsupportedModelError, ValueError) as error:
        raise FetchError(f"{error}: choose a repository for Stable Diffusion 1.5") from error
