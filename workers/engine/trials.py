"""What is being tried for the first time, told to the pool before it can kill this process.

A crash in a kernel, a driver or a compiler cannot be caught. So the name of what is tried is told first, and taken back
when it has gone well. What is still being tried when the process ends is not tried by its successor: the pool hands the
names on (`Setup.without`). Example: the worker tells "compiled networks", torch's compiler ends it by SIGSEGV, and the
next process of that device serves with the networks as they are.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import TypeAlias, get_args

from workers.engine.config import AttentionKernel

Tell: TypeAlias = Callable[[tuple[str, ...]], None]


def attention(kernel: str) -> str:
    """The name of the trial of an attention kernel."""
    return f"attention kernel {kernel}"


COMPILING, GRAPHS = "compiled networks", "CUDA graphs"
TRIALS = frozenset({COMPILING, GRAPHS, *map(attention, get_args(AttentionKernel))})


class Trials:
    """Tells what is being tried. `without`: what ended the last process of this device. For several threads.

    Where one is part of another, as kernels are tried while a graph is recorded, the inner one alone is told.
    """

    def __init__(self, tell: Tell = lambda names: None, without: Collection[str] = ()) -> None:
        self.without = frozenset(without)
        self.settle: Callable[[], object] = lambda: None
        """Waits for the device, and raises if that has failed. Set by who has a device."""
        self._tell = tell
        self._running: dict[int, list[str]] = {}  # by thread, the innermost last
        self._lock = Lock()
        self._lost = False

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Try something. Whatever it raises is passed on; where the device fails with it, the trial does not end."""
        running = self._running.setdefault(get_ident(), [])
        running.append(name)
        self._tell_all()
        try:
            yield
        finally:
            self._settle()
            running.pop()
            self._tell_all()

    def _settle(self) -> None:
        try:
            self.settle()
        except BaseException:
            self._lost = True  # what is tried from now on fails as well, and is not to blame
            raise

    def _tell_all(self) -> None:
        with self._lock:
            if not self._lost:
                innermost = [names[-1] for names in list(self._running.values()) if names]
                self._tell(tuple(dict.fromkeys(innermost)))
