"""A repository of weights: in a folder, in the Hugging Face cache, or on the hub. Its files are verified.

huggingface_hub downloads: connections, tokens, mirrors, and going on in a file after a cut. Four things are ours:

- The hash of each file, as the hub lists it. The library compares sizes only.
- The loop over files. That of `snapshot_download` lists a repository without a time limit, and its errors name no file.
- A limit on the bytes of a file. The library writes whatever is sent, and compares sizes at the end.
- Starting over, for `patience` seconds, after failures that the library does not try again.

Fetched are safetensors files and the small files beside them, never a pickle.
"""

import hashlib
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

import httpx
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoSibling

from workers.engine.config import Weights
from workers.engine.weights import COMPONENTS, PICKLES
from workers.logs import counted
from workers.weights.messages import LATER, RETRY, WRONG_SIZE, FetchError, bar, explain, is_transient, reason, say

# -------------------------------------------------------------------------------------------------- the choice of files


HALF = ".fp16"
NETWORKS = {"model": ("unet/", "vae/", "text_encoder/"), "controlnet": ("",), "vae": ("",)}  # their folders
_TOKENIZER = ("tokenizer/tokenizer_config.json",)
TEXTS = {
    "model": (
        *(f"{folder}config.json" for folder in NETWORKS["model"]),
        "scheduler/scheduler_config.json",
        *_TOKENIZER,
    ),
    "controlnet": ("config.json",),
    "vae": ("config.json",),
    "tokenizer": _TOKENIZER,
}
OPTIONAL = tuple(
    f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer.json", "vocab.json")
)


def texts_of(part: str, files: Collection[str]) -> list[str]:
    """Return the small files of a "model", "controlnet", "vae" or "tokenizer". Raises FetchError if one is missing."""
    missing = next((text for text in TEXTS[part] if text not in files), None)
    if missing is not None:
        raise FetchError(f"the repository has no {missing}: it is not in diffusers' layout")
    optional = OPTIONAL if part in ("model", "tokenizer") else ()
    return [*TEXTS[part], *(text for text in optional if text in files)]


def weights_of(part: str, files: Collection[str], dtype: str) -> Mapping[str, list[str]]:
    """Return each network's files, by what they become; several where they are sharded. Raises FetchError.

    Half precision is half the download: it comes first where it is wanted, and last where it is not.
    """
    stems = [folder + COMPONENTS[folder.rstrip("/") or part] for folder in NETWORKS[part]]
    suffixes = (HALF, "") if dtype == "float16" else ("", HALF)
    return {f"{stem}.safetensors": _files_of(stem, suffixes, files) for stem in stems}


def _files_of(stem: str, suffixes: tuple[str, ...], files: Collection[str]) -> list[str]:
    for suffix in suffixes:
        if (whole := f"{stem}{suffix}.safetensors") in files:
            return [whole]
        if shards := _shards(stem + suffix, files):
            return shards
    folder = stem[: stem.rfind("/") + 1]
    pickle = next((name for name in sorted(files) if name.startswith(folder) and name.endswith(PICKLES)), None)
    reason = f", only pickles such as {pickle}, which can run any code and are not read" if pickle else ""
    raise FetchError(f"the repository has no {stem}.safetensors{reason}: choose another repository or revision")


def _shards(stem: str, files: Collection[str]) -> list[str]:
    """Return all of `STEM-00001-of-00003.safetensors` and so on; nothing if one is missing."""
    pattern = re.compile(re.escape(stem) + r"-\d{5}-of-(\d{5})\.safetensors")
    found = [match for name in sorted(files) if (match := pattern.fullmatch(name))]
    return [match[0] for match in found] if found and len(found) == int(found[0][1]) else []


# ------------------------------------------------------------------------------------------------------- the repository


T = TypeVar("T")

PARALLEL = 8  # downloads at a time
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries
_SHA256_DIGITS = 64
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it logs addresses, which may be signed
warnings.filterwarnings("ignore", module=r"huggingface_hub\.")
# Plain HTTP, as tested. The library's other transfer, xet, has not been tried; HF_HUB_DISABLE_XET=0 chooses it.
if "HF_HUB_DISABLE_XET" not in os.environ:
    constants.HF_HUB_DISABLE_XET = True


@dataclass(frozen=True, slots=True)
class File:
    """A file of a repository. Its digest is a SHA-256, or git's SHA-1 of its blob (small files); None if not known."""

    path: str
    size: int
    digest: str | None = None

    def has_size_of(self, path: Path) -> bool:
        """Return whether there is a file of this size on the disk."""
        return path.is_file() and path.stat().st_size == self.size

    def is_at(self, path: Path) -> bool:
        """Return whether a file on the disk is this one."""
        return self.has_size_of(path) and (self.digest is None or self.digest == self._digest_of(path, self.digest))

    def _digest_of(self, path: Path, like: str) -> str:
        with path.open("rb") as file:
            if len(like) == _SHA256_DIGITS:
                return hashlib.file_digest(file, "sha256").hexdigest()
            blob = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
            return hashlib.file_digest(file, lambda: blob).hexdigest()


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at its pinned commit: in `folder`, or else on the hub."""

    weights: Weights
    files: Mapping[str, File]
    folder: Path | None = None
    patience: float = 0.0

    def fetch(self, names: Sequence[str], target: Path) -> list[Path]:
        """Return where verified files are: in `target` if they had to be downloaded. Raises FetchError."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            fetches = [pool.submit(self._fetch, self.files[name], target) for name in names]
            try:
                for fetch in as_completed(fetches):
                    fetch.result()
            except Exception as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if running := sum(fetch.running() for fetch in fetches):  # these cannot be cancelled
                    say(f"{error}. Waiting for {counted(running, 'other file')} in progress")
                raise
            return [fetch.result() for fetch in fetches]

    def _fetch(self, file: File, target: Path) -> Path:
        if self.folder is not None:
            return _verified(self.folder / file.path, file)
        cached = try_to_load_from_cache(self.weights.path, file.path, revision=self.weights.revision)
        places = [target / file.path, *([Path(cached)] if isinstance(cached, str) else [])]
        found = next((path for path in places if file.is_at(path)), None)
        return found or _download(file, self.weights, target, self.patience)


