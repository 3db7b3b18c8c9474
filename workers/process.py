"""Processes as their parent holds them: one for each worker, and the edge process.

`Processes` starts, watches and ends them; `Child` is one of them, with the socket to it.

An exit is noticed by the process's sentinel, a descriptor that becomes readable when the kernel closes it. Example: a
worker dies of SIGSEGV in the middle of a step. Its sentinel becomes readable; the last reports that it left in the
socket are read and still count; the process is reaped; and only then `on_exit` is called, so that no slot of it is
reused while the kernel may still write to it.
"""

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from scheduler.messages import WorkerId, WorkerReady
from workers.channel import (
    ExitReason,
    Order,
    Report,
    Stop,
    Trying,
    as_reason,
    is_possible,
    receive_report,
    send,
    socket_pair,
)
from workers.shared_memory import SlotLayout, SlotMemory

log = logging.getLogger("contour.pool")

# torch.multiprocessing's own context, the very object (a test holds that), taken from where torch takes it: importing
# torch here would keep the first worker waiting for 2.4 s, and cost 190 MiB, for tensors that are never sent.
SPAWN = multiprocessing.get_context("spawn")
STOP_SECONDS = 5.0  # that workers have to exit by themselves at shutdown
REAP_SECONDS = 0.01  # between two looks at a process that is exiting
LAST_REPORTS = 4096  # that an ended process may have left behind
REPORTS_AT_ONCE = 64  # of one worker, after which others have their turn
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # <linux/prctl.h>
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # that are sent to a whole group: by Ctrl+C, by `systemctl stop`


class Setup(Protocol):
    """The argument that a process is started with."""

    @property
    def name(self) -> str:
        """The name of the process in the log."""

    @property
    def main(self) -> Callable[[Any, socket.socket, SlotMemory], None]:
        """Its entry point."""


AnySetup = TypeVar("AnySetup", bound=Setup)


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """Why a process ended. `outside`: something other than its parent or the kernel's OOM killer killed it.

    `tried`: what it was trying then (`engine.trials`). `hopeless`: it reported that a new process would fail the same
    way.
    """

    reason: str
    outside: bool
    tried: tuple[str, ...] = ()
    hopeless: bool = False


class Child:
    """A started process, and the socket to it.

    Start it on the main thread: the kernel's parent-death signal is bound to the thread that forked.

    Raises OSError when the system has no process or descriptor left.
    """

    def __init__(self, context: SpawnContext, setup: Setup, memory: SlotMemory) -> None:
        self.channel, theirs = socket_pair()
        self._process = context.Process(target=setup.main, args=(setup, theirs, memory), name=setup.name)
        self.name = setup.name
        self._exit_reason = ""
        self._hopeless = False
        self._trying: tuple[str, ...] = ()
        self._layout = memory.layout
        self._killed_by_us = False
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

    def send(self, order: Order) -> bool:
        """Send an order; return False if the process does not take it: it is dead, or no longer reads."""
        try:
            send(self.channel, order)
        except OSError:
            return False
        return True

    def reports(self, limit: int = REPORTS_AT_ONCE) -> Iterator[Report]:
        """Yield the reports that have arrived, `limit` at most, without waiting. Ends at end of file too.

        A process that sends an impossible report is killed, and its further reports are ignored.
        """
        for _ in range(limit):
            if self._rejected:
                return
            try:
                report = receive_report(self.channel)
            except OSError:
                return
            except ValueError as error:
                self.reject(f"it sent an invalid report: {error}")
                return
            if report is None:
                return
            if not is_possible(report, self._layout):
                self.reject(f"it sent a {type(report).__name__} with impossible values")
                return
            if isinstance(report, ExitReason):
                self._exit_reason, self._hopeless = report.reason, report.hopeless
                continue
            if isinstance(report, Trying):
                self._trying = report.names
            self.loaded = self.loaded or isinstance(report, WorkerReady)
            yield report

    def reject(self, reason: str) -> None:
        """Kill it and ignore its further reports: its state is not what the pool thinks."""
        self._rejected, self._exit_reason = True, as_reason(reason)  # it may quote what the process sent
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL, which also ends a stopped process. It may have exited already."""
        self._killed_by_us = True
        self.ensure_killed()

    def ensure_killed(self) -> None:
        """Send SIGKILL after end of file on its socket. Nearly always it has exited by itself, for its own reason."""
        try:
            self._process.kill()
        except BaseException:
            with suppress(OSError):  # at end of file on its orders, a worker exits by itself
                self.channel.shutdown(socket.SHUT_WR)
            raise

    @property
    def ended(self) -> bool:
        """Whether `reap` need not wait. The kernel may be at work for a while after `sentinel` has become readable."""
        return self._process.exitcode is not None

    def reap(self) -> ProcessExit:
        """Collect the ended process, close its socket, and say why it ended. Call when `sentinel` is readable."""
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        self.channel.close()
        return ProcessExit(
            self._exit_reason or ending(code), self._ended_from_outside(code), self._trying, self._hopeless
        )

    def _ended_from_outside(self, code: int | None) -> bool:
        signalled = code in {-signal.SIGKILL, -signal.SIGTERM}
        starved = self._oom_kills is None or self._oom_kills != _oom_kills()
        return signalled and not (self._killed_by_us or self._exit_reason or starved)


def ending(code: int | None) -> str:
    """Describe how a process ended, by multiprocessing's exit code."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _oom_kills() -> int | None:
    """Return how many processes the kernel has killed for lack of memory so far; None where it does not say."""
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in counters.splitlines() if line.startswith("oom_kill ")]
    return int(found[0]) if found else None


