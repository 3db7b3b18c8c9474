"""The shell around the scheduler: submissions, pipes, deaths and timers become events, and commands are carried out.

It owns every pipe and process and decides nothing. All of it runs on one event loop, on the main thread.
"""

import asyncio
import gc
import logging
import multiprocessing
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from scheduler import messages as m
from scheduler.core import Scheduler
from workers import wire
from workers.child import Child
from workers.engine.contract import Condition, Task
from workers.process import Setup
from workers.slots import SlotLayout, SlotMemory
from workers.watching import Watch, Watching

log = logging.getLogger("contour.pool")

# torch.multiprocessing's own context, the very object (a test holds that), taken from where torch takes it: importing
# torch here would keep the first worker waiting for 2.4 s, and cost 190 MiB, for tensors that are never sent.
SPAWN = multiprocessing.get_context("spawn")
STANDING_SECONDS = 1.0  # between two words to who watches a job that waits
STOP_SECONDS = 5.0  # given to idle workers to end by themselves at shutdown


class NothingServedError(RuntimeError):
    """No worker is left that could make a picture; the message says why of each."""


Observer = Callable[[m.Event, Sequence[m.Command]], None]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client asks for beside the task, as in `scheduler.messages.Job`. `deadline`: seconds, time.monotonic."""

    deadline: float
    work: float = 1.0
    client: str = ""
    length: float = 1.0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """How a job ended; `picture` is the file, empty unless the outcome is `Done`."""

    outcome: m.Outcome
    picture: bytes = b""


@dataclass(frozen=True, slots=True)
class Device:
    """What a worker said of its device when it became ready; `uuid` is NVML's, None on a CPU."""

    name: str
    uuid: str | None


@dataclass(frozen=True, slots=True)
class _Waiting:
    task: Task
    answer: "asyncio.Future[Answer]"


