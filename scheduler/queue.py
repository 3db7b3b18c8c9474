"""The waiting jobs, in two orders: by deadline, for admission, and in the fair order, to start them.

The fair order is self-clocked fair queueing (Golestani, INFOCOM 1994). Each client has a queue and a virtual time: the
work that was started for it. The client whose virtual time would be least after its next job is served next. A client
that returns starts at the virtual time of the others, so it cannot save up work. An example: A has sent ten jobs of
work 1, and three have started, so its virtual time is 3. Now B sends a job, and starts at 3 as well. A's next job
starts, because A came first, and A is at 4. B's job would bring B to 4 and A's would bring A to 5, so B's is next.

Jobs of negative priority are background work. All other jobs are interactive and go first, whichever client sent them.
Each of the two classes is fair in itself. Background jobs never starve: each interactive job that starts while one of
them waits adds a ninth of its work to their credit, and a background job goes first once the credit covers its work.
An example: of two endless streams of equal images, nine interactive ones start for each background one.

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

BACKGROUND_CREDIT = 1 / 9
"""Of the work of each interactive job that starts while background jobs wait: so background work gets a tenth."""


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
    batch_key: BatchKey = field(init=False)
    sequence: int = 0  # numbers all jobs that ever waited
    started: float = 0.0
    bypassed_since: float | None = None  # since when others go first because of their size
    losses: int = 0  # how many workers exited while it ran on them
    retry_cost: int = 0  # the same, weighted by how likely the job was the reason
    lost_on: WorkerId | None = None
    assignment: SlotAssignment | None = None

    def __post_init__(self) -> None:
        self.charge = self.load + self.job.surcharge
        self.deadline, self.batch_key = self.job.deadline, self.job.batch_key

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


def _by_priority(job: JobState) -> tuple[int, int]:
    return -job.job.priority, job.sequence


def _by_deadline(job: JobState) -> tuple[float, int]:
    return job.deadline, job.sequence


class ClientQueues:
    """A fair queue: one queue per client, served in order of least work done."""

    def __init__(self) -> None:
        self.clients: dict[ClientId, ClientQueue] = {}  # a client whose first job is new comes last
        self._virtual_time = 0.0
        self.sizes = Counter[BatchKey]()

    def jobs_of(self, client: ClientId) -> list[JobState]:
        """A client's waiting jobs, in order."""
        return self.clients[client].jobs if client in self.clients else []

    def add(self, job: JobState) -> None:
        """Add a job."""
        self.sizes[job.batch_key] += 1
        client = job.job.client
        queue = self.clients.setdefault(client, ClientQueue(self._virtual_time))
        insort(queue.jobs, job, key=_by_priority)
        if queue.jobs[0] is job:
            self.clients[client] = self.clients.pop(client)

    def remove(self, job: JobState, *, started: bool) -> None:
        """Remove a job. If it has started, charge its client for it."""
        queue = self.clients.pop(job.job.client)
        queue.jobs.remove(job)
        self.sizes[job.batch_key] -= 1
        if not self.sizes[job.batch_key]:
            del self.sizes[job.batch_key]
        if started:
            queue.virtual_time += job.charge
            self._virtual_time = max(self._virtual_time, queue.virtual_time)
        if queue.jobs:
            self.clients[job.job.client] = queue
        if not self.clients:
            self._virtual_time = 0.0

    @property
    def next_job(self) -> JobState | None:
        """The next job; None if none waits."""
        if not self.clients:
            return None
        return min(self.clients.values(), key=lambda queue: queue.virtual_time + queue.jobs[0].charge).jobs[0]

    def in_order(self) -> list[JobState]:
        """All jobs in the order in which they start if no other job comes."""
        first, order = self.next_job, list[tuple[float, bool, int, JobState]]()
        for queue in self.clients.values():
            finish = queue.virtual_time
            for job in queue.jobs:
                finish += job.charge
                order.append((finish, job is not first, len(order), job))
        return [job for *_, job in sorted(order)]

    def first_of_each_size(self) -> list[JobState]:
        """The first job of each size, in the fair order."""
        found: dict[BatchKey, tuple[float, int, JobState]] = {}
        for queue in self.clients.values():
            finish, missing = queue.virtual_time, set(self.sizes)
            for job in queue.jobs:
                finish += job.charge
                if job.batch_key in missing:
                    missing.remove(job.batch_key)
                    if job.batch_key not in found or finish < found[job.batch_key][0]:
                        found[job.batch_key] = finish, job.sequence, job
                    if not missing:
                        break
        return [job for *_, job in sorted(found.values())]

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        sizes = Counter([job.batch_key for queue in self.clients.values() for job in queue.jobs])
        require(sizes == self.sizes, "sizes that wait were miscounted")
        for client, queue in self.clients.items():
            require(bool(queue.jobs), f"{client} has an empty queue")
            require(queue.jobs == sorted(queue.jobs, key=_by_priority), f"the jobs of {client} are out of order")
            require(queue.virtual_time <= self._virtual_time, f"{client} is ahead of the virtual time")