# -------------------------------------------------------------------------------------------------------- all processes


class Processes(Generic[AnySetup]):
    """Starts and ends processes, at most one for each worker.

    `on_report` gets each report. If it raises, the worker is killed, as its state is not what the pool thinks.
    `on_exit` is called when a process has ended, after its last reports.
    """

    def __init__(
        self,
        setups: Mapping[WorkerId, AnySetup],
        layout: SlotLayout,
        on_report: Callable[[WorkerId, Report], None],
        on_exit: Callable[[WorkerId, ProcessExit], None],
    ) -> None:
        self.setups = dict(setups)  # of each worker's next process
        self._memories = {worker: SlotMemory.create(layout) for worker in setups}
        self._children: dict[WorkerId, Child] = {}
        self._on_report = on_report
        self._on_exit = on_exit

    def __getitem__(self, worker: WorkerId) -> Child:
        return self._children[worker]

    @property
    def ids(self) -> Mapping[WorkerId, int]:
        """Process ids of the workers that have a process."""
        return {worker: child.pid for worker, child in self._children.items()}

    def memory(self, worker: WorkerId) -> SlotMemory:
        """The memory that is shared with a worker's process."""
        return self._memories[worker]

    def spawn(self, worker: WorkerId) -> None:
        """Start a worker's process. When this raises, there is none."""
        loop = asyncio.get_running_loop()
        child = Child(SPAWN, self.setups[worker], self._memories[worker])
        try:
            loop.add_reader(child.channel, self._read, worker, child)
            loop.add_reader(child.sentinel, self._on_sentinel, worker, child)
        except BaseException:  # unwatched, it would never be reaped, and the next one needs the memory for itself
            self._unwatch(child)
            child.kill()
            child.reap()
            raise
        self._children[worker] = child
        log.info("Starting %s (process %d)", child.name, child.pid)

    def kill(self, worker: WorkerId) -> None:
        """End a worker's process at once. There is none if starting it has just failed."""
        if worker in self._children:
            self._children[worker].kill()

    def send(self, worker: WorkerId, order: Order) -> None:
        """Send an order. A process that does not take it is killed: it is dead or no longer reads."""
        child = self._children[worker]
        if not child.send(order):
            child.ensure_killed()  # the rest follows when its sentinel reports the exit

    def _read(self, worker: WorkerId, child: Child) -> None:
        if not self._take_reports(worker, child, REPORTS_AT_ONCE):  # readable with nothing to read: end of file
            asyncio.get_running_loop().remove_reader(child.channel)
            child.ensure_killed()  # its results could not be received

    def _take_reports(self, worker: WorkerId, child: Child, limit: int) -> bool:
        """Pass reports on. Return whether there were any."""
        received = False
        try:
            for report in child.reports(limit):
                received = True
                self._on_report(worker, report)
        except Exception as error:
            log.exception("Killing %s: its report was refused", child.name)
            child.reject(f"its report was refused: {error}")
        return received

    def _on_sentinel(self, worker: WorkerId, child: Child) -> None:
        self._unwatch(child)
        try:
            child.ensure_killed()  # it may have closed its sentinel without exiting
        finally:
            self._reap_when_ended(worker, child)

    def _reap_when_ended(self, worker: WorkerId, child: Child) -> None:
        """Wait without blocking the event loop: a GPU's driver may take a while to release a process."""
        if self._children.get(worker) is not child:  # `close` sees to it
            return
        if child.ended:
            self._take_reports(worker, child, LAST_REPORTS)
            del self._children[worker]
            self._on_exit(worker, child.reap())
        else:
            asyncio.get_running_loop().call_later(REAP_SECONDS, self._reap_when_ended, worker, child)

    def _unwatch(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.channel)
        loop.remove_reader(child.sentinel)

    async def close(self) -> None:
        """End all processes and free all memory."""
        ended = [asyncio.ensure_future(self._end(child)) for child in self._children.values()]
        self._children.clear()
        if ended:
            await asyncio.wait(ended)
        while self._memories:
            self._memories.popitem()[1].close()

    async def _end(self, child: Child) -> None:
        """Ask, wait, kill, reap. A process that still loads its model does not listen."""
        self._unwatch(child)
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(child.sentinel, gone.set)
        if not child.loaded or not child.send(Stop()):
            child.kill()
        try:
            await asyncio.wait_for(gone.wait(), STOP_SECONDS)
        except TimeoutError:
            child.kill()
            await gone.wait()  # SIGKILL cannot be refused
        loop.remove_reader(child.sentinel)
        child.reap()


# ------------------------------------------------------------------------------------------------ in the process itself


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block Ctrl+C for a process that is started within, until its `die_with_parent` ignores it.

    On a terminal Ctrl+C signals the whole group, and would end a process that still imports modules with a traceback.
    A process inherits blocked signals. multiprocessing blocks them for its own tracker, whose start unblocks them: so
    that is started before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent, and ignore the signals that end a whole group.

    The parent gets those too, and decides when this process ends.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def be_killed_first() -> None:
    """Have the kernel's OOM killer prefer this process to those that serve."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def set_process_name(name: str) -> None:
    """Name this process for `ps -o pid,comm` and `top`, which show 15 bytes: `/readyz` tells no process ids."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())
