"""A worker's process, or the edge process, as its parent holds it."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Protocol

from scheduler.messages import WorkerReady
from workers import wire
from workers.process import signals_blocked
from workers.reports import is_possible
from workers.slots import SlotMemory

REPORTS_AT_ONCE = 64  # of one worker, after which others have their turn


class Setup(Protocol):
    """What a process is started with, and gets as an argument."""

    @property
    def name(self) -> str:
        """What the log calls the process."""

    @property
    def main(self) -> Callable[[Any, socket.socket, SlotMemory], None]:
        """Its entry point."""


@dataclass(frozen=True, slots=True)
class End:
    """Why a process ended; `outside`: somebody else than its parent killed it, and not for want of memory.

    `tried`: what it was trying then (`engine.trials`). `hopeless`: it reported that the next process would end alike.
    """

    reason: str
    outside: bool
    tried: tuple[str, ...] = ()
    hopeless: bool = False


class Child:
    """A started process and the socket to it.

    Start it on the main thread: the kernel's parent-death signal is bound to the thread that forked.

    Raises OSError when the system has no process or descriptor left.
    """

    def __init__(self, context: SpawnContext, setup: Setup, memory: SlotMemory) -> None:
        self.channel, theirs = wire.channel()
        self._process = context.Process(target=setup.main, args=(setup, theirs, memory), name=setup.name)
        self.name = setup.name
        self._last_words = ""
        self._hopeless = False
        self._tries: tuple[str, ...] = ()
        self._layout = memory.layout
        self._condemned = False
        self._rejected = False
        self._oom_kills = _oom_kills()
        self.loaded = False
        with theirs:
            try:
                with signals_blocked():
                    self._process.start()
            except BaseException:
                self.channel.close()
                raise

    @property
    def pid(self) -> int:
        """Its process id."""
        pid = self._process.pid
        assert pid is not None  # it was started by the constructor
        return pid

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process has ended."""
        return self._process.sentinel

    def send(self, order: wire.Order) -> bool:
        """Send an order; return False if the process does not take it: it is dead, or no longer reads."""
        try:
            wire.send(self.channel, order)
        except OSError:
            return False
        return True

    def reports(self, limit: int = REPORTS_AT_ONCE) -> Iterator[wire.Report]:
        """Yield the reports that have arrived, `limit` at most, without waiting. Ends at end of file too.

        A process that reports what cannot be is killed, and no report of it counts any more.
        """
        for _ in range(limit):
            if self._rejected:
                return
            try:
                report = wire.receive_report(self.channel)
            except OSError:
                return
            except ValueError as error:
                self.reject(f"it sent what is no report: {error}")
                return
            if report is None:
                return
            if not is_possible(report, self._layout):
                self.reject(f"it sent a {type(report).__name__} with values that cannot be")
                return
            if isinstance(report, wire.Ending):
                self._last_words, self._hopeless = report.reason, report.hopeless
                continue
            if isinstance(report, wire.Trying):
                self._tries = report.names
            self.loaded = self.loaded or isinstance(report, WorkerReady)
            yield report

    def reject(self, reason: str) -> None:
        """Kill it, and take no further report of it: its state is not what the pool thinks."""
        self._rejected, self._last_words = True, wire.as_reason(reason)  # it may quote what the process sent
        self.kill()

    def kill(self) -> None:
        """SIGKILL, which also ends a stopped process. It may have ended already."""
        self._condemned = True
        self.hang_up()

    def hang_up(self) -> None:
        """SIGKILL after end of file on its socket: nearly always it has just ended by itself."""
        try:
            self._process.kill()
        except BaseException:
            with contextlib.suppress(OSError):  # a worker also ends by itself, at the end of its orders
                self.channel.shutdown(socket.SHUT_WR)
            raise

    @property
    def ended(self) -> bool:
        """Whether `reap` need not wait. The kernel may be at work for a while after `sentinel` has become readable."""
        return self._process.exitcode is not None

    def reap(self) -> End:
        """Collect the ended process, close its socket, and say why it ended. Call when `sentinel` is readable."""
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        self.channel.close()
        return End(self._last_words or ending(code), self._ended_from_outside(code), self._tries, self._hopeless)

    def _ended_from_outside(self, code: int | None) -> bool:
        signalled = code in {-signal.SIGKILL, -signal.SIGTERM}
        starved = self._oom_kills is None or self._oom_kills != _oom_kills()
        return signalled and not (self._condemned or self._last_words or starved)


def ending(code: int | None) -> str:
    """How a process ended, by its exit code as multiprocessing has it."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _oom_kills() -> int | None:
    """Processes that the kernel has killed for want of memory so far; None where it does not tell."""
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in counters.splitlines() if line.startswith("oom_kill ")]
    return int(found[0]) if found else None
