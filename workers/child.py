"""One worker process, as its parent holds it."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from pathlib import Path

import msgspec

from workers import wire
from workers.process import Setup, main
from workers.slots import SlotMemory


@dataclass(frozen=True, slots=True)
class End:
    """Why a process ended; `outside`: it was killed by somebody who is not its parent, and not for want of memory."""

    reason: str
    outside: bool


class Child:
    """A started worker process and the socket to it.

    Start it on the main thread: the kernel's parent-death signal is bound to the thread that forked.

    Raises OSError when the system has no process or descriptor left.
    """

    def __init__(self, context: SpawnContext, setup: Setup, memory: SlotMemory) -> None:
        self.channel, theirs = wire.channel()
        self._process = context.Process(target=main, args=(setup, theirs, memory), name=f"worker {setup.device.id}")
        self._last_words = ""
        self._condemned = False
        self._oom_kills = _oom_kills()
        self.loaded = False
        with theirs:
            try:
                self._process.start()
            except OSError:
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
        """False when it does not take the order: it is dead, or it no longer reads and must be killed."""
        try:
            wire.send(self.channel, order)
        except OSError:
            return False
        return True

    def reports(self) -> Iterator[wire.Report]:
        """All reports there are now, without waiting. Ends at end of file too: the sentinel tells of the death."""
        while True:
            try:
                report = wire.receive_report(self.channel)
            except (BlockingIOError, ConnectionError):
                return
            except msgspec.DecodeError as error:
                self._last_words = f"it sent what is no message: {error}"
                self.kill()
                return
            if report is None:
                return
            if isinstance(report, wire.Ending):
                self._last_words = report.reason
                continue
            self.loaded = self.loaded or isinstance(report, wire.Ready)
            yield report

    def kill(self) -> None:
        """SIGKILL; also ends a stopped process. Ending an ended one is fine."""
        self._condemned = True
        self._process.kill()

    def hang_up(self) -> None:
        """SIGKILL, as nothing comes through its socket: nearly always because it has just ended."""
        self._process.kill()

    def reap(self) -> End:
        """Collect the ended process, close its socket, and say why it ended. Call when `sentinel` is readable."""
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        self.channel.close()
        return End(self._last_words or ending(code), self._ended_from_outside(code))

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
