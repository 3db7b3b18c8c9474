"""`python -m tests.bench.watched` is `python -m app` that logs where its event loop is when it stalls.

A thread looks whether the loop turns. Where it does not for a while, it logs the stack of the loop's thread; a thread
that holds the interpreter's lock meanwhile is seen by its own stack, so those of other threads are logged too.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from unittest.mock import patch

from app.application import Application
from app.cli.serve import run
from tests.service.running import ROOT

LATE_SECONDS = 0.01  # without a turn, from which on it is a stall
PAUSE_SECONDS = 0.002
FRAMES = 3  # of each stack, from the innermost on
SITE_PACKAGES = "site-packages"
MARK = "The event loop stalled:"
IDLE = ("wait", "_worker", "_wait_for_tstate_lock", "_recv", "accept", "recv", "select", "get")


class LoopWatch(threading.Thread):
    """Watches one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(daemon=True)
        self._loop = loop
        self._watched = threading.get_ident()

    def run(self) -> None:
        """Log each stall once it is over, with the stacks that were seen."""
        with suppress(RuntimeError):  # the loop has been closed
            while True:
                self._watch_turn()
                time.sleep(PAUSE_SECONDS)

    def _watch_turn(self) -> None:
        clock, turned, stacks = time.pthread_getcpuclockid(self._watched), threading.Event(), []
        began, loop, process = time.monotonic(), time.clock_gettime(clock), time.process_time()
        self._loop.call_soon_threadsafe(turned.set)
        while not turned.wait(PAUSE_SECONDS):
            if time.monotonic() - began > LATE_SECONDS and (stack := self._stacks()) not in stacks:
                stacks.append(stack)
        if (seconds := time.monotonic() - began) > LATE_SECONDS:
            own, used = time.clock_gettime(clock) - loop, time.process_time() - process
            times = f"{used * 1e3:.0f} ms of processor time, {own * 1e3:.0f} of them its own, in {seconds * 1e3:.0f} ms"
            print(f"\n{MARK} {times}: " + " || ".join(stacks or ["?"]), file=sys.stderr, flush=True)

    def _stacks(self) -> str:
        frames = sys._current_frames()
        others = (frame for thread, frame in frames.items() if thread not in (self.ident, self._watched))
        texts = {_text(traceback.extract_stack(frame)) for frame in others} - {""}
        loop = _text(traceback.extract_stack(frames[self._watched]))
        return "; ".join([f"loop: {loop or 'in C'}", *(f"thread: {text}" for text in texts)])


def processor_ms(line: str) -> int:
    """Milliseconds of processor time that the process used during a stall."""
    return int(line.removeprefix(MARK).split()[0])


def _text(stack: traceback.StackSummary) -> str:
    """The innermost frames of a stack that are ours; empty for a thread that waits."""
    ours = [frame for frame in stack if SITE_PACKAGES not in frame.filename and str(ROOT) in frame.filename]
    inner = stack[-1]
    if inner.name in IDLE or not ours or ours[-1].name == "run":
        return ""
    last = ours[-FRAMES:] if inner is ours[-1] else [*ours[-FRAMES:], inner]
    return " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in last)


@contextmanager
def watched() -> Iterator[None]:
    """Event loops of applications are watched from their start on."""
    lifespan = Application._lifespan

    def watching(self: Application, app: object) -> object:
        LoopWatch(asyncio.get_running_loop()).start()
        return lifespan(self, app)  # type: ignore[arg-type]

    with patch.object(Application, "_lifespan", watching):
        yield


if __name__ == "__main__":
    with watched():
        sys.exit(run(sys.argv[1:]))
