"""One file of a repository, by HTTP: goes on where it stopped, and is what the hub says it is.

huggingface_hub 1.33 has a download of its own, which begins anew in each process (its unfinished file has a name of
the process's own, and is deleted when it fails) and compares sizes only. Here an unfinished file is kept as
`NAME.part`, the next try asks for the rest of it by Range, and what came is compared with the hash that the hub lists.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import httpx
from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # it is made when it is asked for

from workers.fetching.errors import LATER, FetchError, is_passing
from workers.fetching.progress import bar, say
from workers.fetching.store import sync
from workers.folders import no_follow

PART = ".part"
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries
PARTIAL, UNSATISFIABLE = 206, 416  # statuses of HTTP


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as a source lists it; of its hashes there is the SHA-256 of large files, else git's hash of its blob."""

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None

    def is_in(self, path: Path) -> bool:
        """Whether a file on the disk is this one, by size and by hash."""
        return path.is_file() and path.stat().st_size == self.size and self._has_hash_of(path)

    def _has_hash_of(self, path: Path) -> bool:
        wanted = self.sha256 or self.blob
        return wanted is None or wanted == self.hash_of(path)

    def hash_of(self, path: Path) -> str:
        """The hash of a file, of the kind that this one is known by."""
        with path.open("rb") as file:
            if self.sha256 is not None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
            return hashlib.file_digest(file, lambda: blob).hexdigest()


@dataclass(slots=True)
class Patience:
    """How long to go on trying while nothing comes; what comes renews it."""

    seconds: float
    _since: float | None = field(default=None, init=False)
    _pause: float = field(default=FIRST_PAUSE, init=False)

    def renew(self) -> None:
        """Something has come."""
        self._since, self._pause = None, FIRST_PAUSE

    def bear(self, error: Exception) -> None:
        """Wait before the next try; raises the error when there is to be none."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left = self._since + self.seconds - now
        if left <= 0 or not is_passing(error):
            raise error
        pause = min(max(self._pause, _asked_for(error)), left)
        say(f"{_shortly(error)}; trying again in {pause:.0f} s")
        time.sleep(pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _asked_for(error: Exception) -> float:
    """Seconds that the hub asks to be left alone for."""
    answer = getattr(error, "response", None)
    text = answer.headers.get("Retry-After", "") if isinstance(answer, httpx.Response) else ""
    return float(text) if text.isdecimal() else 0.0


def _shortly(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def download(url: str, entry: Entry, target: Path, patience: Patience) -> None:
    """Have a file at `target`, whole and verified. Raises FetchError, HfHubHTTPError, httpx.HTTPError and OSError."""
    part = target.with_name(target.name + PART)
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.is_file() and part.stat().st_size > 0
    _complete(url, entry, part, patience)
    if not entry.is_in(part):
        if not resumed:
            raise _damaged(entry, part)
        say(f"{entry.path}: what an earlier try left was damaged; it is fetched from the beginning")
        part.unlink()
        download(url, entry, target, patience)
        return
    sync(part)
    part.replace(target)


def _damaged(entry: Entry, part: Path) -> FetchError:
    found = entry.hash_of(part)
    part.unlink()
    return FetchError(
        f"{entry.path} was damaged on its way: its hash is {found}, but the hub lists {entry.sha256 or entry.blob}. "
        "It is thrown away. Try again; if it happens again, a proxy between here and the hub changes what passes",
        LATER,
    )


def _complete(url: str, entry: Entry, part: Path, patience: Patience) -> None:
    """Append to an unfinished file until it has its size."""
    with open(part, "ab", opener=no_follow) as file:
        if file.tell() > entry.size:
            _empty(file)
        with bar(entry.path, entry.size, file.tell()) as progress:
            while file.tell() < entry.size:
                try:
                    for count in _append(url, entry, file):
                        progress.update(count)
                        patience.renew()
                except (httpx.HTTPError, OSError) as error:
                    file.flush()
                    patience.bear(error)


def _append(url: str, entry: Entry, file: BinaryIO) -> Iterator[int]:
    """Ask once for what an unfinished file lacks; the numbers of bytes as they come."""
    begin = file.tell()
    # Compressed, parts of a file cannot be put together.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == UNSATISFIABLE:
            raise _wrong_size(entry, "less than has come already")
        hf_raise_for_status(response)
        if begin and response.status_code != PARTIAL:  # the whole file comes again
            _empty(file)
            yield -begin
        _check_size(entry, response)
        for chunk in response.iter_raw():
            if file.tell() + len(chunk) > entry.size:
                raise _wrong_size(entry, "more")
            file.write(chunk)
            yield len(chunk)
    if file.tell() < entry.size:
        raise httpx.RemoteProtocolError("the answer ended early")


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _check_size(entry: Entry, response: httpx.Response) -> None:
    named = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length")
    if named is not None and named.isdecimal() and int(named) != entry.size:
        raise _wrong_size(entry, f"{named}")


def _wrong_size(entry: Entry, found: str) -> FetchError:
    return FetchError(
        f"{entry.path} has a wrong size: the hub lists {entry.size} bytes, but sends {found}. "
        "Try again later; if it happens again, a proxy between here and the hub changes what passes",
        LATER,
    )