class Pool:
    """Runs jobs on worker processes, one per device.

    `run` keeps it going until `drain` has ended; `generate` may be called from the moment it is constructed.
    """

    def __init__(
        self,
        setups: Sequence[Setup],
        core: Scheduler,
        layout: SlotLayout,
        observe: Observer = lambda event, commands: None,
    ) -> None:
        self.core = core
        self.devices: dict[m.WorkerId, Device] = {}
        self.conditions: dict[m.WorkerId, Condition] = {}  # how each worker's engine runs, where there is news of it
        self._setups = {setup.device.id: setup for setup in setups}
        self._memories = {worker: SlotMemory.create(layout) for worker in self._setups}
        self._children: dict[m.WorkerId, Child] = {}
        self._waiting: dict[m.JobId, _Waiting] = {}
        self._watching = Watching()
        self._last_job = 0
        self._observe = observe
        self._timer: asyncio.TimerHandle | None = None
        self._drained = asyncio.Event()
        self._failure = ""

    async def run(self) -> None:
        """Start the workers and serve until drained; then end every process and let go of all memory.

        Raises NothingServedError if it ended because all workers are out of service.
        """
        gc.freeze()  # what is there by now never dies: no collection of garbage need look at it again
        self._handle(m.Opened())
        try:
            await self._drained.wait()
        finally:
            await self._close()
        if self._failure:
            raise NothingServedError(self._failure)

    async def generate(self, task: Task, terms: Terms, watch: Watch | None = None) -> Answer:
        """Make one picture by its deadline, and tell `watch` how it goes. Cancelling this call cancels the job."""
        self._last_job += 1
        job = m.Job(self._last_job, terms.deadline, terms.work, terms.client, terms.length, terms.priority)
        waiting = _Waiting(task, asyncio.get_running_loop().create_future())
        self._waiting[job.id] = waiting
        if watch is not None:
            self._watching.add(job.id, watch)
        self._handle(m.Submitted(job))
        if watch is not None:
            self._tell_standing(job.id)
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            self._watching.drop(job.id)
            self._handle(m.Cancelled(job.id))
            raise

    def drain(self, seconds: float) -> None:
        """Take nothing new; `run` returns when all that was accepted is answered, at the latest after `seconds`."""
        self._handle(m.Drain(time.monotonic() + seconds))

    def fault(self, uuids: Collection[str], reason: str) -> None:
        """A GPU is unwell: whatever works on it, by NVML's UUID of it or of a part of it, is taken out of service."""
        for worker, device in list(self.devices.items()):
            if device.uuid in uuids:
                self._handle(m.Faulted(worker, reason))

    @property
    def processes(self) -> Mapping[m.WorkerId, int]:
        """Process ids of the workers that have a process."""
        return {worker: child.pid for worker, child in self._children.items()}

    # ------------------------------------------------------------------------------------------------ events, commands

    def _handle(self, event: m.Event) -> None:
        commands = self.core.handle(time.monotonic(), event)
        self._observe(event, commands)
        for command in commands:
            self._carry_out(command)
        self._arm()

    def _arm(self) -> None:
        """Set the one timer to when the scheduler wants to be woken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (when := self.core.next_wakeup) is not None:
            delay = max(0.0, when - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._handle, m.Tick())

    def _carry_out(self, command: m.Command) -> None:
        match command:
            case m.Spawn(worker):
                self._spawn(worker)
            case m.Kill(worker, reason):
                log.error("worker %s is killed: %s", worker, reason)
                self._children[worker].kill()
            case m.Start():
                self._start(command)
            case m.Cancel(worker, slot, generation):
                self._send(worker, wire.Drop(slot, generation))
            case m.Reply(job, outcome):
                self._reply(job, outcome)
            case m.Exit(failure):
                self._failure = failure
                self._drained.set()
            case _ as unreachable:
                assert_never(unreachable)

    def _spawn(self, worker: m.WorkerId) -> None:
        loop = asyncio.get_running_loop()
        try:
            child = Child(SPAWN, self._setups[worker], self._memories[worker])
        except OSError as error:  # no process, descriptor or memory to be had: it is tried again, as after any loss
            log.error("worker %s cannot be started: %s", worker, error)
            loop.call_soon(self._handle, m.WorkerLost(worker, f"cannot be started: {error}"))
            return
        self._children[worker] = child
        loop.add_reader(child.channel, self._read, worker, child)
        loop.add_reader(child.sentinel, self._bury, worker, child)
        log.info("worker %s starts (process %d)", worker, child.pid)

    def _start(self, command: m.Start) -> None:
        task = self._waiting[command.job].task
        wish = wire.pack(task)
        end = len(task.picture)
        with self._memories[command.worker].input(command.slot) as room:
            room[:end] = task.picture
            room[end : end + len(wish)] = wish
        self._watching.started(command)
        self._send(command.worker, wire.Run(command.slot, command.generation, end, len(wish)))

    def _send(self, worker: m.WorkerId, order: wire.Order) -> None:
        child = self._children[worker]
        if not child.send(order):
            child.hang_up()  # its death, noticed by the sentinel, puts things right

    def _reply(self, job: m.JobId, outcome: m.Outcome) -> None:
        answer = self._waiting.pop(job).answer
        self._watching.drop(job)
        if answer.done():  # cancelled: nobody waits
            return
        picture = b""
        if isinstance(outcome, m.Done):
            picture = bytes(self._memories[outcome.worker].output(outcome.slot)[: outcome.image.length])
        answer.set_result(Answer(outcome, picture))

    def _tell_standing(self, job: m.JobId) -> None:
        """Now and again while it waits: it may do so once more, if its worker is lost."""
        if job in self._watching:
            if (standing := self.core.standing(job)) is not None:
                self._watching.waits(job, standing)
            asyncio.get_running_loop().call_later(STANDING_SECONDS, self._tell_standing, job)

    # ------------------------------------------------------------------------------------------------ from the workers

    def _read(self, worker: m.WorkerId, child: Child) -> None:
        heard = False
        for report in child.reports():
            heard = True
            self._report(worker, report)
        if not heard:  # readable with nothing to read: end of file
            asyncio.get_running_loop().remove_reader(child.channel)
            child.hang_up()  # whatever it still does, nobody can hear of it

    def _report(self, worker: m.WorkerId, report: wire.Report) -> None:
        match report:
            case wire.Ready(costs, device, uuid):
                self.devices[worker] = Device(device, uuid)
                log.info("worker %s is ready on %s: %.3f s a step", worker, device, costs.step_seconds[0])
                self._handle(m.WorkerReady(worker, costs))
            case wire.Measured(costs):
                log.info("worker %s now takes %.3f s a step", worker, costs.step_seconds[0])
                self._handle(m.Measured(worker, costs))
            case wire.Stepped(done):
                self._watching.stepped(worker, report)
                self._handle(m.Stepped(worker, tuple((slot, taken) for slot, taken, _ in done)))
            case wire.Preview():
                self._watching.previewed(worker, report)
            case wire.Finished(slot, generation, length, prepare, denoise, decode, encode):
                image = m.Image(length, prepare, denoise, decode, encode)
                self._handle(m.Finished(worker, slot, generation, image))
            case wire.Failed(slot, generation, reason, blame):
                self._handle(m.Failed(worker, slot, generation, reason, blame))
            case wire.Released(slot, generation):
                self._handle(m.Released(worker, slot, generation))
            case wire.Changed(condition):
                self._note(worker, condition)
            case wire.Ending():  # kept by the child as its last words
                pass
            case _ as unreachable:
                assert_never(unreachable)

    def _note(self, worker: m.WorkerId, condition: Condition) -> None:
        self.conditions[worker] = condition
        log.info(
            "worker %s runs with %d attention kernels chosen, %d graphs in %.0f MiB, %d fallbacks",
            worker,
            len(condition.attention),
            sum(number for _, number in condition.graphs),
            condition.graph_bytes / 2**20,
            sum(number for _, number in condition.fallbacks),
        )

    def _bury(self, worker: m.WorkerId, child: Child) -> None:
        """The process has ended. What it managed to report still counts; then its jobs go elsewhere."""
        self._forget(child)
        for report in child.reports():
            self._report(worker, report)
        del self._children[worker]
        self.conditions.pop(worker, None)
        end = child.reap()
        log.error("worker %s is lost: %s", worker, end.reason)
        self._handle(m.WorkerLost(worker, end.reason, end.outside))
        view = next(view for view in self.core.workers() if view.id == worker)
        if view.state is m.WorkerState.OUT:
            log.error("worker %s is out of service for a while: %s", worker, view.reason)

    def _forget(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.channel)
        loop.remove_reader(child.sentinel)

    # ------------------------------------------------------------------------------------------------------ the end

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
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
