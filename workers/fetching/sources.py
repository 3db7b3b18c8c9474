"""Where files come from: the hub, the Hugging Face cache, or a folder. Each lists files and hands them out."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoSibling

from workers.engine.config import Weights
from workers.fetching.download import PART, Entry, Patience, download
from workers.fetching.errors import LATER, FetchError

_HASH = re.compile(r"(?P<blob>[0-9a-f]{40})|(?P<sha256>[0-9a-f]{64})")


class Source(Protocol):
    """Files of one repository at one revision."""

    def files(self) -> Mapping[str, Entry]:
        """All that it has, by their paths in it."""

    def room(self, entry: Entry, folder: Path) -> int:
        """How many bytes more a copy of a file takes, if what is fetched of it is kept in a folder."""

    def get(self, entry: Entry, folder: Path) -> Path:
        """Where a file lies: in the given folder, if it had to be fetched."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A repository on the hub; files that the Hugging Face cache has already are taken from there."""

    weights: Weights
    patience: Patience

    def __str__(self) -> str:
        return self.weights.path

    def files(self) -> Mapping[str, Entry]:
        """All files of the repository. Raises FetchError, HfHubHTTPError and httpx.HTTPError."""
        while True:
            try:
                return self._listing()
            except HfHubHTTPError as error:
                self.patience.bear(error)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                text = (
                    f"{constants.ENDPOINT} does not answer as a hub does ({error}): check the network and HF_ENDPOINT"
                )
                raise FetchError(text, LATER) from error

    def _listing(self) -> Mapping[str, Entry]:
        # Of the calls that list files this one can be given a time-out.
        seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
        revision = self.weights.revision
        info = HfApi().model_info(self.weights.path, revision=revision, timeout=seconds, files_metadata=True)
        if info.sha != revision or info.siblings is None:
            raise ValueError(f"it has {info.sha} instead of {revision}")
        return {file.rfilename: _entry(file) for file in info.siblings}

    def room(self, entry: Entry, folder: Path) -> int:
        """What is left to fetch of a file, or to copy from the cache."""
        target = folder / entry.path
        here = [path for path in (target, target.with_name(target.name + PART)) if path.is_file()]
        return max(0, entry.size - max((path.stat().st_size for path in here), default=0))

    def get(self, entry: Entry, folder: Path) -> Path:
        """Fetch a file, unless it is here. Raises FetchError, HfHubHTTPError, httpx.HTTPError and OSError."""
        cached = self._cached(entry)
        if cached is not None and entry.is_in(cached):
            return cached
        target = folder / entry.path
        if not entry.is_in(target):
            url = hf_hub_url(self.weights.path, entry.path, revision=self.weights.revision)
            download(url, entry, target, self.patience)
        return target

    def _cached(self, entry: Entry) -> Path | None:
        found = try_to_load_from_cache(self.weights.path, entry.path, revision=self.weights.revision)
        return Path(found) if isinstance(found, str) else None


def _entry(file: RepoSibling) -> Entry:
    if file.lfs is not None:
        return Entry(file.rfilename, file.lfs.size, sha256=file.lfs.sha256)
    if file.size is None or file.blob_id is None:
        raise ValueError(f"it says nothing of {file.rfilename} but its name")
    return Entry(file.rfilename, file.size, blob=file.blob_id)


@dataclass(frozen=True, slots=True)
class Folder:
    """A repository's files in a folder: a copy of it, or its snapshot in a Hugging Face cache."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def files(self) -> Mapping[str, Entry]:
        """All files; with their hashes where it is a cache, which names them so."""
        return {entry.path: entry for entry in self._entries()}

    def _entries(self) -> Iterator[Entry]:
        for path in self.folder.rglob("*"):
            if path.is_file():
                name = path.resolve().name if path.is_symlink() else ""
                known = match.groupdict() if (match := _HASH.fullmatch(name)) else {}
                yield Entry(path.relative_to(self.folder).as_posix(), path.stat().st_size, **known)

    def room(self, entry: Entry, folder: Path) -> int:
        """All of it: the original stays where it is."""
        return entry.size

    def get(self, entry: Entry, folder: Path) -> Path:
        """The file itself. Raises FetchError when it is not what the cache calls it."""
        path = self.folder / entry.path
        if not entry.is_in(path):
            raise FetchError(f"{path} is damaged: its hash is not what it is filed under. Delete it and fetch it again")
        return path


def source_of(weights: Weights, given: Path | None, patience: Patience) -> Source:
    """Where to take a repository's files from: a folder that was named, a cache if offline, else the hub.

    Raises FetchError.
    """
    if given is not None:
        return Folder(_inside(given, weights))
    if constants.HF_HUB_OFFLINE:
        cached = _snapshot(Path(constants.HF_HUB_CACHE), weights)
        if cached.is_dir():
            return Folder(cached)
        raise FetchError(
            f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} does not have it at revision {weights.revision}: "
            "unset it to download, or name a folder that has it by --from"
        )
    return Hub(weights, patience)


def _inside(given: Path, weights: Weights) -> Path:
    places = [
        _snapshot(given, weights),
        _snapshot(given / "hub", weights),
        given / weights.path,
        given / weights.path.partition("/")[2],
    ]
    for place in places:
        if place.is_dir():
            return place
    listed = ", ".join(os.path.relpath(place, given) for place in places)
    raise FetchError(f"{given} does not have it: none of these is a folder in it: {listed}")


def _snapshot(cache: Path, weights: Weights) -> Path:
    return cache / f"models--{weights.path.replace('/', '--')}" / "snapshots" / (weights.revision or "main")
