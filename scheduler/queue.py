"""The waiting jobs, in two orders: by deadline, for admission, and by turn, which is the fair order to start them in.

The fair order is self-clocked fair queueing (Golestani, INFOCOM 1994). Each client has a queue and a virtual time: the
work that was started for it. The client whose virtual time would be least after its next job is served next. A client
that returns starts at the virtual time of the others, so it cannot save up turns. An example: A has sent ten jobs, then
B sends one. B's job starts after the next one of A, not after all ten.

Jobs of negative priority are background work. All other jobs are interactive and go first, whichever client sent them.
Each of the two classes is fair in itself. Background jobs never starve: each interactive job that starts while one of
them waits adds a ninth of its work to what they are owed, and once the work of the next background job is owed, it goes
first. An example: of two endless streams of equal images, nine interactive ones start for each background one.

At most some hundreds of jobs wait, so everything here simply walks over all of them.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from scheduler.errors import require
from scheduler.messages import BatchKey, ClientId, Job, WorkerId
from scheduler.workers import SlotAssignment

OWED = 1 / 9  # of the work of each interactive job that is started while background jobs wait


@dataclass(slots=True, eq=False)
class JobState:
    """An accepted job that has no reply yet. It runs if it has an assignment, else it waits.

    `load` is its work in nominal images, as estimated when it was accepted. `charge` is added to its client's virtual
    time when it starts.
    """

    job: Job
    submitted: float
    load: float
    charge: float = field(init=False)
    deadline: float = field(init=False)
    key: BatchKey = field(init=False)
    sequence: int = 0  # numbers all jobs that ever waited
    started: float = 0.0
    passed_since: float | None = None  # since when others went first because of their size
    losses: int = 0  # how many workers exited while it ran on them
    retry_cost: int = 0  # the same, weighted by how likely the job was the reason
    lost_on: WorkerId | None = None
    assignment: SlotAssignment | None = None

    def __post_init__(self) -> None:
        self.charge = self.load + self.job.surcharge
        self.deadline, self.key = self.job.deadline, self.job.batch_key

    @property
    def background(self) -> bool:
        """Interactive jobs of all clients start before it."""
        return self.job.priority < 0

    @property
    def suspect(self) -> bool:
        """It ran on a worker that exited, so it may be the reason."""
        return self.losses > 0


@dataclass(slots=True)
class ClientQueue:
    """One client's waiting jobs, by priority, then in order of arrival, and the work that was started for it."""

    virtual_time: float
    jobs: list[JobState] = field(default_factory=list)


def _importance(job: JobState) -> tuple[int, int]:
    return -job.job.priority, job.sequence


def _due(job: JobState) -> tuple[float, int]:
    return job.deadline, job.sequence


class ClientQueues:
    """A fair queue: one queue per client, served in order of least work done."""

    def __init__(self) -> None:
        self.clients: dict[ClientId, ClientQueue] = {}  # a client whose first job is new is last
        self._virtual_time = 0.0
        self.sizes = Counter[BatchKey]()

    def of(self, client: ClientId) -> list[JobState]:
        """A client's waiting jobs, in order."""
        return self.clients[client].jobs if client in self.clients else []

    def add(self, job: JobState) -> None:
        """Add a job."""
        self.sizes[job.key] += 1
        client = job.job.client
        queue = self.clients.setdefault(client, ClientQueue(self._virtual_time))
        insort(queue.jobs, job, key=_importance)
        if queue.jobs[0] is job:
            self.clients[client] = self.clients.pop(client)

    def remove(self, job: JobState, *, started: bool) -> None:
        """Remove a job. If it has started, charge its client for it."""
        queue = self.clients.pop(job.job.client)
        queue.jobs.remove(job)
        self.sizes[job.key] -= 1
        if not self.sizes[job.key]:
            del self.sizes[job.key]
        if started:
            queue.virtual_time += job.charge
            self._virtual_time = max(self._virtual_time, queue.virtual_time)
        if queue.jobs:
            self.clients[job.job.client] = queue
        if not self.clients:
            self._virtual_time = 0.0

    @property
    def next(self) -> JobState | None:
        """The job whose turn it is; None if none waits."""
        if not self.clients:
            return None
        return min(self.clients.values(), key=lambda queue: queue.virtual_time + queue.jobs[0].charge).jobs[0]

    def order(self) -> list[JobState]:
        """All jobs in the order in which they start if no other job comes."""
        first, turns = self.next, list[tuple[float, bool, int, JobState]]()
        for queue in self.clients.values():
            turn = queue.virtual_time
            for job in queue.jobs:
                turn += job.charge
                turns.append((turn, job is not first, len(turns), job))
        return [job for *_, job in sorted(turns)]

    def first_of_each_size(self) -> list[JobState]:
        """The first job of each size, in the order of their turns."""
        found: dict[BatchKey, tuple[float, int, JobState]] = {}
        for queue in self.clients.values():
            turn, missing = queue.virtual_time, set(self.sizes)
            for job in queue.jobs:
                turn += job.charge
                if job.key in missing:
                    missing.remove(job.key)
                    if job.key not in found or turn < found[job.key][0]:
                        found[job.key] = turn, job.sequence, job
                    if not missing:
                        break
        return [job for *_, job in sorted(found.values())]

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        sizes = Counter([job.key for queue in self.clients.values() for job in queue.jobs])
        require(sizes == self.sizes, "sizes that wait were miscounted")
        for client, queue in self.clients.items():
            require(bool(queue.jobs), f"{client} has an empty queue")
            require(queue.jobs == sorted(queue.jobs, key=_importance), f"the jobs of {client} are out of order")
            require(queue.virtual_time <= self._virtual_time, f"{client} is ahead of the virtual time")


