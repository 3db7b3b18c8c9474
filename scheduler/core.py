"""The scheduler is a pure state machine: events in, commands out. It reads no clock and does no I/O.

Every accepted job gets exactly one reply. An example with one worker of one slot, where jobs 1 and 2 take 1.1 s each:

    | time  | event                  | commands                          |                                   |
    |-------|------------------------|-----------------------------------|-----------------------------------|
    | 0.0 s | Opened                 | Spawn(gpu0)                       | the worker loads its model        |
    | 0.5 s | Submitted(1)           |                                   | job 1 waits for a ready worker    |
    | 6.0 s | WorkerReady(gpu0)      | Start(1, gpu0, slot 0)            |                                   |
    | 6.2 s | Submitted(2)           |                                   | job 2 waits for a free slot       |
    | 7.1 s | Finished(gpu0, slot 0) | Reply(1, Done), Start(2, gpu0, 0) | the slot is free again            |
    | 7.5 s | WorkerExited(gpu0)     |                                   | job 2 is a suspect and waits      |
    | 8.0 s | Tick                   | Spawn(gpu0)                       | the backoff of 0.5 s is over      |

The state of a worker after each event. "Alarm" is the time at which a worker has loaded or been silent for too long, or
at which its pause is over; "hopeless" is an exit after which the next process would exit as well. A dash means that the
event is illegal, or cannot happen.

    | state       | Opened  | WorkerReady | Measured | Faulted     | WorkerExited | hopeless    | alarm   |
    |-------------|---------|-------------|----------|-------------|--------------|-------------|---------|
    | NEW         | LOADING | -           | -        | NEW         | -            | -           | -       |
    | LOADING     | -       | READY       | -        | ENDING      | BACKOFF      | QUARANTINED | ENDING  |
    | READY       | -       | -           | READY    | ENDING      | BACKOFF      | QUARANTINED | ENDING  |
    | ENDING      | -       | ENDING      | ENDING   | ENDING      | BACKOFF      | QUARANTINED | -       |
    | BACKOFF     | -       | -           | -        | QUARANTINED | -            | -           | LOADING |
    | QUARANTINED | -       | -           | -        | QUARANTINED | -            | -           | LOADING |

A worker is ENDING between `Kill` and the exit of its process. It is QUARANTINED after its exit if its device is faulty,
or if it has exited `quarantine_after` times without finishing an image. A job that ran on a worker that exited is a
suspect: it is tried again, alone on a worker, so that no other job is lost if it crashes that one as well.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import count
from typing import assert_never

from msgspec.structs import replace

from scheduler import messages as m
from scheduler.errors import BrokenInvariantError, IllegalEvent, require
from scheduler.limits import Limits
from scheduler.messages import Command, Costs, Event, Job, Outcome, WaitReason, WorkerId, WorkerState, WorkerView
from scheduler.placement import Placement
from scheduler.queue import FairQueue, JobState
from scheduler.workers import Worker, Workers

__all__ = ["BrokenInvariantError", "IllegalEvent", "Scheduler"]

CRASH_COST, OUTSIDE_EXIT_COST = 5, 1
"""Retry cost of a job whose worker crashed, and of one whose worker was killed from outside, which it hardly causes."""
WAITS_FOR_A_PLACE = {WaitReason.BATCH_SLOWER, WaitReason.SOONER_ELSEWHERE, WaitReason.IN_TIME_ELSEWHERE}


class Scheduler:
    """Decides which worker runs which job, and when.

    Feed it events and carry out the commands it returns, in order. Jobs that are submitted before `Opened` wait. After
    `Exit`, every `Submitted` is answered with `Reply(Draining)`, and nothing else happens.
    """

    def __init__(self, workers: Sequence[WorkerId], limits: Limits) -> None:
        self._limits = limits
        self._workers = Workers(workers, limits)
        self._queue = FairQueue()
        self._placement = Placement(self._queue, self._workers, limits)
        self._jobs: dict[m.JobId, JobState] = {}  # all that have no reply yet
        self._deadlines: list[tuple[float, m.JobId]] = []  # of these jobs, sorted
        self._running: dict[m.JobId, JobState] = {}  # those in a slot, the oldest first
        self._held_worker: Worker | None = None  # gets no new jobs, so that it becomes empty for a suspect
        self._generations = count(1)
        self._opened = False
        self._drain_end: float | None = None  # None until it drains
        self._failure = ""  # why the service ends, if that was not asked for
        self._exited = False
        self._last_retry_at = 0.0  # the latest time at which a refused client was told to come back
        self._wait_reason: WaitReason | None = None
        self._commands: list[Command] = []  # the answer to the present event

    def handle(self, now: float, event: Event) -> list[Command]:
        """Process one event at `now` (seconds, monotonic) and return the commands to carry out, in order.

        Raises:
            IllegalEvent: the event cannot happen in the current state. Nothing has changed.
        """
        if self._exited:  # even then a job gets its reply
            return [m.Reply(event.job.id, m.Draining())] if isinstance(event, m.Submitted) else []
        if self._opened and isinstance(event, m.Opened):
            raise IllegalEvent("it was opened before")
        self._placement.clear_cache()
        self._process(now, event)
        self._placement.clear_cache()
        # Only after the event: an image that is done is delivered, even if its deadline passes in this moment.
        self._expire_deadlines(now)
        self._run_alarms(now)
        self._end_drain(now)
        if not (isinstance(event, m.Stepped) and self._waits_for_a_place(now, self._workers[event.worker])):
            self._place(now)
        self._exit_when_drained()
        commands, self._commands = self._commands, []
        return commands

    # ------------------------------------------------------------------------------------------------------- properties

    @property
    def next_wakeup(self) -> float | None:
        """When to send the next `Tick`, unless another event comes first. It may be early, and have no effect."""
        first = self._deadlines[0][0] if self._deadlines else None
        waits_for_faster = self._wait_reason is WaitReason.SOONER_ELSEWHERE
        stops_waiting_at = self._placement.stops_waiting_at if waits_for_faster else None
        times = (first, self._workers.next_alarm(), self._drain_end, stops_waiting_at)
        return None if self._exited else min([time for time in times if time is not None], default=None)

    @property
    def queue_depth(self) -> int:
        """The number of waiting jobs."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """The number of running jobs."""
        return len(self._running)

    @property
    def ready(self) -> bool:
        """Whether a worker is ready."""
        return bool(self._workers.ready)

    @property
    def draining(self) -> bool:
        """Whether new jobs are refused because the service ends."""
        return self._drain_end is not None

    @property
    def wait_reason(self) -> WaitReason | None:
        """Why the next job waits; None if none waits."""
        return self._wait_reason

    @property
    def predicted_seconds(self) -> float | None:
        """Seconds of one nominal image alone on the fastest worker; None until a worker has measured itself."""
        return min([worker.seconds_alone() for worker in self._workers if worker.measured], default=None)

    def queue_position(self, job: m.JobId, now: float) -> m.QueuePosition | None:
        """The expected position and wait of a waiting job; None if it does not wait."""
        state = self._jobs.get(job)
        if state is None or state.assignment is not None:
            return None
        before = self._queue.jobs_before(state)
        work = sum([each.load for each in before])
        return m.QueuePosition(len(before), self._placement.seconds_to_start(work, self._oldest, now))

    def workers(self) -> list[WorkerView]:
        """All workers, in the order they were given."""
        return [worker.view() for worker in self._workers]

    # ---------------------------------------------------------------------------------------------------------- events

    def _process(self, now: float, event: Event) -> None:  # noqa: C901, PLR0912 - one line for each event
        match event:
            case m.Stepped(worker, done):
                self._workers.on_step(now, self._workers[worker], done)
            case m.Submitted(job):
                self._submit(now, job)
            case m.Finished() | m.Failed() | m.Released():
                self._free_slot(now, event)
            case m.Cancelled(job_id):
                # It may have been answered already, when the cancellation and the reply cross.
                if job_id in self._jobs:
                    self._abort(self._jobs[job_id], m.Abandoned())
            case m.WorkerReady(worker, costs):
                self._on_worker_ready(now, self._workers[worker], costs)
            case m.Measured(worker, costs):
                self._update_costs(self._workers[worker], costs)
            case m.Faulted(worker, reason):
                self._quarantine(now, self._workers[worker], reason)
            case m.WorkerExited(worker):
                self._on_worker_exit(now, self._workers[worker], event)
            case m.Tick():
                pass
            case m.Drain(until):
                self._drain_end = until if self._drain_end is None else min(until, self._drain_end)
            case m.Opened():
                self._opened = True
                for each in self._workers:
                    self._spawn(now, each)
            case _ as unreachable:
                assert_never(unreachable)

    def _submit(self, now: float, job: Job) -> None:
        if job.id in self._jobs:
            raise IllegalEvent(f"job {job.id} was submitted before")
        self._expire_deadlines(now)  # expired jobs must not take up places in the queue
        state = JobState(job, now, self._placement.load(job, now))
        if (refusal := self._refusal(now, state)) is not None:
            self._commands.append(m.Reply(job.id, refusal))
            return
        self._jobs[job.id] = state
        insort(self._deadlines, (job.deadline, job.id))
        self._queue.add(state)

    def _refusal(self, now: float, job: JobState) -> Outcome | None:
        if self.draining:
            return m.Draining()
        next_deadline = self._deadlines[0][0] if self._deadlines else None
        refusal = self._placement.admit(now, job, next_deadline, self._oldest)
        if isinstance(refusal, m.Rejected | m.QuotaExceeded):
            return replace(refusal, retry_after=self._staggered_retry(now, job, refusal.retry_after))
        return refusal

    def _staggered_retry(self, now: float, job: JobState, seconds: float) -> float:
        """Seconds after which a refused client should retry: one after the other, or most would be refused again.

        The times reach one full queue ahead; later ones would be guesses.
        """
        if not self._workers.known:
            return seconds
        interval, soonest = job.load / self._placement.forecast(now).throughput, now + seconds
        after_others = self._last_retry_at + interval if self._last_retry_at > now else soonest
        self._last_retry_at = min(max(soonest, after_others), soonest + self._limits.max_queue * interval)
        return self._last_retry_at - now

    def _free_slot(self, now: float, event: m.Finished | m.Failed | m.Released) -> None:
        assignment = self._workers[event.worker].assignment(event.slot, event.generation)
        if assignment is None:
            return  # a late report of a former process
        if assignment.job is not None:
            self._resolve(event, assignment.job)
        self._workers.free_slot(now, assignment, finished=isinstance(event, m.Finished))

    def _resolve(self, event: m.Finished | m.Failed | m.Released, job: JobState) -> None:
        """Answer a job, unless it ran out of memory: alone on a worker, it may have enough."""
        outcome = _outcome(event, job)
        if isinstance(event, m.Failed) and event.blame is m.Blame.MEMORY:
            assert job.assignment is not None
            self._workers.detach(job.assignment)
            self._try_alone([job], event.worker, CRASH_COST, outcome)
        else:
            self._reply(job, outcome)

    def _on_worker_ready(self, now: float, worker: Worker, costs: Costs) -> None:
        if worker.state is WorkerState.ENDING:
            return  # it became ready after it was killed
        if worker.state is not WorkerState.LOADING:
            raise IllegalEvent(f"{worker.id} cannot become ready in state {worker.state}")
        if costs.steps < 1 or not costs.step_seconds:
            raise IllegalEvent(f"{worker.id} has no step or no slot")
        _check_sizes(worker, costs)
        self._workers.on_ready(now, worker, costs)

    def _update_costs(self, worker: Worker, costs: Costs) -> None:
        if worker.state is WorkerState.ENDING:
            return  # sent before it was killed
        if worker.state is not WorkerState.READY:
            raise IllegalEvent(f"{worker.id} cannot have measured itself in state {worker.state}")
        known = worker.cost_model.costs
        if (costs.steps, len(costs.step_seconds)) != (known.steps, len(known.step_seconds)):
            raise IllegalEvent(f"{worker.id} cannot change its steps or slots while it is ready")
        _check_sizes(worker, costs)
        self._workers.update_costs(worker, costs)

    def _on_worker_exit(self, now: float, worker: Worker, event: m.WorkerExited) -> None:
        if worker.state in {WorkerState.NEW, WorkerState.BACKOFF, WorkerState.QUARANTINED}:
            raise IllegalEvent(f"{worker.id} has no process to lose")
        jobs = self._workers.on_exit(now, worker, event)
        self._try_alone(jobs, worker.id, OUTSIDE_EXIT_COST if event.outside else CRASH_COST)
        self._end_if_all_are_quarantined(now)

    def _quarantine(self, now: float, worker: Worker, reason: str) -> None:
        match worker.state:
            case WorkerState.LOADING | WorkerState.READY:
                worker.history.device_fault = reason
                self._kill(now, worker, reason)
            case WorkerState.ENDING:
                worker.history.device_fault = reason
            case WorkerState.BACKOFF | WorkerState.QUARANTINED:
                self._workers.quarantine(now, worker, reason)
                self._end_if_all_are_quarantined(now)
            case WorkerState.NEW:
                pass  # its process will report the fault again
            case _ as unreachable:
                assert_never(unreachable)

    def _end_if_all_are_quarantined(self, now: float) -> None:
        """End the service if all workers are quarantined: its supervisor can restart it, here or elsewhere."""
        self._run_alarms(now)  # a worker whose pause is over is spawned again, so it is not out any more
        self._failure = self._workers.failure
        if self._failure:
            self._drain_end = now

    def _try_alone(self, jobs: list[JobState], worker: WorkerId, cost: int, outcome: Outcome | None = None) -> None:
        """Retry each of these jobs alone on a worker.

        A job that has used up its tries is answered with `outcome`; without one, that it crashes workers.
        """
        for job in jobs:
            job.losses, job.retry_cost, job.lost_on = job.losses + 1, job.retry_cost + cost, worker
            del self._running[job.job.id]
        self._queue.put_back(jobs)
        for job in jobs:
            if job.retry_cost >= CRASH_COST * self._limits.attempts:
                self._reply(job, outcome or m.WorkerCrash(job.losses))

    # ---------------------------------------------------------------------------------------------------------- alarms

    def _expire_deadlines(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            self._abort(self._jobs[self._deadlines[0][1]], m.Expired())

    def _end_drain(self, now: float) -> None:
        if self._drain_end is not None and self._drain_end <= now:
            for job in list(self._jobs.values()):
                self._reply(job, m.Draining())

    def _run_alarms(self, now: float) -> None:
        while due := self._workers.take_due_alarms(now):
            for worker in due:
                self._on_alarm(now, worker)

    def _on_alarm(self, now: float, worker: Worker) -> None:
        match worker.state:
            case WorkerState.BACKOFF | WorkerState.QUARANTINED:
                worker.history.restarts += 1
                self._spawn(now, worker)
            case WorkerState.LOADING:
                self._kill(now, worker, f"not ready after {self._limits.load_timeout:g} s")
            case WorkerState.READY:
                # Heartbeats do not move the alarm, so it may be too early.
                silent_since = worker.times.last_heartbeat
                worker.alarm = silent_since + self._workers.heartbeat_timeout(worker)
                if worker.alarm <= now:
                    self._kill(now, worker, f"silent for {now - silent_since:.1f} s")
            case WorkerState.NEW | WorkerState.ENDING:
                raise BrokenInvariantError(f"{worker.id} is {worker.state} and has an alarm")
            case _ as unreachable:
                assert_never(unreachable)

    def _spawn(self, now: float, worker: Worker) -> None:
        self._workers.spawn(now, worker)
        self._commands.append(m.Spawn(worker.id))

    def _kill(self, now: float, worker: Worker, reason: str) -> None:
        self._workers.end(now, worker)
        self._commands.append(m.Kill(worker.id, reason))

    def _exit_when_drained(self) -> None:
        if self.draining and not self._jobs:
            self._exited = True
            self._commands.append(m.Exit(self._failure))

    # ------------------------------------------------------------------------------------------------------- placement

    @property
    def _oldest(self) -> JobState | None:
        return next(iter(self._running.values()), None)

    def _place(self, now: float) -> None:
        suspect, other = self._place_suspects(now), self._place_others(now)
        self._wait_reason = suspect if other is None else other

    def _waits_for_a_place(self, now: float, stepped: Worker) -> bool:
        """Whether a step cannot start a job: if it is better to wait for a place, it stays so until an image leaves.

        Not if another job is next by now, or if a worker is empty: then a job may have waited for a faster one for
        long enough.
        """
        waits = self._wait_reason in WAITS_FOR_A_PLACE and not self._commands and not stepped.decoding_work
        waits = waits and all(each.slots for each in self._workers.ready)
        return waits and self._placement.next_job(now) is self._placement.waiting_job

    def _place_suspects(self, now: float) -> WaitReason | None:
        for job in list(self._queue.suspects):  # all of them: each avoids another worker
            if (worker := self._workers.fastest_empty(avoid=job.lost_on)) is not None:
                self._start(now, job, worker)
        if not self._queue.suspects:
            self._held_worker = None
            return None
        self._held_worker = self._workers.to_hold(self._held_worker, avoid=self._queue.suspects[0].lost_on)
        return WaitReason.NEEDS_EMPTY if self.ready else WaitReason.NO_WORKER

    def _place_others(self, now: float) -> WaitReason | None:
        while self._queue.by_deadline:
            choice = self._placement.choose(now, self._held_worker)
            if isinstance(choice, WaitReason):
                return choice
            job, worker = choice
            late = now + worker.effect_of_joining(job.job).end > job.job.deadline
            if late and len(self._queue) > 1:  # starting it would make others late as well
                self._reply(job, m.Expired())
            else:
                self._start(now, job, worker)
        return None

    def _start(self, now: float, job: JobState, worker: Worker) -> None:
        self._placement.clear_cache()
        self._queue.remove(job, started=True)
        self._running[job.job.id] = job
        assignment = self._workers.assign(now, worker, job, next(self._generations))
        self._commands.append(m.Start(job.job.id, worker.id, assignment.slot, assignment.generation))

    # --------------------------------------------------------------------------------------------------------- replies

    def _abort(self, job: JobState, outcome: Outcome) -> None:
        """Answer a job that is not done, and free its slot. A worker that is being killed needs no `Cancel`."""
        assignment = job.assignment
        self._reply(job, outcome)
        if assignment is not None and assignment.worker.ready:
            self._commands.append(m.Cancel(assignment.worker.id, assignment.slot, assignment.generation))

    def _reply(self, job: JobState, outcome: Outcome) -> None:
        """Give a job its only reply. If it is in a slot, the slot is leaving from now on."""
        self._placement.clear_cache()
        if self._running.pop(job.job.id, None) is None:
            self._queue.remove(job)
        del self._jobs[job.job.id]
        del self._deadlines[bisect_left(self._deadlines, (job.job.deadline, job.job.id))]
        if job.assignment is not None:
            self._workers.detach(job.assignment)
        self._commands.append(m.Reply(job.job.id, outcome))

    def check(self) -> None:
        """Validate all invariants; raises BrokenInvariantError. For tests: it looks at every job and worker."""
        waiting = [job.job.id for job in self._queue]
        require(sorted(self._jobs) == sorted([*self._running, *waiting]), "a job neither waits nor runs, or does both")
        require(sorted(job for _, job in self._deadlines) == sorted(self._jobs), "a deadline is missing, or left over")
        require(self._deadlines == sorted(self._deadlines), "deadlines are out of order")
        self._queue.check()
        self._workers.check(opened=self._opened)
        require(self._workers.running == len(self._running), "a job runs without being known, or in two slots")
        require(
            (self._wait_reason is None) == (not waiting),
            "a job waits without a reason, or none waits with one",
        )
        require(not self.draining or self._exited == (not self._jobs), "a drain ended too early, or did not end")
        require(not self._commands, "a command was kept back")


def _check_sizes(worker: Worker, costs: Costs) -> None:
    if any(len(steps) != len(costs.step_seconds) for _, steps in costs.sizes):
        raise IllegalEvent(f"{worker.id} measured other numbers of images of some size")


def _outcome(event: m.Finished | m.Failed | m.Released, job: JobState) -> Outcome:
    match event:
        case m.Finished(worker, slot, _, image):
            return m.Done(worker, slot, image, queued=job.started - job.submitted)
        case m.Failed(reason=reason, blame=blame):
            return m.Refused(reason, blame) if blame in {m.Blame.IMAGE, m.Blame.OPTION} else m.Broken(reason)
        case m.Released(worker):
            raise IllegalEvent(f"{worker} released job {job.job.id}, which nobody cancelled")
        case _ as unreachable:
            assert_never(unreachable)
