"""The jobs that wait, in two orders: by deadline, in which all of them are in time, and by turn, which is fair.

A turn is one of self-clocked fair queueing (Golestani, INFOCOM 1994). Each client has a queue of its own and a virtual
time: the work that was started for it. The client whose virtual time would be least after its next job is next. A
client that comes back starts at the virtual time of those that stayed, so nobody saves turns for later. An example: A
has sent ten jobs and B sends one; B's runs after the one of A's that is next, not after all ten.

There are some hundreds of jobs, so everything here walks over all of them.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from scheduler.errors import require
from scheduler.messages import BatchKey, ClientId, Job, WorkerId
from scheduler.workers import SlotAssignment


@dataclass(slots=True, eq=False)
class JobState:
    """An accepted job without its reply. It runs if it has an assignment, else it waits.

    `load` is what it takes, in nominal images, by what was known of the workers when it was accepted. `charge` is what
    its client has been served once it has started.
    """

    job: Job
    submitted: float
    load: float
    charge: float = field(init=False)
    key: BatchKey = field(init=False)
    sequence: int = 0  # its place among all jobs that ever waited
    started: float = 0.0
    passed_since: float | None = None  # since when others went first because of their size
    losses: int = 0  # workers that exited while it ran on them
    retry_cost: int = 0  # those, weighed by how likely it is that the job was the reason
    lost_on: WorkerId | None = None
    assignment: SlotAssignment | None = None

    def __post_init__(self) -> None:
        self.charge, self.key = self.load + self.job.surcharge, self.job.batch_key

    @property
    def suspect(self) -> bool:
        """It ran on a worker that exited, and may be the reason."""
        return self.losses > 0


@dataclass(slots=True)
class ClientQueue:
    """One client's jobs: the most important first, then as they came. `served` is its virtual time."""

    served: float
    jobs: list[JobState] = field(default_factory=list)


def _importance(job: JobState) -> tuple[int, int]:
    return -job.job.priority, job.sequence


def _due(job: JobState) -> tuple[float, int]:
    return job.job.deadline, job.sequence


class FairQueue:
    """One queue per client, served in order of least work done.

    Suspects come before all others and in no client's queue: they have had their turn already.
    """

    def __init__(self) -> None:
        self.suspects: list[JobState] = []
        self.by_deadline: list[JobState] = []
        self._clients: dict[ClientId, ClientQueue] = {}  # a client whose first job is new is last
        self._virtual_time = 0.0
        self._sequence = 0

    def __len__(self) -> int:
        return len(self.suspects) + len(self.by_deadline)

    def __iter__(self) -> Iterator[JobState]:
        yield from self.suspects
        yield from self.by_deadline

    @property
    def clients(self) -> int:
        """How many clients have a job that waits."""
        return len(self._clients)

    def of(self, client: ClientId) -> list[JobState]:
        """A client's jobs, in its order."""
        return self._clients[client].jobs if client in self._clients else []

    def due_before(self, job: JobState) -> int:
        """How many jobs are due before a job that waits."""
        return bisect_left(self.by_deadline, _due(job), key=_due)

    def add(self, job: JobState) -> None:
        """A job is accepted."""
        self._sequence += 1
        job.sequence = self._sequence
        client = job.job.client
        queue = self._clients.setdefault(client, ClientQueue(self._virtual_time))
        insort(self.by_deadline, job, key=_due)
        insort(queue.jobs, job, key=_importance)
        if queue.jobs[0] is job:
            self._clients[client] = self._clients.pop(client)

    def put_back(self, suspects: list[JobState]) -> None:
        """Jobs have lost their worker."""
        self.suspects[:0] = suspects

    def remove(self, job: JobState, *, started: bool = False) -> None:
        """A job waits no longer. If it was started, its client is charged for it."""
        if job.suspect:
            self.suspects.remove(job)
            return
        self.by_deadline.remove(job)
        queue = self._clients.pop(job.job.client)
        queue.jobs.remove(job)
        if started:
            queue.served += job.charge
            self._virtual_time = max(self._virtual_time, queue.served)
        if queue.jobs:
            self._clients[job.job.client] = queue
        if not self._clients:
            self._virtual_time = 0.0

    @property
    def next(self) -> JobState | None:
        """Whose turn it is; None if only suspects wait."""
        if not self._clients:
            return None
        return min(self._clients.values(), key=lambda queue: queue.served + queue.jobs[0].charge).jobs[0]

    def turns(self) -> list[JobState]:
        """All but suspects, in the order of their turns if nobody else comes."""
        first, turns = self.next, list[tuple[float, bool, int, JobState]]()
        for queue in self._clients.values():
            turn = queue.served
            for job in queue.jobs:
                turn += job.charge
                turns.append((turn, job is not first, len(turns), job))
        return [job for *_, job in sorted(turns)]

    def first_of_each_size(self) -> list[JobState]:
        """The first job of each size that waits, in the order of their turns."""
        found: dict[BatchKey, tuple[float, int, JobState]] = {}
        for queue in self._clients.values():
            turn = queue.served
            for job in queue.jobs:
                turn += job.charge
                known = found.get(job.key)
                if known is None or turn < known[0]:
                    found[job.key] = turn, job.sequence, job
        return [job for *_, job in sorted(found.values())]

    def before(self, job: JobState) -> list[JobState]:
        """What starts before a job that waits, if nothing else comes."""
        if job.suspect:
            return self.suspects[: self.suspects.index(job)]
        turns = self.turns()
        return self.suspects + turns[: turns.index(job)]

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        queued = [job for queue in self._clients.values() for job in queue.jobs]
        require(sorted(map(_due, queued)) == list(map(_due, self.by_deadline)), "a job waits in one order only")
        for client, queue in self._clients.items():
            require(bool(queue.jobs), f"{client} has an empty queue")
            require(queue.jobs == sorted(queue.jobs, key=_importance), f"the jobs of {client} are out of order")
            require(queue.served <= self._virtual_time, f"{client} is ahead of the virtual time")
        require(all(job.suspect for job in self.suspects), "somebody waits among suspects who is none")
        require(all(job.assignment is None for job in self), "a job waits and runs")
