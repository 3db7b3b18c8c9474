"""The shell around the scheduler: submissions, reports, exits and timers become events; it carries out commands.

It makes no decisions. All of it runs on one event loop, on the main thread.

Each command is carried out on its own. One that fails costs its job alone: the failure becomes an event, the commands
after it are carried out, and the timer is set. What can be checked before a job is submitted, such as whether it fits
into its slot, is checked before.
"""

import asyncio
import gc
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import assert_never

from scheduler import messages as m
from scheduler.core import IllegalEvent, Scheduler
from workers.channel import Device, Preview, Report, ReportEvent, Run, StatusChanged, summary
from workers.engine.contract import EngineStatus, Task
from workers.engine.trials import Crashes
from workers.jobs import JobResult, JobTable, ProgressCallback
from workers.process import Processes, ProcessExit
from workers.shared_memory import SlotLayout
from workers.worker_main import WorkerSetup

log = logging.getLogger("contour.pool")

COPIED_AT_ONCE = 2**21  # bytes of files, in one turn of the event loop; the file that exceeds it is copied whole
POSITION_SECONDS = 1.0  # between two reports of a waiting job's queue position
WORTH_LOGGING = 0.1  # of a change in what a step costs, relative
RETRY_SECONDS = 0.1  # before a failed command or event is tried again
TRIES = 20
DRAIN_GRACE = 5.0  # seconds after the end of a drain, when the pool ends whatever the scheduler says


class NothingServedError(RuntimeError):
    """All workers are quarantined; the message says why of each."""


Observer = Callable[[m.Event, Sequence[m.Command]], None]


