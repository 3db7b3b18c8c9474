"""Compiling the networks in the background, while images are made without, and switching to the result.

torch's compiler times kernels to choose among them. A step that runs meanwhile spoils its figures, and each timing
waits for all that the device does. So timings and steps hold one lock by turns, in the order in which they ask. And of
all workers of a machine one compiles at a time: the next finds most of its kernels in their common cache.

A compiled function replaces the plain one only when it is proven (`Upgradable`). Everything that can fail comes first:
the compiled function runs in the thread that will use it, its result is compared with the plain one's, it is recorded,
and the recording is replayed. Then both are timed, as they will run. Only then is anything changed: not where the
compiled function is slower. It is removed again if it fails later.
"""

import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from workers.engine.budget import FairSemaphore
from workers.engine.graphs import Fallbacks, Graphs, Work, first_line
from workers.engine.kernel_probe import CACHE, digest_of_kernels
from workers.engine.plan import Size
from workers.engine.trials import COMPILING, GRAPHS
from workers.folders import no_follow

if TYPE_CHECKING:
    from workers.engine.runtime import ModelFunctions

log = logging.getLogger(__name__)

F = TypeVar("F")
T = TypeVar("T")
Serving: TypeAlias = Callable[[], AbstractContextManager[bool]]  # as in `runtime.Faster`
Target: TypeAlias = tuple[Size, int | None]  # a size of latents, with a bucket of its steps or None for its VAE

_COMPILED_AT_MOST = 1000  # passes times shapes; torch wants a limit
LOCK_TIMEOUT_S = 900.0  # for another worker's compiler
HANG_S = 3600.0  # of one target, after which nothing more is expected of the compiler
_POLL_S = 0.5
_TURNS = 5  # of calls to compare the speed of two functions; running images wait for them
_LONG_S = 1.0  # of two calls, which are then compared once more at most
_CLEARLY = 1.2  # times as slow: less than that is noise, which should not make the workers of a machine differ
_ROUNDINGS = 32  # allowed as relative error: half precision needs 5, and wrong results are off by hundreds
_FLOAT8_NOISE = 0.5  # of layers in float8, see `quantisation.py`: needed are 0.15, with random weights


class TorchCompile:
    """torch.compile as a `runtime.Faster`; `make` returns functions that it compiles at their first calls."""

    everywhere = False

    def __init__(self, make: "Callable[[], ModelFunctions]", *, automatic: bool) -> None:
        self.automatic = automatic
        self.functions = cache(make)
        self._turn = threading.Lock()
        self._at_work = False

    def prepare(self) -> None:
        """There is nothing to prepare."""

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """Without a limit: torch counts all passes at all shapes as recompilations of one function and allows 8.

        torch's cache knows our operators by their names alone. So what was compiled with other kernels of ours has
        another tag.
        """
        from torch._dynamo import config
        from torch.compiler import config as caching

        tagged = caching.patch(cache_key_tag=digest_of_kernels())  # type: ignore[attr-defined]
        self._at_work = True  # first, so that this waits for one call at most
        try:
            with self._turn, config.patch(recompile_limit=_COMPILED_AT_MOST), tagged:
                yield
        finally:
            self._at_work = False

    @contextmanager
    def serving(self) -> Iterator[bool]:
        """Not while the compiler is at work, whatever the size: torch would mix the two up.

        While one thread traces, torch takes a call of compiled networks in any other for a part of that, and it counts
        the compiled frames of a call in one number for all threads. In either case it raises an error.
        """
        mine = not self._at_work and self._turn.acquire(blocking=False)
        try:
            yield mine
        finally:
            if mine:
                self._turn.release()

    def trying(self) -> AbstractContextManager[None]:
        """Compile nothing: in the steps' thread that would stop all images for minutes."""
        return torch.compiler.set_stance("fail_on_recompile")  # type: ignore[no-any-return]


class DeviceLock:
    """A fair, reentrant lock: waiting threads get it in the order in which they asked."""

    def __init__(self) -> None:
        self._semaphore = FairSemaphore(1)
        self._holder: int | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Use the device exclusively."""
        me = threading.get_ident()
        if self._holder == me:
            yield
            return
        with self._semaphore.hold(1):
            self._holder = me
            try:
                yield
            finally:
                self._holder = None


def hold_while_timing(hold: Callable[[], AbstractContextManager[None]]) -> None:
    """Make torch's compiler hold a lock around each of its timings on a GPU. This imports the compiler."""
    from torch._inductor.runtime import benchmarking

    register = getattr(benchmarking, "set_gpu_benchmark_lock_context", None)
    if register is not None:  # since torch 2.13
        register(hold)
        return
    timer: Any = benchmarking.benchmarker  # shared by all of the compiler
    timing = timer.benchmark_gpu

    @wraps(timing)
    def locked(*arguments: Any, **options: Any) -> Any:
        with hold():
            return timing(*arguments, **options)

    timer.benchmark_gpu = locked