def _verified(path: Path, file: File) -> Path:
    if not file.is_at(path):
        raise FetchError(f"{path} is damaged: its hash does not match its name. Delete it and fetch it again")
    return path


def open_repository(weights: Weights, source: Path | None, patience: float) -> Repository:
    """Find a repository: in `source` if given, in the cache if offline, else on the hub. Raises FetchError."""
    if source is None and not constants.HF_HUB_OFFLINE:
        files = _ask(partial(_list_files, weights), Path(), patience)
        return Repository(weights, files, patience=patience)
    snapshot = f"models--{weights.path.replace('/', '--')}/snapshots/{weights.revision}"
    cache = Path(constants.HF_HUB_CACHE)
    names = [snapshot] if source is None else [snapshot, f"hub/{snapshot}", weights.path, weights.path.split("/")[1]]
    found = next((folder for name in names if (folder := (source or cache) / name).is_dir()), None)
    if found is not None:
        return in_folder(found, weights)
    if source is not None:
        raise FetchError(f"{source} does not have it: none of these folders exists there: {', '.join(names)}")
    raise FetchError(
        f"HF_HUB_OFFLINE is set, and {cache} does not have it at revision {weights.revision}: "
        "unset it to download, or name a folder that has it with --from"
    )


def in_folder(folder: Path, weights: Weights) -> Repository:
    """Take a folder for a repository: a copy of one, or its snapshot in a cache, where links lead to digests."""
    return Repository(weights, {file.path: file for file in _files_in(folder)}, folder)


def _files_in(folder: Path) -> Iterator[File]:
    for path in folder.rglob("*"):
        if path.is_file():
            digest = _DIGEST.fullmatch(path.resolve().name if path.is_symlink() else "")
            yield File(path.relative_to(folder).as_posix(), path.stat().st_size, digest and digest[0])


# ------------------------------------------------------------------------------------------------------------- the hub


def _list_files(weights: Weights) -> Mapping[str, File]:
    # Of the calls that list files, this one has a time limit.
    seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        info = HfApi().model_info(weights.path, revision=weights.revision, timeout=seconds, files_metadata=True)
        if info.sha != weights.revision:
            raise ValueError("another commit")
        return {file.rfilename: _file(file) for file in info.siblings or () if _stays_inside(file.rfilename)}
    except (AttributeError, KeyError, TypeError) as error:  # of an answer in another form
        raise explain(error, Path()) from error


def _file(file: RepoSibling) -> File:
    if file.lfs is not None:
        return File(file.rfilename, file.lfs.size, file.lfs.sha256)
    if file.size is None or file.blob_id is None:
        raise ValueError("names only")
    return File(file.rfilename, file.size, file.blob_id)


def _stays_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts


class _Meter:
    """The progress bar of a file. The library updates it before it writes, so it can stop a download that is too long.

    A broken hub or proxy could otherwise fill the disk: `_check_room` counted on the listed size.
    """

    def __init__(self, file: File, *, initial: int = 0, **options: Any) -> None:
        self._limit, self._received = file.size, initial
        self._bar = bar(file.path, initial=initial, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        """Count bytes, or take some back (negative) that are sent again. Raises FetchError if there are too many."""
        self._received += count  # the bar itself does not count if it is disabled
        if self._received > self._limit:
            raise FetchError(WRONG_SIZE, LATER)
        self._bar.update(count)


def _download(file: File, weights: Weights, target: Path, patience: float) -> Path:
    path = target / file.path
    path.unlink(missing_ok=True)  # the library would take what is there for the file
    call = partial(
        hf_hub_download,
        weights.path,
        file.path,
        revision=weights.revision,
        local_dir=target,
        cache_dir=target,  # not the user's cache, which may be damaged
        tqdm_class=partial(_Meter, file),
    )
    try:
        _ask(call, target, patience)
    except FetchError as error:
        raise FetchError(f"{file.path}: {error}", error.code) from error
    if not file.is_at(path):
        path.unlink()
        text = f"its hash is not {file.digest}, as the hub lists. The file was deleted"
        raise FetchError(f"{file.path} was damaged on its way: {text}. {RETRY}", LATER)
    return path


def _ask(call: Callable[[], T], place: Path, patience: float) -> T:
    """Call the library; again while the hub or the network is in trouble. Raises FetchError."""
    pause, end = FIRST_PAUSE, None
    while True:
        try:
            return call()
        except (httpx.HTTPError, httpx.InvalidURL, OSError, RuntimeError, ValueError) as error:
            cause = (error.__cause__ or error) if isinstance(error, LocalEntryNotFoundError) else error
            now = time.monotonic()
            end = now + patience if end is None else end
            waited = isinstance(cause, httpx.TimeoutException)  # by the library, for minutes
            if now >= end or waited or not is_transient(cause):
                raise explain(cause, place) from error
        pause = min(pause, end - now)
        say(f"the request to the hub failed ({reason(cause)}); trying again in {pause:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