class FairQueue:
    """All waiting jobs: interactive ones in fair order, then background ones in fair order.

    Suspects come before all others, and are in no client's queue: they have started once already.
    """

    def __init__(self) -> None:
        self.suspects: list[JobState] = []
        self.by_deadline: list[JobState] = []
        self._interactive, self._background = ClientQueues(), ClientQueues()
        self._credit = 0.0  # work of background jobs that may go first
        self._sequence = 0
        self._loads: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.suspects) + len(self.by_deadline)

    def __iter__(self) -> Iterator[JobState]:
        yield from self.suspects
        yield from self.by_deadline

    @property
    def client_count(self) -> int:
        """How many clients have waiting jobs."""
        return len(self._interactive.clients.keys() | self._background.clients.keys())

    @property
    def background_count(self) -> int:
        """How many background jobs wait."""
        return sum([len(queue.jobs) for queue in self._background.clients.values()])

    def jobs_of(self, client: ClientId) -> list[JobState]:
        """A client's waiting jobs, in order."""
        return self._interactive.jobs_of(client) + self._background.jobs_of(client)

    @property
    def total_and_largest_load(self) -> tuple[float, float]:
        """The sum and the maximum of the loads of all jobs but suspects; 0 if none waits."""
        if self._loads is None:
            loads = [job.load for job in self.by_deadline]
            self._loads = sum(loads), max(loads, default=0.0)
        return self._loads

    def count_due_before(self, job: JobState) -> int:
        """How many jobs have an earlier deadline than this one."""
        return bisect_left(self.by_deadline, _by_deadline(job), key=_by_deadline)

    def count_of_size(self, key: BatchKey) -> int:
        """How many waiting jobs have this size."""
        return self._interactive.sizes[key] + self._background.sizes[key]

    def count_due_by(self, deadline: float) -> int:
        """How many jobs have this deadline or an earlier one."""
        return bisect_right(self.by_deadline, deadline, key=attrgetter("deadline"))

    def _class_of(self, job: JobState) -> ClientQueues:
        return self._background if job.background else self._interactive

    def add(self, job: JobState) -> None:
        """Add an accepted job."""
        self._sequence += 1
        job.sequence, self._loads = self._sequence, None
        insort(self.by_deadline, job, key=_by_deadline)
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
            self._credit = _credit_after(self._credit, job)
        if not self._background.clients:
            self._credit = 0.0

    @property
    def next_job(self) -> JobState | None:
        """The next job in the fair order; None if only suspects wait."""
        interactive, background = self._interactive.next_job, self._background.next_job
        if interactive is None or (background is not None and self._credit >= background.charge):
            return background
        return interactive

    def in_order(self) -> list[JobState]:
        """All jobs but suspects, in the order in which they start if no other job comes."""
        interactive, background = self._interactive.in_order()[::-1], self._background.in_order()[::-1]
        order, credit = list[JobState](), self._credit
        while interactive and background:
            order.append((background if credit >= background[-1].charge else interactive).pop())
            credit = _credit_after(credit, order[-1])
        return order + interactive[::-1] + background[::-1]

    def first_of_each_size(self) -> list[JobState]:
        """The first job of each size, in the fair order; a background job only for sizes that no interactive job has.

        So a background job may start before an interactive one of another size: else batches would be smaller.
        """
        first = self._interactive.first_of_each_size()
        sizes = {job.batch_key for job in first}
        return first + [job for job in self._background.first_of_each_size() if job.batch_key not in sizes]

    def jobs_before(self, job: JobState) -> list[JobState]:
        """The jobs that start before a waiting job, if no other job comes."""
        if job.suspect:
            return self.suspects[: self.suspects.index(job)]
        order = self.in_order()
        return self.suspects + order[: order.index(job)]

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        clients = [*self._interactive.clients.values(), *self._background.clients.values()]
        queued = [job for queue in clients for job in queue.jobs]
        require(
            sorted(map(_by_deadline, queued)) == list(map(_by_deadline, self.by_deadline)),
            "a job waits in one order only",
        )
        self._interactive.check()
        self._background.check()
        require(self._credit == 0 or bool(self._background.clients), "there is credit without background jobs")
        require(all(job.suspect for job in self.suspects), "a job that is no suspect waits among the suspects")
        require(all(job.assignment is None for job in self), "a job waits and runs")


def _credit_after(credit: float, job: JobState) -> float:
    """The credit of background jobs after a job has started."""
    return max(0.0, credit - job.charge) if job.background else credit + BACKGROUND_CREDIT * job.charge
