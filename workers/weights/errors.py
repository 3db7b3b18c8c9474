"""What a person is told when weights cannot be fetched, and the exit code that goes with it."""

import errno
import os
import re
from pathlib import Path

import httpx
from huggingface_hub import constants, errors

FAILED = 1
LATER = os.EX_TEMPFAIL  # 75: the same command may succeed later
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # statuses of HTTP
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RETRY = "Try again later; if it happens again, a proxy between here and the hub changes what passes"
WRONG_SIZE = f"its size is not the one that the hub lists. {RETRY}"
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
    *((status, "the hub is in trouble: try again later") for status in TRANSIENT),
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
        return FetchError(f"no space is left in {where} ({error.strerror}): make some, or choose another disk by --to")
    if isinstance(error, OSError) and error.errno is not None:
        return FetchError(str(error))
    if isinstance(error, errors.HFValidationError):
        return FetchError("no repository can have this name: correct the path")
    if type(error) is OSError:
        return FetchError(WRONG_SIZE, LATER)
    return FetchError(f"{endpoint} does not answer as a hub does: check the network and HF_ENDPOINT", LATER)


def _refusal(error: errors.HfHubHTTPError) -> str:
    for kind, text in _REFUSALS:
        if error.response.status_code == kind or (isinstance(kind, type) and isinstance(error, kind)):
            return f"{text} ({reason(error)})"
    return f"the hub refuses: check the path, the revision and HF_ENDPOINT ({reason(error)})"


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