@contextmanager
def one_worker_at_a_time(timeout: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of the compiler's cache, or go on without it where another holds it longer than `timeout` seconds.

    The kernel releases it with the process, however that ends. The file's time says since when it has been held, so a
    holder that hangs is not waited for again and again. Without a cache, or where it cannot be locked, this does not
    wait.
    """
    file = _lock_file()
    try:
        if file is not None:
            _wait_for(file, timeout)
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
        log.info("The compiler's cache cannot be locked: %s", error)
        return None


def _wait_for(file: int, timeout: float) -> None:
    waits = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.utime(file)
        except BlockingIOError:
            held = time.time() - os.fstat(file).st_mtime
            if waits and not 0 <= held < timeout:  # a clock that was set back is no reason to wait
                log.warning("Another worker has been compiling for %.0f s; this one no longer waits for it", held)
                return
            if not waits:  # also where the time is old: the holder may be about to set it
                log.info("Another worker is compiling; this one waits, as it can use most of the result")
                waits = True
            time.sleep(_POLL_S)
        except OSError as error:  # a file system without locks
            log.info("The compiler's cache cannot be locked: %s", error)
            return
        else:
            return


@dataclass(frozen=True, eq=False, slots=True)
class _Compiled:
    target: Target
    taken: threading.Event = field(default_factory=threading.Event)


class Compiler:
    """Compiles one target after the other in its own thread, each when the engine has switched to the last.

    `compile_one` compiles, with `lock` held so that nothing is recorded meanwhile. `before` is entered first, without
    the lock, to wait for other workers.
    """

    def __init__(
        self,
        compile_one: Callable[[Target], None],
        lock: threading.Lock,
        fallbacks: Fallbacks,
        before: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._compile_one = compile_one
        self._lock = lock
        self._fallbacks = fallbacks
        self._before = before
        self._targets: queue.Queue[Target] = queue.Queue()
        self._compiled: queue.SimpleQueue[_Compiled] = queue.SimpleQueue()
        self._asked: set[Target] = set()
        self._thread: threading.Thread | None = None
        self._current: tuple[Target, float] | None = None  # that is being compiled, and since when
        self._hangs = False

    def ask(self, target: Target) -> None:
        """Compile a target, once."""
        if target in self._asked:
            return
        self._asked.add(target)
        self._targets.put(target)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
            self._thread.start()

    def forget(self, size: Size) -> None:
        """Let the targets of a size be asked for again, as its workspace is new."""
        self._asked = {target for target in self._asked if target[0] != size}

    def ready(self) -> Iterator[Target]:
        """Yield what has been compiled since the last call. The engine switches to each before it asks for the next."""
        self._notice_hang()
        while True:
            try:
                compiled = self._compiled.get_nowait()
            except queue.Empty:
                return
            yield compiled.target
            compiled.taken.set()
            self._targets.task_done()

    def idle(self) -> bool:
        """Whether every target is in use or given up, or the compiler hangs."""
        return self._hangs or not self._targets.unfinished_tasks

    def _notice_hang(self) -> None:
        """Count once that the compiler does not end. A thread cannot be ended, so the images go on without it."""
        current = self._current
        if current is not None and not self._hangs and time.monotonic() - current[1] > HANG_S:
            self._hangs = True
            detail = "compiling does not end; images go on without it, and new sizes without graphs, until a restart"
            self._fallbacks.note("compile: hangs", f"{describe(current[0])}: {detail}")

    def _run(self) -> None:
        while True:
            self._compile(self._targets.get())

    def _compile(self, target: Target) -> None:
        began = time.monotonic()
        try:
            with self._before(), self._lock:
                self._current = target, time.monotonic()
                self._compile_one(target)
        except BaseException as error:  # noqa: BLE001 - images are made without it, only slower
            self._fallbacks.note("compile: failed", f"{describe(target)}: {type(error).__name__}: {error}")
            self._targets.task_done()
            return
        finally:
            self._current, self._hangs = None, False
        log.info("%s compiled in %.1f s", describe(target), time.monotonic() - began)
        compiled = _Compiled(target)
        self._compiled.put(compiled)
        compiled.taken.wait()  # nothing is compiled while the engine tries it


def describe(target: Target) -> str:
    """A target in words, for the log."""
    (height, width), bucket = target
    return f"latents of {height}x{width}, {'VAE' if bucket is None else f'batch of {bucket}'}"


# ----------------------------------------------------------------------------------------------------------- the switch


class WrongResultError(ArithmeticError):
    """A function ran, but computed something else."""


class Seconds(NamedTuple):
    """The time of a call of a plain function, and of the one that could replace it."""

    plain: float
    faster: float

    @property
    def worth_it(self) -> bool:
        """Whether the other one is not clearly slower."""
        return self.faster <= _CLEARLY * self.plain


def timed(work: Callable[[], T], wait: Work) -> tuple[float, T]:
    """The seconds that work takes, and its result. `wait` waits for the device."""
    wait()
    began = perf_counter()
    result = work()
    wait()
    return perf_counter() - began, result


def compare(plain: Work, faster: Work, wait: Work, turns: int) -> Seconds:
    """Time two works that have run before, in turns until the second is worth it, or else the last of so many.

    Other work on the machine only slows a call down. So one good turn counts more than bad ones.
    """
    for _ in range(turns):
        seconds = Seconds(timed(plain, wait)[0], timed(faster, wait)[0])
        if seconds.worth_it:
            break
    return seconds


def always() -> AbstractContextManager[bool]:
    """The faster function may be called at any time. A `Serving`."""
    return nullcontext(True)


class Upgradable(Generic[F]):
    """A function that a faster one can replace. `work` runs it, and is what is recorded.

    `before_recording`: as in `Graphs.of`.
    """

    def __init__(
        self,
        graphs: Graphs,
        key: Hashable,
        plain: F,
        work: Callable[[F], object],
        before_recording: Work = lambda: None,
    ) -> None:
        self.upgraded = False
        """Whether the faster function is in use."""
        self.kept = False
        """Whether the plain function has been kept, as the other was slower."""
        self._graphs = graphs
        self._key = key
        self._plain = plain
        self._function = plain
        self._work = work
        self._before_recording = before_recording
        self._serving: Serving = always
        self._unused = False  # the faster function, so far

    def prepare(self) -> Work:
        """The fastest way to run the function: its graph, or the function itself."""
        to_blame = COMPILING if self.upgraded else GRAPHS
        return self._graphs.of(self._key, partial(self._work, self._function), self._before_recording, to_blame)

    def offer(self, faster: F, result: Callable[[F], Tensor], dtype: torch.dtype, serving: Serving = always) -> Seconds:
        """Use a faster function from now on, if it agrees with the plain one and is not slower; return what both take.

        `result` computes images with either [images, ...], each of which must agree; `dtype` is what they compute in.
        Raises WrongResultError, and whatever the function or its recording raises, and then has changed nothing.
        """
        wait, present = self._graphs.trials.synchronize, self.prepare()
        (new, actual), (old, expected) = (timed(partial(result, each), wait) for each in (faster, self._plain))
        for image, wanted in zip(actual, expected, strict=True):
            check(image, wanted, dtype)
        seconds = Seconds(old, new)

        def worth_it(work: Work) -> bool:
            nonlocal seconds
            is_long = sum(seconds) > _LONG_S
            if not (is_long and seconds.worth_it):
                seconds = compare(present, work, wait, 1 if is_long else _TURNS)
            return seconds.worth_it

        taken = self._graphs.replace(self._key, partial(self._work, faster), self._before_recording, worth_it)
        if taken:
            self._function, self.upgraded, self._unused, self._serving = faster, True, True, serving
        self.kept = not taken
        return seconds

    def run(self, use: Callable[[Work], T], *, real: bool = True) -> T:
        """Return the result of `use`, which is passed what to run.

        A faster function that fails is given up, and `use` called again with the plain one. Its first `real` use is
        still a trial. Raises torch.OutOfMemoryError, and what the plain function raises.
        """
        calls_it = self.upgraded and self._key not in self._graphs
        with self._serving() if calls_it else always() as allowed:
            return self._run(use, real=real) if allowed else use(partial(self._work, self._plain))

    def _run(self, use: Callable[[Work], T], *, real: bool) -> T:
        trials = self._graphs.trials
        try:
            with trials.of(COMPILING) if real and self._unused else nullcontext():
                result = use(self.prepare())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self.upgraded:
                raise
            with trials.of(COMPILING):  # if the device has failed, the faster function is to blame
                self._go_back(error)
                return use(self.prepare())
        self._unused = self._unused and not real
        return result

    def _go_back(self, error: Exception) -> None:
        self._function, self.upgraded, self._unused = self._plain, False, False
        self._graphs.drop(self._key)
        self._graphs.fallbacks.note("compile: given up", f"{self._key} runs uncompiled: {first_line(error)}")


def check(actual: Tensor, expected: Tensor, dtype: torch.dtype, roundings: int = _ROUNDINGS) -> None:
    """Raise WrongResultError if a result differs from the expected one by more than rounding in `dtype` explains."""
    # In float32 a kernel may use TF32, whose mantissa is that of float16.
    allowed = roundings * max(torch.finfo(dtype).eps, torch.finfo(torch.float16).eps)
    allowed = _FLOAT8_NOISE if dtype == torch.float8_e4m3fn else allowed
    difference, norm = (float(each.norm()) for each in (actual.float() - expected.float(), expected.float()))
    if actual.shape != expected.shape or not difference <= allowed * norm:  # NaN fails this comparison, too
        raise WrongResultError(f"it is off by {difference:.1e} of {norm:.1e}; {allowed:.0%} is allowed")
