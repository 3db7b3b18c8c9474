"""The scheduler: events in, commands out. It reads no clock, opens nothing, and is the only writer of its state."""

from collections.abc import Sequence
from itertools import count
from typing import assert_never

from scheduler import admission
from scheduler import messages as m
from scheduler.admission import Taken
from scheduler.errors import BrokenInvariantError, IllegalEvent, require
from scheduler.fleet import Fleet
from scheduler.jobs import Jobs
from scheduler.messages import Command, Costs, Event, Job, Outcome, WorkerId, WorkerState, WorkerView
from scheduler.policy import ACCIDENTS, Limits, Wait
from scheduler.records import Ticket, Worker

__all__ = ["BrokenInvariantError", "IllegalEvent", "Scheduler"]


class Scheduler:
    """Decides which worker runs which job, and when.

    Feed it what happened, and carry out what it says, in order. Every job that was submitted gets exactly one `Reply`.
    Jobs may come before `Opened`, and wait. After `Exit` nothing comes out but `Reply(Draining)` to who comes too late.
    """

    def __init__(self, workers: Sequence[WorkerId], limits: Limits) -> None:
        self._limits = limits
        self._fleet = Fleet(workers, limits)
        self._jobs = Jobs()
        self._generations = count(1)
        self._opened = False
        self._until: float | None = None  # the end of the drain
        self._failure = ""  # why it ends, if it is not asked to
        self._exited = False
        self._wait: Wait | None = None
        self._commands: list[Command] = []  # the answer to the event in hand

    def handle(self, now: float, event: Event) -> list[Command]:
        """Take one event at `now` (seconds, monotonic) and return the commands to carry out, in order.

        Raises IllegalEvent, and changes nothing, when this event cannot happen in the present state.
        """
        if self._exited:  # even then a job gets its reply
            return [m.Reply(event.job.id, m.Draining())] if isinstance(event, m.Submitted) else []
        if self._opened and isinstance(event, m.Opened):
            raise IllegalEvent("it was opened before")
        self._take(now, event)
        # After the event: a picture that is finished in time is delivered, though the clock was looked at too late.
        self._ring(now)
        self._place(now)
        self._exit_when_drained()
        commands, self._commands = self._commands, []
        return commands

    @property
    def next_wakeup(self) -> float | None:
        """When to send the next `Tick`, unless another event comes first. It may be early, and have no effect."""
        times = (self._jobs.deadlines.least, self._fleet.alarms.least, self._until)
        return None if self._exited else min((time for time in times if time is not None), default=None)

    @property
    def queue_depth(self) -> int:
        """Jobs that wait."""
        return self._jobs.waiting

    @property
    def running(self) -> int:
        """Jobs that are in a slot."""
        return self._jobs.running

    @property
    def ready(self) -> bool:
        """A worker is ready."""
        return self._fleet.ready.workers > 0

    @property
    def draining(self) -> bool:
        """Nothing new is taken."""
        return self._until is not None

    @property
    def wait(self) -> Wait | None:
        """Why the next job waits; None if no job does."""
        return self._wait

    @property
    def predicted_seconds(self) -> float | None:
        """What one nominal picture takes alone on the fastest worker known; None until one has measured itself."""
        return self._fleet.seconds

    def standing(self, job: m.JobId) -> m.Standing | None:
        """Where a job stands that waits, as far as one can tell; None if it does not."""
        before = self._jobs.before(job)
        if before is None:
            return None
        seconds = self._fleet.seconds_to_start(before.work, self._jobs.oldest_worker)
        return m.Standing(round(before.jobs), seconds)

    def workers(self) -> list[WorkerView]:
        """All workers, in the order they were given."""
        return [worker.view() for worker in self._fleet]

    # ---------------------------------------------------------------------------------------------------------- events

    def _take(self, now: float, event: Event) -> None:  # noqa: C901, PLR0912 - one line for each event
        match event:
            case m.Stepped(worker, done):
                self._fleet.step(now, self._fleet[worker], done)
            case m.Submitted(job):
                self._submit(now, job)
            case m.Finished() | m.Failed() | m.Released():
                self._vacate(now, event)
            case m.Cancelled(job_id):
                # It may have been answered already: the client's going and our reply cross each other.
                if job_id in self._jobs:
                    self._give_up(self._jobs[job_id], m.Abandoned())
            case m.WorkerReady(worker, costs):
                self._welcome(now, self._fleet[worker], costs)
            case m.Measured(worker, costs):
                self._reprice(self._fleet[worker], costs)
            case m.Faulted(worker, reason):
                self._take_out(now, self._fleet[worker], reason)
            case m.WorkerLost(worker):
                self._bury(now, self._fleet[worker], event)
            case m.Tick():
                pass
            case m.Drain(until):
                self._until = until if self._until is None else min(until, self._until)
            case m.Opened():
                self._opened = True
                for each in self._fleet:
                    self._spawn(now, each)
            case _ as unreachable:
                assert_never(unreachable)

    def _submit(self, now: float, job: Job) -> None:
        if job.id in self._jobs:
            raise IllegalEvent(f"job {job.id} was submitted before")
        self._ring(now)  # what has expired takes no place in the queue
        ticket = Ticket(job, now, self._fleet.strength.load(job.work, job.length))
        verdict = self._verdict(now, ticket)
        if isinstance(verdict, Taken):
            self._jobs.accept(ticket, verdict.leeway, ahead=verdict.ahead)
        else:
            self._commands.append(m.Reply(job.id, verdict))

    def _verdict(self, now: float, ticket: Ticket) -> Taken | Outcome:
        return m.Draining() if self.draining else admission.verdict(now, ticket, self._jobs, self._fleet, self._limits)

    def _vacate(self, now: float, event: m.Finished | m.Failed | m.Released) -> None:
        tenant = self._fleet[event.worker].tenant(event.slot, event.generation)
        if tenant is None:
            return  # said by a former process before it ended
        if tenant.ticket is not None:
            self._settle(event, tenant.ticket)
        self._fleet.vacate(now, tenant, proof=isinstance(event, m.Finished))

    def _settle(self, event: m.Finished | m.Failed | m.Released, ticket: Ticket) -> None:
        """Answer a job, unless what it lacked was memory: alone, it may do with what there is."""
        outcome = _outcome(event, ticket)
        if isinstance(event, m.Failed) and event.blame is m.Blame.MEMORY:
            assert ticket.tenant is not None
            self._fleet.forsake(ticket.tenant)
            self._suspect([ticket], event.worker, outcome)
        else:
            self._reply(ticket, outcome)

    def _welcome(self, now: float, worker: Worker, costs: Costs) -> None:
        if worker.state is WorkerState.ENDING:
            return  # it was ready just too late
        if worker.state is not WorkerState.LOADING:
            raise IllegalEvent(f"{worker.id} is {worker.state} and cannot become ready")
        if costs.steps < 1 or not costs.step_seconds:
            raise IllegalEvent(f"{worker.id} has no step or no slot")
        self._fleet.welcome(now, worker, costs)

    def _reprice(self, worker: Worker, costs: Costs) -> None:
        if worker.state is WorkerState.ENDING:
            return  # it said so before it was killed
        if worker.state is not WorkerState.READY:
            raise IllegalEvent(f"{worker.id} is {worker.state} and cannot have measured itself")
        known = worker.measured
        if (costs.steps, len(costs.step_seconds)) != (known.steps, len(known.step_seconds)):
            raise IllegalEvent(f"{worker.id} cannot change its steps or slots while it is ready")
        self._fleet.reprice(worker, costs)

    def _bury(self, now: float, worker: Worker, loss: m.WorkerLost) -> None:
        if worker.state in {WorkerState.NEW, WorkerState.WAITING, WorkerState.OUT}:
            raise IllegalEvent(f"{worker.id} has no process to lose")
        tickets = self._fleet.bury(now, worker, loss)
        self._suspect(tickets, worker.id, guilt=1 if loss.outside else ACCIDENTS)
        self._end_if_all_are_out(now)

    def _take_out(self, now: float, worker: Worker, reason: str) -> None:
        match worker.state:
            case WorkerState.LOADING | WorkerState.READY:
                worker.fault = reason
                self._kill(now, worker, reason)
            case WorkerState.ENDING:
                worker.fault = reason
            case WorkerState.WAITING | WorkerState.OUT:
                self._fleet.take_out(now, worker, reason)
                self._end_if_all_are_out(now)
            case WorkerState.NEW:
                pass  # it will find out for itself
            case _ as unreachable:
                assert_never(unreachable)

    def _end_if_all_are_out(self, now: float) -> None:
        """Whoever started this service can do more than wait: start it again, or elsewhere."""
        self._wake_workers(now)  # one whose pause is over by now is spawned again, and not out any more
        self._failure = self._fleet.failure
        if self._failure:
            self._until = now

    def _suspect(
        self, tickets: list[Ticket], worker: WorkerId, verdict: Outcome | None = None, guilt: int = ACCIDENTS
    ) -> None:
        """Jobs come back undone from a worker: each is tried again, alone, or gets the verdict if it was often enough.

        Without a verdict it is poisoned.
        """
        for ticket in tickets:
            ticket.losses, ticket.guilt, ticket.lost_on = ticket.losses + 1, ticket.guilt + guilt, worker
        self._jobs.put_back(tickets)
        for ticket in tickets:
            if ticket.guilt >= ACCIDENTS * self._limits.attempts:
                self._reply(ticket, verdict or m.Poisoned(ticket.losses))

    # ---------------------------------------------------------------------------------------------------------- alarms

    def _ring(self, now: float) -> None:
        for job in self._jobs.deadlines.due(now):
            self._give_up(self._jobs[job], m.Expired())
        self._wake_workers(now)
        if self._until is not None and self._until <= now:
            for ticket in self._jobs:
                self._reply(ticket, m.Draining())

    def _wake_workers(self, now: float) -> None:
        for worker in self._fleet.alarms.due(now):
            self._look_at(now, worker)

    def _look_at(self, now: float, worker: Worker) -> None:
        match worker.state:
            case WorkerState.WAITING | WorkerState.OUT:
                worker.restarts += 1
                self._spawn(now, worker)
            case WorkerState.LOADING:
                self._kill(now, worker, f"not ready after {self._limits.load_timeout:g} s")
            case WorkerState.READY:
                patience = self._fleet.patience(worker)
                if worker.heard + patience > now:
                    self._fleet.alarms.put(worker, worker.heard + patience)
                else:
                    self._kill(now, worker, f"silent for {now - worker.heard:.1f} s")
            case WorkerState.NEW | WorkerState.ENDING:
                raise BrokenInvariantError(f"{worker.id} is {worker.state} and has an alarm")
            case _ as unreachable:
                assert_never(unreachable)

    def _spawn(self, now: float, worker: Worker) -> None:
        self._fleet.spawn(now, worker)
        self._commands.append(m.Spawn(worker.id))

    def _kill(self, now: float, worker: Worker, reason: str) -> None:
        self._fleet.end(now, worker)
        self._commands.append(m.Kill(worker.id, reason))

    def _exit_when_drained(self) -> None:
        if self.draining and not self._jobs:
            self._exited = True
            self._commands.append(m.Exit(self._failure))

    # ------------------------------------------------------------------------------------------------------- placement

    def _place(self, now: float) -> None:
        suspect, other = self._place_suspects(now), self._place_others(now)
        self._wait = other if other is not None else suspect

    def _place_suspects(self, now: float) -> Wait | None:
        # All of them: the worker that one avoids may do for the next.
        for ticket in self._jobs.suspects() if self._fleet.empty(avoid=None) is not None else ():
            if (worker := self._fleet.empty(avoid=ticket.lost_on)) is not None:
                self._start(now, ticket, worker)
        first = self._jobs.suspect
        if first is None:
            self._fleet.unhold()
            return None
        self._fleet.hold(avoid=first.lost_on)
        return Wait.NEEDS_EMPTY if self.ready else Wait.NO_WORKER

    def _place_others(self, now: float) -> Wait | None:
        while (ticket := self._jobs.lines.next) is not None:
            choice = self._fleet.choose(ticket.job, now, behind=self._jobs.waiting - 1)
            if isinstance(choice, Wait):
                return choice
            if self._in_vain(now, ticket, choice):
                self._reply(ticket, m.Expired())
            else:
                self._start(now, ticket, choice)
        return None

    def _in_vain(self, now: float, ticket: Ticket, worker: Worker) -> bool:
        """It would miss its deadline and make the next ones miss theirs."""
        late = now + self._fleet.seconds_if_joined(worker, ticket.job) > ticket.job.deadline
        return late and self._jobs.waiting > 1

    def _start(self, now: float, ticket: Ticket, worker: Worker) -> None:
        self._jobs.start(ticket)
        tenant = self._fleet.start(now, worker, ticket, next(self._generations))
        self._commands.append(m.Start(ticket.job.id, worker.id, tenant.slot, tenant.generation))

    # --------------------------------------------------------------------------------------------------------- replies

    def _give_up(self, ticket: Ticket, outcome: Outcome) -> None:
        """Answer a job that is not done, and have its slot emptied. A worker that is being killed needs no telling."""
        tenant = ticket.tenant
        self._reply(ticket, outcome)
        if tenant is not None and tenant.worker.state is WorkerState.READY:
            self._commands.append(m.Cancel(tenant.worker.id, tenant.slot, tenant.generation))

    def _reply(self, ticket: Ticket, outcome: Outcome) -> None:
        """The last that is said of a job, wherever it is. If it is in a slot, that is leaving from now on."""
        self._jobs.close(ticket)
        if ticket.tenant is not None:
            self._fleet.forsake(ticket.tenant)
        self._commands.append(m.Reply(ticket.job.id, outcome))

    def check(self) -> None:
        """Validate all invariants, at a cost in proportion to all that there is; raises BrokenInvariantError."""
        self._jobs.check()
        self._fleet.check(opened=self._opened)
        require(self._fleet.running == self._jobs.running, "a job runs unknown, or in two slots")
        require((self._wait is None) == (self._jobs.waiting == 0), "a job waits without a reason, or nobody with one")
        require(not self.draining or self._exited == (not self._jobs), "a drain ended too early, or did not end")
        require(not self._commands, "a command was kept back")


def _outcome(event: m.Finished | m.Failed | m.Released, ticket: Ticket) -> Outcome:
    match event:
        case m.Finished(worker, slot, _, image):
            return m.Done(worker, slot, image, queued=ticket.started - ticket.submitted)
        case m.Failed(reason=reason, blame=blame):
            return m.Refused(reason, blame) if blame in {m.Blame.PICTURE, m.Blame.OPTION} else m.Broken(reason)
        case m.Released(worker):
            raise IllegalEvent(f"{worker} released job {ticket.job.id}, which nobody cancelled")
        case _ as unreachable:
            assert_never(unreachable)