class FairQueue:
    """All waiting jobs: interactive ones in fair order, then background ones in fair order.

    Suspects come before all others, and are in no client's queue: they have had their turn already.
    """

    def __init__(self) -> None:
        self.suspects: list[JobState] = []
        self.by_deadline: list[JobState] = []
        self._interactive, self._background = ClientQueues(), ClientQueues()
        self._owed = 0.0  # work that background jobs have given way to for long enough
        self._sequence = 0
        self._loads: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.suspects) + len(self.by_deadline)

    def __iter__(self) -> Iterator[JobState]:
        yield from self.suspects
        yield from self.by_deadline

    @property
    def clients(self) -> int:
        """How many clients have waiting jobs."""
        return len(self._interactive.clients.keys() | self._background.clients.keys())

    @property
    def background(self) -> int:
        """How many background jobs wait."""
        return sum([len(queue.jobs) for queue in self._background.clients.values()])

    def of(self, client: ClientId) -> list[JobState]:
        """A client's waiting jobs, in order."""
        return self._interactive.of(client) + self._background.of(client)

    @property
    def loads(self) -> tuple[float, float]:
        """The sum and the maximum of the loads of all jobs but suspects; 0 if none waits."""
        if self._loads is None:
            loads = [job.load for job in self.by_deadline]
            self._loads = sum(loads), max(loads, default=0.0)
        return self._loads

    def due_before(self, job: JobState) -> int:
        """How many jobs have an earlier deadline than this one."""
        return bisect_left(self.by_deadline, _due(job), key=_due)

    def of_size(self, key: BatchKey) -> int:
        """How many waiting jobs have this size."""
        return self._interactive.sizes[key] + self._background.sizes[key]

    def due_by(self, deadline: float) -> int:
        """How many jobs have this deadline or an earlier one."""
        return bisect_right(self.by_deadline, deadline, key=attrgetter("deadline"))

    def _class_of(self, job: JobState) -> ClientQueues:
        return self._background if job.background else self._interactive

    def add(self, job: JobState) -> None:
        """Add an accepted job."""
        self._sequence += 1
        job.sequence, self._loads = self._sequence, None
        insort(self.by_deadline, job, key=_due)
        self._class_of(job).add(job)

    def put_back(self, suspects: list[JobState]) -> None:
        """Put jobs that lost their worker before all others."""
        self.suspects[:0] = suspects

    def remove(self, job: JobState, *, started: bool = False) -> None:
        """Remove a job. If it has started, charge its client for it."""
        if job.suspect:
            self.suspects.remove(job)
            return
        self.by_deadline.remove(job)
        self._loads = None
        self._class_of(job).remove(job, started=started)
        if started:
            self._owed = _owed_after(self._owed, job)
        if not self._background.clients:
            self._owed = 0.0

    @property
    def next(self) -> JobState | None:
        """The job whose turn it is; None if only suspects wait."""
        interactive, background = self._interactive.next, self._background.next
        if interactive is None or (background is not None and self._owed >= background.charge):
            return background
        return interactive

    def turns(self) -> list[JobState]:
        """All jobs but suspects, in the order in which they start if no other job comes."""
        interactive, background = self._interactive.order()[::-1], self._background.order()[::-1]
        turns, owed = list[JobState](), self._owed
        while interactive and background:
            turns.append((background if owed >= background[-1].charge else interactive).pop())
            owed = _owed_after(owed, turns[-1])
        return turns + interactive[::-1] + background[::-1]

    def first_of_each_size(self) -> list[JobState]:
        """The first job of each size, in the fair order; a background job only for sizes that no interactive job has.

        So a background job may start before an interactive one of another size: else batches would be smaller.
        """
        first = self._interactive.first_of_each_size()
        sizes = {job.key for job in first}
        return first + [job for job in self._background.first_of_each_size() if job.key not in sizes]

    def before(self, job: JobState) -> list[JobState]:
        """The jobs that start before a waiting job, if no other job comes."""
        if job.suspect:
            return self.suspects[: self.suspects.index(job)]
        turns = self.turns()
        return self.suspects + turns[: turns.index(job)]

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        clients = [*self._interactive.clients.values(), *self._background.clients.values()]
        queued = [job for queue in clients for job in queue.jobs]
        require(sorted(map(_due, queued)) == list(map(_due, self.by_deadline)), "a job waits in one order only")
        self._interactive.check()
        self._background.check()
        require(self._owed == 0 or bool(self._background.clients), "work is owed to nobody")
        require(all(job.suspect for job in self.suspects), "somebody waits among suspects who is none")
        require(all(job.assignment is None for job in self), "a job waits and runs")


def _owed_after(owed: float, job: JobState) -> float:
    """The work owed to background jobs after a job has started."""
    return max(0.0, owed - job.charge) if job.background else owed + OWED * job.charge
