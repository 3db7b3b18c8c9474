"""The worker processes of a pool, and the memory that each of them shares with it."""

import asyncio
import logging
import multiprocessing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from scheduler.messages import WorkerId
from workers import wire
from workers.child import Child, End
from workers.process import Setup
from workers.slots import SlotLayout, SlotMemory

log = logging.getLogger("contour.pool")

# torch.multiprocessing's own context, the very object (a test holds that), taken from where torch takes it: importing
# torch here would keep the first worker waiting for 2.4 s, and cost 190 MiB, for tensors that are never sent.
SPAWN = multiprocessing.get_context("spawn")
STOP_SECONDS = 5.0  # given to idle workers to end by themselves at shutdown
REAP_SECONDS = 0.01  # between two looks at a process that is about to end

OnChild = Callable[[WorkerId, Child], None]


class Processes:
    """Starts and ends worker processes, at most one for each worker.

    `on_report` is called when a process has something to say, or has hung up; `on_exit` when it has ended and only
    `reap` is left to do.
    """

    def __init__(self, setups: Sequence[Setup], layout: SlotLayout, on_report: OnChild, on_exit: OnChild) -> None:
        self._setups = {setup.device.id: setup for setup in setups}
        self._memories = {worker: SlotMemory.create(layout) for worker in self._setups}
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
        child = Child(SPAWN, self._setups[worker], self._memories[worker])
        try:
            loop.add_reader(child.channel, self._on_report, worker, child)
            loop.add_reader(child.sentinel, self._on_sentinel, worker, child)
        except BaseException:  # nobody would see this process end, and the next one needs the memory for itself
            self._forget(child)
            child.kill()
            child.reap()
            raise
        self._children[worker] = child
        log.info("Starting worker %s (process %d)", worker, child.pid)

    def do_without(self, worker: WorkerId, names: Collection[str]) -> None:
        """Have a worker's next processes not try these again (`engine.trials`)."""
        setup = self._setups[worker]
        self._setups[worker] = replace(setup, without=setup.without | frozenset(names))

    def kill(self, worker: WorkerId) -> None:
        """End a worker's process at once. It may have none, where starting it has just failed."""
        if worker in self._children:
            self._children[worker].kill()

    def send(self, worker: WorkerId, order: wire.Order) -> None:
        """Send an order. A process that does not take it is dead or no longer reads: it is killed."""
        child = self._children[worker]
        if not child.send(order):
            child.hang_up()  # its death, noticed by the sentinel, puts things right

    def stop_reading(self, child: Child) -> None:
        """Take no more reports of a process while it lives."""
        asyncio.get_running_loop().remove_reader(child.channel)

    def reap(self, worker: WorkerId) -> End:
        """Collect a process that has ended."""
        return self._children.pop(worker).reap()

    def _on_sentinel(self, worker: WorkerId, child: Child) -> None:
        self._forget(child)
        try:
            child.hang_up()  # an ended process does not mind; one that has only closed its sentinel is not waited for
        finally:
            self._when_ended(worker, child)

    def _when_ended(self, worker: WorkerId, child: Child) -> None:
        """Wait without holding up the event loop: a GPU's driver may take a while to let go of a process."""
        if self._children.get(worker) is not child:  # `close` sees to it
            return
        if child.ended:
            self._on_exit(worker, child)
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
        for memory in self._memories.values():
            memory.close()

    async def _end(self, child: Child) -> None:
        """Ask, wait, kill: the process is gone and reaped afterwards. One that still loads does not listen."""
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
