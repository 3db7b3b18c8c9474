"""A random world around the scheduler: clients, clock and worker processes, and what must be true of every command."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, assert_never

from hypothesis.stateful import RuleBasedStateMachine

from scheduler.core import CRASH_COST
from scheduler.limits import Limits
from scheduler.messages import (
    Abandoned,
    Blame,
    Broken,
    Cancel,
    Cancelled,
    Command,
    Costs,
    Done,
    Draining,
    Event,
    Exit,
    Expired,
    Failed,
    Finished,
    Impossible,
    Job,
    Kill,
    Outcome,
    QuotaExceeded,
    Refused,
    Rejected,
    Released,
    Reply,
    Spawn,
    Start,
    Submitted,
    WorkerCrash,
    WorkerExited,
    WorkerReady,
)
from tests.scheduler.words import IMAGE, Checked

LIMITS = Limits(
    max_queue=6,
    attempts=2,
    heartbeat_floor=20.0,
    load_timeout=60.0,
    restart_backoff_max=4.0,
    quarantine_after=3,
    quarantine_pause=50.0,
)
T = TypeVar("T")
WORKERS = ("a", "b", "c")


@dataclass(slots=True)
class Slot:
    """An image in a process."""

    job: int
    generation: int
    steps: int = 0
    cancelled: bool = False


@dataclass(slots=True)
class Process:
    """A worker's process, as the world knows it."""

    costs: Costs | None = None  # None: loading
    slots: dict[int, Slot] = field(default_factory=dict)
    killed: bool = False
    hangs: bool = False
    alone: bool = False  # a suspect is in it

    @property
    def ready(self) -> bool:
        return self.costs is not None and not self.killed

    @property
    def room(self) -> bool:
        return self.costs is not None and len(self.slots) < len(self.costs.step_seconds)


@dataclass(slots=True)
class Client:
    """A job, as the world knows it."""

    job: Job
    losses: int = 0
    retry_cost: int = 0
    lost_on: str | None = None
    starts: int = 0
    outcome: Outcome | None = None


def pick(choices: Sequence[T], index: int) -> T:
    """One of them."""
    return choices[index % len(choices)]


