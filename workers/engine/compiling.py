"""Compiling the networks in the background, while they serve as they are."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeAlias

from workers.engine.batch import Size
from workers.engine.graphs import Fallbacks

log = logging.getLogger(__name__)

Target: TypeAlias = tuple[Size, int | None]  # a size of latents, and a bucket of its steps or, None, its VAE


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
