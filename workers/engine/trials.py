"""Trials: optimisations that run for the first time, reported to the pool before they can kill this process.

A crash in a kernel, a driver or a compiler cannot be caught. So the worker reports the name of what it tries first, and
takes it back when that went well. A successor does not try what was still being tried when the process ended: the pool
passes the names on (`Setup.without`). Example: the worker reports "compiled networks", torch's compiler dies of
SIGSEGV, and the next process of that device serves without compiled networks.

A fault may also show later, when the trial is over. So where two processes of a device in a row crash with the same
optimisation in use, the next does without that, too (`Crashes`): first without compiled networks, then without graphs.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import TypeAlias, get_args

from workers.engine.config import AttentionKernel

Report: TypeAlias = Callable[[tuple[str, ...]], None]


def attention(kernel: str) -> str:
    """The name of the trial of an attention kernel."""
    return f"attention kernel {kernel}"


COMPILING, GRAPHS, CONVOLUTIONS = "compiled networks", "CUDA graphs", "timed convolutions"
GROUP_NORM = "group norm kernels"
TRIALS = frozenset({COMPILING, GRAPHS, CONVOLUTIONS, GROUP_NORM, *map(attention, get_args(AttentionKernel))})


_CRASHES_WITHIN_S = 3600.0
_IN_USE = {COMPILING: ("steps compiled", "VAE compiled"), GRAPHS: ("steps", "VAE", "hint", "text")}  # by their kinds


class Crashes:
    """The crashes of a device's processes that tried nothing, and what is to blame for them."""

    def __init__(self) -> None:
        self._last: tuple[str, float] | None = None  # an optimisation that was in use, and when

    def blame(self, now: float, graphs: Mapping[str, int]) -> tuple[str, ...]:
        """Note a crash of a process whose `EngineStatus` had these graphs; return what the next should do without."""
        used = next((name for name, kinds in _IN_USE.items() if any(graphs.get(kind) for kind in kinds)), "")
        last, self._last = self._last, (used, now)
        again = last is not None and last[0] == used and now - last[1] <= _CRASHES_WITHIN_S
        return (used,) if used and again else ()


class Trials:
    """Reports what is being tried. `without`: what ended the last process of this device. Thread-safe.

    Of nested trials, such as a kernel that is tried while a graph is recorded, only the inner one is reported. Before
    it begins, the device finishes what the outer one gave it, so that the blame for that stays with the outer one.
    """

    def __init__(self, report: Report = lambda names: None, without: Collection[str] = ()) -> None:
        self.without = frozenset(without)
        self.synchronize: Callable[[], object] = lambda: None
        """Waits for the device, and raises if it has failed. Set by the owner of a device."""
        self._report = report
        self._running: dict[int, list[str]] = {}  # by thread, the innermost last
        self._blamed = ""
        self._lock = Lock()
        self._lost = False

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Try something. Errors pass through; if the device fails with one, the trial does not end."""
        running = self._running.setdefault(get_ident(), [])
        if running:
            self._synchronize()
        running.append(name)
        self._report_all()
        try:
            yield
            if self._blamed == name:
                self._blamed = ""
        finally:
            self._synchronize()
            running.pop()
            self._report_all()

    def blame(self, name: str) -> None:
        """Report what ends this process by an error that passes through here next, unless it is tried with success."""
        self._blamed = name
        self._report_all()

    def _synchronize(self) -> None:
        try:
            self.synchronize()
        except BaseException:
            self._lost = True  # what is tried from now on fails too, and is not to blame
            raise

    def _report_all(self) -> None:
        with self._lock:
            if not self._lost:
                innermost = [names[-1] for names in list(self._running.values()) if names]
                self._report((self._blamed,) if self._blamed else tuple(dict.fromkeys(innermost)))
