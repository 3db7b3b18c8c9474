"""Whose turn it is to compile and to use the device.

torch's compiler times kernels to choose among them. A step that runs meanwhile spoils its figures, and each of its
timings waits for all that the device does. So timings and steps take turns, in the order in which they ask. And of all
workers of a machine one compiles at a time: the next finds most of what it needs in their common cache.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from workers.engine.budget import Lane
from workers.folders import no_follow

log = logging.getLogger(__name__)

CACHE = "TORCHINDUCTOR_CACHE_DIR"
PATIENCE_S = 900.0  # for another worker's compiler
_LOOK_S = 0.5


class DeviceTurns:
    """A lock that is given in the order in which it was asked for, and to who holds it at once."""

    def __init__(self) -> None:
        self._lane = Lane(1)
        self._holder: int | None = None

    @contextmanager
    def take(self) -> Iterator[None]:
        """Have the device to oneself."""
        me = threading.get_ident()
        if self._holder == me:
            yield
            return
        with self._lane.hold(1):
            self._holder = me
            try:
                yield
            finally:
                self._holder = None


def hold_while_timing(take: Callable[[], AbstractContextManager[None]]) -> None:
    """Have torch's compiler hold a lock around each of its timings on a GPU. It is imported here."""
    from torch._inductor.runtime import benchmarking

    register = getattr(benchmarking, "set_gpu_benchmark_lock_context", None)
    if register is not None:  # since torch 2.13
        register(take)
        return
    timer: Any = benchmarking.benchmarker  # the one that all of the compiler uses
    timing = timer.benchmark_gpu

    @wraps(timing)
    def locked(*arguments: Any, **options: Any) -> Any:
        with take():
            return timing(*arguments, **options)

    timer.benchmark_gpu = locked


@contextmanager
def one_worker_at_a_time(patience: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock of the compiler's cache, once other workers have let go of it or patience is at an end.

    The kernel lets go of it with the process, however that ends. Without a cache, or where it cannot be locked, there
    is nothing to wait for.
    """
    file = _lock_file()
    try:
        if file is not None:
            _wait_for(file, patience)
        yield
    finally:
        if file is not None:
            os.close(file)


def _lock_file() -> int | None:
    folder = os.environ.get(CACHE)
    if folder is None:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return no_follow(str(Path(folder) / "contour.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        log.info("the compiler's cache cannot be locked: %s", error)
        return None


def _wait_for(file: int, patience: float) -> None:
    deadline, waits = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                log.warning("Another worker has been compiling for %.0f s; this one no longer waits for it", patience)
                return
            if not waits:
                log.info("Another worker is compiling; this one waits, as it can use most of the result")
                waits = True
            time.sleep(_LOOK_S)
        except OSError as error:  # a file system without locks
            log.info("the compiler's cache cannot be locked: %s", error)
            return
        else:
            return
