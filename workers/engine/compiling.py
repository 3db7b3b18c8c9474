"""Compiling the networks in the background, while they serve as they are.

torch's compiler times kernels to choose among them. A step that runs meanwhile spoils its figures, and each of its
timings waits for all that the device does. So timings and steps take turns, in the order in which they ask. And of all
workers of a machine one compiles at a time: the next finds most of what it needs in their common cache.
"""

import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias

from workers.engine.apart import CACHE
from workers.engine.batch import Size
from workers.engine.budget import Lane
from workers.engine.graphs import Fallbacks
from workers.folders import no_follow

log = logging.getLogger(__name__)

Target: TypeAlias = tuple[Size, int | None]  # a size of latents, and a bucket of its steps or, None, its VAE

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


@dataclass(frozen=True, eq=False, slots=True)
class _Compiled:
    target: Target
    taken: threading.Event = field(default_factory=threading.Event)


class Compiler:
    """Compiles one target after the other in a thread of its own, each when the engine has taken over the last.

    `compile_one` does it; it holds the `turn`, so that nothing is recorded meanwhile. It waits for what is `before`,
    the turn of this worker among others, without holding that.
    """

    def __init__(
        self,
        compile_one: Callable[[Target], None],
        turn: threading.Lock,
        fallbacks: Fallbacks,
        before: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._compile_one = compile_one
        self._turn = turn
        self._fallbacks = fallbacks
        self._before = before
        self._targets: queue.Queue[Target] = queue.Queue()
        self._compiled: queue.SimpleQueue[_Compiled] = queue.SimpleQueue()
        self._asked: set[Target] = set()
        self._thread: threading.Thread | None = None

    def ask(self, target: Target) -> None:
        """Have a target compiled, once."""
        if target in self._asked:
            return
        self._asked.add(target)
        self._targets.put(target)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
            self._thread.start()

    def ready(self) -> Iterator[Target]:
        """What has been compiled since it was last asked; each is to be taken over before the next is drawn."""
        while True:
            try:
                compiled = self._compiled.get_nowait()
            except queue.Empty:
                return
            yield compiled.target
            compiled.taken.set()
            self._targets.task_done()

    def idle(self) -> bool:
        """Whether all that was asked for is taken over, or given up."""
        return not self._targets.unfinished_tasks

    def _run(self) -> None:
        while True:
            self._compile(self._targets.get())

    def _compile(self, target: Target) -> None:
        began = time.monotonic()
        try:
            with self._before(), self._turn:
                self._compile_one(target)
        except BaseException as error:  # noqa: BLE001 - images are made without it, only slower
            self._fallbacks.note("compile: failed", f"{name(target)}: {type(error).__name__}: {error}")
            self._targets.task_done()
            return
        log.info("%s compiled in %.1f s", name(target), time.monotonic() - began)
        compiled = _Compiled(target)
        self._compiled.put(compiled)
        compiled.taken.wait()  # while the engine tries it, nothing is compiled


def name(target: Target) -> str:
    """A target in words."""
    (height, width), bucket = target
    return f"latents of {height}x{width}, {'VAE' if bucket is None else f'batch of {bucket}'}"