class Pool:
    """Runs jobs on worker processes, one per device.

    `run` serves until a drain has ended. `generate` may be called before `run`.
    """

    def __init__(
        self,
        setups: Sequence[WorkerSetup],
        core: Scheduler,
        layout: SlotLayout,
        observe: Observer = lambda event, commands: None,
    ) -> None:
        self.core = core
        self.devices: dict[m.WorkerId, Device] = {}
        self._step_seconds: dict[m.WorkerId, float] = {}  # as last logged
        self.statuses: dict[m.WorkerId, EngineStatus] = {}  # how each worker's engine runs, as last reported
        self._processes = Processes(
            {setup.device.id: setup for setup in setups}, layout, self._on_report, self._on_exit
        )
        self._crashes = defaultdict[m.WorkerId, Crashes](Crashes)
        self._jobs = JobTable(layout.input_bytes)
        self._ids = count(1)
        self._observe = observe
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0  # when the timer is due, by time.monotonic
        self._copied = 0  # bytes, into slots, in this turn of the event loop
        self._drained = asyncio.Event()
        self._failure = ""

    async def run(self) -> None:
        """Start the workers and serve until drained; then end every process and free all memory.

        Raises NothingServedError if it ended because all workers are quarantined.
        """
        gc.freeze()  # what exists by now stays, so that no garbage collection needs to look at it again
        gc.enable()
        try:
            self._handle(m.Opened())
            await self._drained.wait()
        finally:
            await self._close()
        if self._failure:
            raise NothingServedError(self._failure)

    async def generate(self, task: Task, job: m.Job, on_progress: ProgressCallback | None = None) -> JobResult:
        """Make one image by the job's deadline; the job gets a new id. Cancelling this call cancels the job.

        Raises ValueError or OverflowError for a task that cannot be handed to a worker, and whatever the scheduler
        raises. Nothing of the job is left then.
        """
        job = replace(job, id=next(self._ids))
        result = self._jobs.add(job.id, task, on_progress)
        try:
            self._handle(m.Submitted(job))
            self._report_position(job.id)
            return await result
        except BaseException:
            self._jobs.drop(job.id)
            self._handle_or_retry(m.Cancelled(job.id))
            raise

    def drain(self, seconds: float) -> None:
        """Take no more jobs; `run` returns when all accepted ones are answered, at the latest after `seconds`."""
        asyncio.get_running_loop().call_later(seconds + DRAIN_GRACE, self._drained.set)
        self._handle_or_retry(m.Drain(time.monotonic() + seconds))

    def kill(self) -> None:
        """End every worker at once, after a drain without time has answered everybody."""
        for worker in self._processes.ids:
            self._processes.kill(worker)

    def fault(self, uuids: Collection[str], reason: str) -> None:
        """Quarantine the workers of a faulty GPU; `uuids` are NVML's of it and of its MIG instances."""
        for worker, device in list(self.devices.items()):
            if device.uuid in uuids:
                self._handle_or_retry(m.Faulted(worker, reason))

    @property
    def processes(self) -> Mapping[m.WorkerId, int]:
        """Process ids of the workers that have a process."""
        return self._processes.ids

    # ------------------------------------------------------------------------------------------------ events, commands

    def _handle(self, event: m.Event) -> None:
        """Hand an event to the scheduler and carry out its commands. Raises what the scheduler raises, nothing else."""
        failed = True
        try:
            commands = self.core.handle(time.monotonic(), event)
            failed = False
            self._notify_observer(event, commands)
            for command in commands:
                self._carry_out(command)
        finally:
            self._set_timer(failed=failed)

    def _handle_or_retry(self, event: m.Event, tries: int = TRIES) -> None:
        """Handle an event whose sender can do nothing about an error. It must not get lost, so it is tried again."""
        try:
            self._handle(event)
        except IllegalEvent:
            log.exception("The scheduler refused %s", event)  # nothing has changed, and would not next time
        except Exception:
            log.exception("The scheduler failed on %s; %d more tries", event, tries)
            if tries > 0:
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._handle_or_retry, event, tries - 1)

    def _notify_observer(self, event: m.Event, commands: Sequence[m.Command]) -> None:
        try:
            self._observe(event, commands)
        except Exception:
            log.exception("The observer of events failed on %s", type(event).__name__)

    def _set_timer(self, *, failed: bool) -> None:
        """Set the one timer to when the scheduler wants to be woken, or leave it as it is if it is due sooner.

        After a failure it is woken soon, as it may hold back commands, but not at once, as it may fail again.
        """
        now = time.monotonic()
        when = now + RETRY_SECONDS if failed else self.core.next_wakeup
        if when is None or (self._timer is not None and self._wakes_at <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = when
        self._timer = asyncio.get_running_loop().call_later(max(0.0, when - now), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle_or_retry(m.Tick(), 0)

    def _carry_out(self, command: m.Command, tries: int = TRIES) -> None:
        try:
            self._perform(command)
        except Exception as error:
            log.exception("Could not carry out %s", command)
            self._on_failure(command, error, tries)

    def _perform(self, command: m.Command) -> None:
        match command:
            case m.Spawn(worker):
                self._processes.spawn(worker)
            case m.Kill(worker, reason):
                log.error("Killing worker %s: %s", worker, reason)
                self._processes.kill(worker)
            case m.Start():
                self._start(command)
            case m.Cancel(worker):
                self._processes.send(worker, command)
            case m.Reply(job, outcome):
                self._reply(job, outcome)
            case m.Exit(failure):
                self._exit(failure)
            case _ as unreachable:
                assert_never(unreachable)

    def _on_failure(self, command: m.Command, error: Exception, tries: int) -> None:
        """Turn a command that failed into an event, which the scheduler gets after its present commands."""
        loop = asyncio.get_running_loop()
        match command:
            case m.Spawn(worker):  # no process, descriptor or memory is left: it is tried again, as after any exit
                loop.call_soon(self._handle_or_retry, m.WorkerExited(worker, f"cannot be started: {error}"))
            case m.Kill():
                loop.call_later(RETRY_SECONDS, self._kill_again, command, tries - 1)
            case m.Start():
                loop.call_soon(self._handle_or_retry, _never_started(command))
            case m.Cancel():
                pass  # the slot comes free when the image is finished
            case m.Reply(job):
                self._jobs.resolve(
                    job, m.Broken("the result could not be copied from its worker; see the server's log")
                )
            case m.Exit(failure):
                self._exit(failure)
            case _ as unreachable:
                assert_never(unreachable)

    def _kill_again(self, command: m.Kill, tries: int) -> None:
        """Try again, unless the worker has a new process by now."""
        if tries > 0 and self._view(command.worker).state is m.WorkerState.ENDING:
            self._carry_out(command, tries)

    def _start(self, command: m.Start) -> None:
        """Copy a task into its slot and tell the worker; in the loop's next turn, if much was copied in this one.

        Copying a large file takes 10 ms, and one event may start as many jobs as there are slots.
        """
        pending, loop = self._jobs[command.job], asyncio.get_running_loop()
        if self._copied > COPIED_AT_ONCE:
            loop.call_soon(self._start_later, command)
            return
        if not self._copied:
            loop.call_soon(self._forget_copied)
        self._copied += len(pending.image)
        self._processes.memory(command.worker).write(command.slot, pending.image, pending.params)
        self._jobs.started(command)
        # Last: once the worker has this message it uses the slot, so nothing may fail after it.
        run = Run(command.slot, command.generation, len(pending.image), len(pending.params))
        self._processes.send(command.worker, run)

    def _start_later(self, command: m.Start) -> None:
        if command.job in self._jobs:
            self._carry_out(command)
        else:  # its client has left, and no worker will report that the slot is empty
            self._handle_or_retry(_never_started(command))

    def _forget_copied(self) -> None:
        self._copied = 0

    def _reply(self, job: m.JobId, outcome: m.Outcome) -> None:
        image = b""
        if isinstance(outcome, m.Done) and self._jobs.is_awaited(job):
            image = self._processes.memory(outcome.worker).read(outcome.slot, outcome.image.byte_count)
        self._jobs.resolve(job, outcome, image)

    def _exit(self, failure: str) -> None:
        self._failure = failure
        self._drained.set()

    def _report_position(self, job: m.JobId) -> None:
        """Now and again, until the job ends: it may wait once more, if its worker is lost."""
        if self._jobs.is_followed(job):
            if (position := self.core.queue_position(job, time.monotonic())) is not None:
                self._jobs.publish(job, position)
            asyncio.get_running_loop().call_later(POSITION_SECONDS, self._report_position, job)

    # ------------------------------------------------------------------------------------------------ from the workers

    def _on_report(self, worker: m.WorkerId, report: Report) -> None:
        # The name comes from the process: check it before anything else, and do not quote it.
        if isinstance(report, ReportEvent) and report.worker != worker:
            raise ValueError("it reports for another worker")
        if isinstance(report, m.Stepped):
            self._jobs.stepped(report)
        if isinstance(report, ReportEvent):
            self._handle(report)
        match report:
            case Device():
                self.devices[worker] = report
            case m.WorkerReady(_, costs):
                seconds = self._step_seconds[worker] = costs.step_seconds[0]
                log.info("Worker %s is ready on %s: %.3f s per step", worker, self.devices[worker].name, seconds)
            case m.Measured(_, costs):
                log.log(self._log_level(worker, costs), "Worker %s: %.3f s per step", worker, costs.step_seconds[0])
            case Preview():
                self._jobs.previewed(worker, report)
            case StatusChanged(status):
                self.statuses[worker] = status
                log.info("Worker %s: %s", worker, summary(status))

    def _log_level(self, worker: m.WorkerId, costs: m.Costs) -> int:
        """Log new costs of a worker if they have changed: an idle one measures itself every minute."""
        seconds, known = costs.step_seconds[0], self._step_seconds.get(worker)
        if known is not None and abs(seconds - known) <= WORTH_LOGGING * known:
            return logging.DEBUG
        self._step_seconds[worker] = seconds
        return logging.INFO

    def _on_exit(self, worker: m.WorkerId, end: ProcessExit) -> None:
        """Have the jobs of a worker whose process has ended go elsewhere."""
        status = self.statuses.pop(worker, EngineStatus())
        log.error("Worker %s exited: %s", worker, end.reason)
        if end.tried:
            self._do_without(worker, end.tried, "while it tried")
        elif not end.outside and (blamed := self._crashes[worker].blame(time.monotonic(), dict(status.graphs))):
            self._do_without(worker, blamed, "twice with")
        self._handle_or_retry(m.WorkerExited(worker, end.reason, end.outside, end.hopeless))
        if (view := self._view(worker)).state is m.WorkerState.QUARANTINED:
            log.error("Worker %s is quarantined for a while: %s", worker, view.reason)

    def _do_without(self, worker: m.WorkerId, names: tuple[str, ...], how: str) -> None:
        log.error("Worker %s exited %s %s; restarting without it", worker, how, " and ".join(names))
        setup = self._processes.setups[worker]
        self._processes.setups[worker] = replace(setup, without=setup.without | frozenset(names))

    def _view(self, worker: m.WorkerId) -> m.WorkerView:
        return next(view for view in self.core.workers() if view.id == worker)

    async def _close(self) -> None:
        """End everything. Jobs that no `Exit` came to answer are answered with `Draining`."""
        if self._timer is not None:
            self._timer.cancel()
        for job in self._jobs:
            self._jobs.resolve(job, m.Draining())
        await self._processes.close()


def _never_started(command: m.Start) -> m.Failed:
    reason = "the request could not be handed to a worker; see the server's log"
    return m.Failed(command.worker, command.slot, command.generation, reason, m.Blame.SERVICE)
