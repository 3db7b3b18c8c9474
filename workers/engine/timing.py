"""How long each part of a start took, for whoever wonders why it took so long."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log, when it is done, how many seconds it took."""
    began = time.monotonic()
    yield
    _log.info("%s in %.2f s", what, time.monotonic() - began)
