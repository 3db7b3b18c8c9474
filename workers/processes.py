"""Worker processes, or the edge process, and the memory that each of them shares with the front end."""

import asyncio
import logging
import multiprocessing
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from scheduler.messages import WorkerId
from workers import wire
from workers.child import REPORTS_AT_ONCE, Child, End, Setup
from workers.slots import SlotLayout, SlotMemory

log = logging.getLogger("contour.pool")

# torch.multiprocessing's own context, the very object (a test holds that), taken from where torch takes it: importing
# torch here would keep the first worker waiting for 2.4 s, and cost 190 MiB, for tensors that are never sent.
SPAWN = multiprocessing.get_context("spawn")
STOP_SECONDS = 5.0  # that workers have to exit by themselves at shutdown
REAP_SECONDS = 0.01  # between two looks at a process that is exiting

LAST_REPORTS = 4096  # that an ended process may have left behind

AnySetup = TypeVar("AnySetup", bound=Setup)


class Processes(Generic[AnySetup]):
    """Starts and ends processes, at most one for each worker.

    `on_report` gets each report. If it raises, the worker is killed, as its state is not what the pool thinks.
    `on_exit` is called when a process has ended, after its last reports.
    """

    def __init__(
        self,
        setups: Mapping[WorkerId, AnySetup],
        layout: SlotLayout,
        on_report: Callable[[WorkerId, wire.Report], None],
        on_exit: Callable[[WorkerId, End], None],
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
        except BaseException:  # nobody would see this process exit, and the next one needs the memory for itself
            self._forget(child)
            child.kill()
            child.reap()
            raise
        self._children[worker] = child
        log.info("Starting %s (process %d)", child.name, child.pid)

    def kill(self, worker: WorkerId) -> None:
        """End a worker's process at once. There is none if starting it has just failed."""
        if worker in self._children:
            self._children[worker].kill()

    def send(self, worker: WorkerId, order: wire.Order) -> None:
        """Send an order. A process that does not take it is killed: it is dead or no longer reads."""
        child = self._children[worker]
        if not child.send(order):
            child.hang_up()  # its exit, noticed by the sentinel, puts things right

    def _read(self, worker: WorkerId, child: Child) -> None:
        if not self._take_reports(worker, child, REPORTS_AT_ONCE):  # readable with nothing to read: end of file
            asyncio.get_running_loop().remove_reader(child.channel)
            child.hang_up()  # whatever it still does, nobody can hear of it

    def _take_reports(self, worker: WorkerId, child: Child, limit: int) -> bool:
        """Pass reports on. Return whether there were any."""
        heard = False
        try:
            for report in child.reports(limit):
                heard = True
                self._on_report(worker, report)
        except Exception as error:
            log.exception("Killing %s: its report was refused", child.name)
            child.reject(f"its report was refused: {error}")
        return heard

    def _on_sentinel(self, worker: WorkerId, child: Child) -> None:
        self._forget(child)
        try:
            child.hang_up()  # it may have closed its sentinel without exiting
        finally:
            self._when_ended(worker, child)

    def _when_ended(self, worker: WorkerId, child: Child) -> None:
        """Wait without blocking the event loop: a GPU's driver may take a while to let go of a process."""
        if self._children.get(worker) is not child:  # `close` sees to it
            return
        if child.ended:
            self._take_reports(worker, child, LAST_REPORTS)
            del self._children[worker]
            self._on_exit(worker, child.reap())
        else:
            asyncio.get_running_loop().call_later(REAP_SECONDS, self._when_ended, worker, child)

    def _forget(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.channel)
        loop.remove_reader(child.sentinel)

    async def close(self) -> None:
        """End all processes and let go of all memory."""
        ended = [asyncio.ensure_future(self._end(child)) for child in self._children.values()]
        self._children.clear()
        if ended:
            await asyncio.wait(ended)
        while self._memories:
            self._memories.popitem()[1].close()

    async def _end(self, child: Child) -> None:
        """Ask, wait, kill, reap. A process that still loads its model does not listen."""
        self._forget(child)
        gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(child.sentinel, gone.set)
        if not child.loaded or not child.send(wire.Stop()):
            child.kill()
        try:
            await asyncio.wait_for(gone.wait(), STOP_SECONDS)
        except TimeoutError:
            child.kill()
            await gone.wait()  # SIGKILL cannot be refused
        loop.remove_reader(child.sentinel)
        child.reap()
