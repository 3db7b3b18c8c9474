"""What a person is told when weights cannot be had, and the exit code that goes with it."""

import errno
import os
from pathlib import Path

import httpx
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from workers.engine.config import Weights

FAILED = 1
LATER = os.EX_TEMPFAIL  # 75: the same command may succeed later
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)  # statuses of HTTP
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FetchError(Exception):
    """Weights cannot be prepared; the message says why and what to do. `code` is what the command exits with."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def explain(error: OSError | httpx.HTTPError, weights: Weights, models: Path) -> FetchError:
    """What went wrong with the hub, the network or the disk that `models` is on, in a person's words."""
    code = LATER if is_passing(error) else FAILED
    if isinstance(error, httpx.HTTPError | OfflineModeIsEnabled):
        return FetchError(_of_the_hub(error, weights), code)
    if error.errno in FULL:
        place = error.filename or models
        return FetchError(f"no space is left in {place} ({error.strerror}): make some, or choose another disk by --to")
    return FetchError(str(error), code)


def is_passing(error: BaseException) -> bool:
    """Whether the same may go well a moment later."""
    if isinstance(error, HfHubHTTPError | httpx.HTTPStatusError):
        return error.response.status_code in WORTH_ANOTHER_TRY
    return isinstance(error, httpx.TransportError)


def _of_the_hub(error: httpx.HTTPError | OfflineModeIsEnabled, weights: Weights) -> str:
    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set: unset it to download"
        case GatedRepoError():
            return "it is gated: accept its terms on its page, then set HF_TOKEN"
        case DisabledRepoError():
            return "the hub has disabled it: choose another repository"
        case RepositoryNotFoundError():
            return "there is no such repository, or it is private: correct the path, or set HF_TOKEN"
        case RevisionNotFoundError():
            return f"it has no revision {weights.revision}"
        case RemoteEntryNotFoundError():
            return f"a file that it lists is not there: {_plain(error)}"
        case HfHubHTTPError():
            return _refusal(error)
        case _:
            reason = str(error) or type(error).__name__
            return (
                f"{constants.ENDPOINT} cannot be reached ({reason}): check the network, HTTPS_PROXY and HF_ENDPOINT. "
                "What has come is kept; the same command goes on from there"
            )


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    match status:
        case 401 | 403:
            return f"the hub denies access, with status {status}: set HF_TOKEN to a token that may read it"
        case 429:
            return "too much has been asked of the hub (status 429): wait some minutes, or set HF_TOKEN to get more"
        case _ if status in WORTH_ANOTHER_TRY:
            return f"the hub is in trouble (status {status}): try again later"
        case _:
            return f"the hub refused, with status {status}: {_plain(error)}"


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())
