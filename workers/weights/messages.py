"""Messages of the fetch command: its progress, and for each failure the reason and what to do.

Progress of long work is on the standard error: a bar on a terminal, elsewhere a plain line now and then.
"""

import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, errors
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # it makes its names when they are asked for

# ------------------------------------------------------------------------------------------------------------- progress


SMALL = 2**20  # bytes: a smaller file gets no line
LINE_SECONDS = 10.0  # between two lines, where there is no terminal


def say(text: str) -> None:
    """Tell the person who waits. The standard output is for results."""
    tqdm.write(text, file=sys.stderr)


def bar(name: str, *, total: int | None, initial: int = 0, **_: object) -> Any:
    """Return a progress bar of a file's bytes: a context manager with `update(n)`."""
    kind = tqdm if sys.stderr.isatty() else _Lines
    small = (total or 0) < SMALL
    return kind(desc=name, total=total, initial=initial, unit="B", unit_scale=True, unit_divisor=1024, disable=small)


class _Lines(tqdm):
    """Few lines, as files and pipes keep every one."""

    disable: bool

    def __init__(self, **options: Any) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            mininterval=LINE_SECONDS, maxinterval=LINE_SECONDS, ncols=100, ascii=True, **options
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self.disable and self.n:
            self.fp.write(f"{msg or str(self)}\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        if not self.disable:
            self.display()
            self.disable = True


# --------------------------------------------------------------------------------------------------------------- errors


FAILED = 1
LATER = os.EX_TEMPFAIL  # 75: the same command may succeed later
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # statuses of HTTP
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RETRY = "Try again later; if it happens again, a proxy on the way may be altering the data"
WRONG_SIZE = f"its size differs from the one that the hub lists. {RETRY}"
_DENIED = "the hub denies access: set HF_TOKEN to a token that may read it"
_REFUSALS: tuple[tuple[type[errors.HfHubHTTPError] | int, str], ...] = (
    (errors.GatedRepoError, "it is gated: accept its terms on its page, then set HF_TOKEN"),
    (errors.DisabledRepoError, "the hub has disabled it: choose another repository"),
    (
        errors.RepositoryNotFoundError,
        "there is no such repository, or it is private: correct the path, or set HF_TOKEN",
    ),
    (errors.RevisionNotFoundError, "it has no such revision: correct the revision"),
    (errors.RemoteEntryNotFoundError, "the hub lists it, but does not have it: choose another revision"),
    (401, _DENIED),
    (403, _DENIED),
    (429, "too many requests to the hub: wait some minutes, or set HF_TOKEN to be allowed more"),
    *((status, "the hub reports an error: try again later") for status in TRANSIENT),
)


class FetchError(Exception):
    """Weights cannot be prepared. The message says why and what to do; `code` is the command's exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a moment later."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    permanent = isinstance(error, httpx.UnsupportedProtocol) or "CERTIFICATE_VERIFY_FAILED" in str(error)
    return isinstance(error, httpx.TransportError) and not permanent


def explain(error: BaseException, place: Path) -> FetchError:
    """Say what went wrong with the hub, the network or the disk that `place` is on.

    The library's own messages are not repeated: they quote addresses, which may be signed.
    """
    endpoint = re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)  # without a password
    if isinstance(error, errors.HfHubHTTPError):
        return FetchError(_refusal(error), LATER if is_transient(error) else FAILED)
    if isinstance(error, httpx.HTTPError):
        advice = "check the network, HTTPS_PROXY and HF_ENDPOINT. Complete files are kept; try again to get the others"
        return FetchError(f"{endpoint} cannot be reached ({reason(error)}): {advice}", LATER)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = error.filename or place
        return FetchError(
            f"no space is left in {where} ({error.strerror}): free some, or choose another disk with --to"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return FetchError(str(error))
    if isinstance(error, errors.HFValidationError):
        return FetchError("this is not a valid repository name: correct the path")
    if type(error) is OSError:
        return FetchError(WRONG_SIZE, LATER)
    return FetchError(f"{endpoint} does not answer like a Hugging Face hub: check the network and HF_ENDPOINT", LATER)


def _refusal(error: errors.HfHubHTTPError) -> str:
    for kind, text in _REFUSALS:
        if error.response.status_code == kind or (isinstance(kind, type) and isinstance(error, kind)):
            return f"{text} ({reason(error)})"
    return f"the hub refused the request: check the path, the revision and HF_ENDPOINT ({reason(error)})"


def reason(error: BaseException) -> str:
    """Say shortly what the hub or the network answered."""
    if isinstance(error, errors.HfHubHTTPError):
        return f"status {error.response.status_code}"
    if isinstance(error, httpx.UnsupportedProtocol):
        return "it does not begin with https://"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.RemoteProtocolError):
        return "the connection was cut"
    # The operating system's words: a name is not known, a connection refused, a certificate wrong.
    return re.sub(r"^\[[^]]*\] ", "", str(error)) or "the connection failed"