class World(RuleBasedStateMachine):
    """What exists, and what can be done to it; `test_promises` says when."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Checked(WORKERS, LIMITS)
        self.now = 100.0
        self.processes: dict[str, Process] = {}
        self.clients: dict[int, Client] = {}
        self.generation = 0
        self.late: list[Event] = []  # what former processes may still have said
        self.drain_end: float | None = None
        self.exited = False
        self.owed = 0.0  # to background jobs: the most it can be

    # ------------------------------------------------------------------------------------------------- what they share

    def loading(self) -> list[str]:
        return [worker for worker, process in self.processes.items() if process.costs is None]

    def working(self) -> list[str]:
        return [worker for worker, process in self.processes.items() if process.slots and not process.hangs]

    def leaving(self) -> list[tuple[str, int]]:
        return [(worker, slot) for worker, slot in self.taken() if self.processes[worker].slots[slot].cancelled]

    def taken(self) -> list[tuple[str, int]]:
        return [(worker, slot) for worker in self.working() for slot in self.processes[worker].slots]

    def waiting_of(self, client: str) -> int:
        """How many jobs of a client wait, as far as one can tell from outside."""
        running = {slot.job for process in self.processes.values() for slot in process.slots.values()}
        jobs = [each for number, each in self.clients.items() if number not in running and each.job.client == client]
        return sum(each.outcome is None for each in jobs)

    def overtaken(self, start: Start) -> list[int]:
        """Jobs of its client that wait, though they came earlier, are as important, as urgent and of the same size.

        Suspects are none of them. Background jobs may overtake interactive ones when they are owed that.
        """
        job = self.clients[start.job].job
        running = {slot.job for process in self.processes.values() for slot in process.slots.values()}
        return [
            number
            for number, each in self.clients.items()
            if (number < job.id and each.job.client == job.client and each.job.priority >= job.priority)
            and (each.job.priority < 0) == (job.priority < 0)
            and (each.job.deadline <= job.deadline and each.job.batch_key == job.batch_key)
            and each.outcome is None
            and not each.losses
            and number not in running
        ]

    def count_turn(self, start: Start) -> None:
        """A background job starts before an interactive one, as urgent and of its size, only if its work is owed."""
        job, least, most = self.clients[start.job].job, *self.load_of(start.job)
        running = {slot.job for process in self.processes.values() for slot in process.slots.values()}
        waiting = [
            each.job
            for number, each in self.clients.items()
            if each.outcome is None and not each.losses and number not in running
        ]
        if not any(each.priority < 0 for each in waiting):
            self.owed = 0.0
        elif job.priority >= 0:
            self.owed += most / 9
        else:
            gives_way = [each for each in waiting if each.priority >= 0 and each.batch_key == job.batch_key]
            owed = self.owed >= least or all(each.deadline >= job.deadline for each in gives_way)
            assert owed or self.is_left_over(start)
            self.owed = max(0.0, self.owed - least)

    def is_left_over(self, start: Start) -> bool:
        """An empty worker that earlier jobs may leave to later ones, because they wait for a faster one."""
        ready = [process for process in self.processes.values() if process.ready]
        return len(ready) > 1 and not self.processes[start.worker].slots

    def load_of(self, number: int) -> tuple[float, float]:
        """The least and the most that a job may count for: nobody knows here what part of it its steps are."""
        job = self.clients[number].job
        return job.work * min(1.0, job.relative_steps), job.work * max(1.0, job.relative_steps)

    def load(self, worker: str, costs: Costs) -> None:
        process = self.processes[worker]
        if not process.killed:
            process.costs = costs
        self.tell(WorkerReady(worker, costs))

    def leave(self, index: int, *, cancelled: bool, lacking: bool = False) -> tuple[str, int, int]:
        """Empty some slot, `lacking` memory perhaps; returns what its worker calls it: (worker, slot, generation)."""
        worker, slot = pick(self.leaving() if cancelled else self.taken(), index)
        process = self.processes[worker]
        left = process.slots.pop(slot)
        process.alone = process.alone and bool(process.slots)
        if lacking:
            self.count_loss(left, worker)
        return worker, slot, left.generation

    def count_loss(self, slot: Slot, worker: str, *, outside: bool = False) -> None:
        client = self.clients[slot.job]
        if client.outcome is None:
            client.losses, client.lost_on = client.losses + 1, worker
            client.retry_cost += 1 if outside else CRASH_COST

    def lose(self, worker: str, *, outside: bool) -> None:
        process = self.processes.pop(worker)
        for number, slot in process.slots.items():
            self.late.append(Finished(worker, number, slot.generation, IMAGE))
            self.late.append(Failed(worker, number, slot.generation, "late", Blame.SERVICE))
            self.late.append(Released(worker, number, slot.generation))
            self.count_loss(slot, worker, outside=outside)
        self.tell(WorkerExited(worker, "gone", outside))

    def tell(self, event: Event) -> list[Command]:
        commands = self.core.handle(self.now, event)
        for command in commands:
            self.obey(command, event)
        self.nothing_is_overdue()
        return commands

    def nothing_is_overdue(self) -> None:
        wakeup = self.core.next_wakeup
        assert wakeup is None or wakeup > self.now
        assert self.drain_end is None or self.exited or self.drain_end > self.now
        assert all(client.outcome or client.job.deadline > self.now for client in self.clients.values())

    def face(self) -> tuple[object, ...]:
        core = self.core
        return (
            core.workers(),
            core.queue_depth,
            core.running,
            core.next_wakeup,
            core.wait_reason,
            core.predicted_seconds,
        )

    # ------------------------------------------------------------------------------------- every command, when it comes

    def obey(self, command: Command, event: Event) -> None:
        assert not self.exited or (isinstance(command, Reply) and isinstance(event, Submitted))
        match command:
            case Spawn(worker):
                assert worker not in self.processes
                self.processes[worker] = Process()
            case Kill(worker):
                assert not self.processes[worker].killed
                self.processes[worker].killed = True
            case Start():
                self.start(command)
            case Cancel(worker, slot, generation):
                assignment = self.processes[worker].slots[slot]
                assert self.processes[worker].ready
                assert (assignment.generation, assignment.cancelled) == (generation, False)
                assert self.clients[assignment.job].outcome is not None
                assignment.cancelled = True
            case Reply(job, outcome):
                self.reply(self.clients[job], outcome, event)
            case Exit(failure):
                assert self.drain_end is not None or failure
                assert not failure or not self.processes
                self.exited = True
            case _ as unreachable:
                assert_never(unreachable)

    def start(self, start: Start) -> None:
        client, process = self.clients[start.job], self.processes[start.worker]
        assert client.outcome is None
        assert client.job.deadline > self.now
        assert process.ready
        assert process.costs is not None
        assert start.slot not in process.slots
        assert start.slot < len(process.costs.step_seconds)
        assert start.generation > self.generation
        assert not process.alone  # nobody joins a suspect ...
        if client.losses:
            assert not process.slots  # ... and it joins nobody
            others = [other for name, other in self.processes.items() if name != client.lost_on and other.ready]
            assert start.worker != client.lost_on or not others
        else:
            assert self.is_left_over(start) or not self.overtaken(start)
            self.count_turn(start)
        client.starts += 1
        process.alone = client.losses > 0
        self.generation = start.generation
        process.slots[start.slot] = Slot(start.job, start.generation)

    def reply(self, client: Client, outcome: Outcome, event: Event) -> None:
        assert client.outcome is None  # exactly one
        client.outcome = outcome
        match outcome:
            case Done(worker, slot, image, queued):
                assert isinstance(event, Finished)
                assert (event.worker, event.slot, event.image) == (worker, slot, image)
                assert queued >= 0.0
            case Refused() | Broken():
                assert isinstance(event, Failed)
                assert (event.blame in {Blame.IMAGE, Blame.OPTION}) == isinstance(outcome, Refused)
                assert event.blame is not Blame.MEMORY or client.retry_cost >= CRASH_COST * LIMITS.attempts
            case WorkerCrash(losses):
                assert losses == client.losses
                assert client.retry_cost >= CRASH_COST * LIMITS.attempts
            case Expired():
                assert client.job.deadline <= self.now or client.starts == 0  # it waited until it was in vain
            case Impossible(seconds):
                assert seconds > client.job.deadline - self.now
                assert client.starts == 0
            case Rejected(retry_after):
                assert retry_after > 0.0
                assert client.starts == 0
            case QuotaExceeded(retry_after):
                assert retry_after > 0.0
                assert client.starts == 0
                assert self.waiting_of(client.job.client)
            case Draining():
                ended = self.drain_end is not None and self.drain_end <= self.now
                assert ended or not self.processes or (self.drain_end and isinstance(event, Submitted)) or self.exited
            case Abandoned():
                assert event == Cancelled(client.job.id)
            case _ as unreachable:
                assert_never(unreachable)
