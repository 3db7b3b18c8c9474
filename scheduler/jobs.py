"""The accepted jobs: which of them wait, which run, and when each is due."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import isclose

from scheduler.agenda import Agenda
from scheduler.errors import require
from scheduler.lines import Before, Lines
from scheduler.messages import JobId
from scheduler.records import Ticket, Worker


class Jobs:
    """Owns the tickets. Suspects, who were served once, come before all others, who wait in `lines`."""

    def __init__(self) -> None:
        self._tickets: dict[JobId, Ticket] = {}
        self._suspects: OrderedDict[JobId, Ticket] = OrderedDict()
        self.lines = Lines()
        self._running: OrderedDict[JobId, Ticket] = OrderedDict()
        self.deadlines: Agenda[JobId] = Agenda()
        self.waiting_work = 0.0
        """All the work that waits, in nominal pictures."""
        self.largest_work = 1.0
        """The size of any job so far."""
        self.largest_load = 1.0
        """All that any job so far took, in nominal pictures."""

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(list(self._tickets.values()))

    def __contains__(self, job: JobId) -> bool:
        return job in self._tickets

    def __getitem__(self, job: JobId) -> Ticket:
        return self._tickets[job]

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._suspects) + len(self.lines)

    @property
    def running(self) -> int:
        """How many run."""
        return len(self._running)

    def suspects(self) -> list[Ticket]:
        """All suspects that wait, the first first."""
        return list(self._suspects.values())

    @property
    def suspect(self) -> Ticket | None:
        """The first suspect that waits."""
        return next(iter(self._suspects.values()), None)

    def before(self, job: JobId) -> Before | None:
        """What is expected to start before a job that waits, see `Lines.before`; None if it does not wait."""
        ticket = self._tickets.get(job)
        if ticket is None or ticket.tenant is not None:
            return None
        if ticket.suspect:
            ahead = list(takewhile(lambda other: other is not ticket, self._suspects.values()))
            return Before(len(ahead), sum(other.load for other in ahead))
        others = self.lines.before(ticket, self.waiting_work / self.waiting)
        suspects = sum(other.load for other in self._suspects.values())
        return Before(len(self._suspects) + others.jobs, suspects + others.work)

    @property
    def oldest(self) -> Ticket | None:
        """Of those that run, the one that started first."""
        return next(iter(self._running.values()), None)

    @property
    def oldest_worker(self) -> Worker | None:
        """The worker that runs it."""
        return oldest.tenant.worker if (oldest := self.oldest) is not None and oldest.tenant is not None else None

    def accept(self, ticket: Ticket, leeway: float, *, ahead: bool) -> None:
        """Queue a new job; see `Lines.add`."""
        job = ticket.job
        self._tickets[job.id] = ticket
        self.lines.add(ticket, leeway, ahead=ahead)
        self.deadlines.put(job.id, job.deadline)
        self.waiting_work += ticket.load
        self.largest_work = max(self.largest_work, job.work)
        self.largest_load = max(self.largest_load, ticket.load)

    def start(self, ticket: Ticket) -> None:
        """Out of the queue, into a slot."""
        if ticket.suspect:
            del self._suspects[ticket.job.id]
        else:
            self.lines.start(ticket)
        self._count_out(ticket)
        self._running[ticket.job.id] = ticket

    def put_back(self, suspects: Sequence[Ticket]) -> None:
        """Out of a lost worker, before everybody else in the queue, in their order."""
        for ticket in reversed(suspects):
            del self._running[ticket.job.id]
            self._suspects[ticket.job.id] = ticket
            self._suspects.move_to_end(ticket.job.id, last=False)
            self.waiting_work += ticket.load

    def close(self, ticket: Ticket) -> None:
        """It is answered."""
        if self._running.pop(ticket.job.id, None) is None:
            self._leave_queue(ticket)
        del self._tickets[ticket.job.id]
        self.deadlines.drop(ticket.job.id)

    def _leave_queue(self, ticket: Ticket) -> None:
        if ticket.suspect:
            del self._suspects[ticket.job.id]
        else:
            self.lines.drop(ticket)
        self._count_out(ticket)

    def _count_out(self, ticket: Ticket) -> None:
        self.waiting_work = self.waiting_work - ticket.load if self.waiting else 0.0

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        self.lines.check()
        others = list(self.lines)
        waiting = [*self._suspects.values(), *others]
        places = sorted([*self._suspects, *(ticket.job.id for ticket in others), *self._running])
        require(places == sorted(self._tickets), "a job is in two places, or nowhere")
        require(all(ticket.suspect for ticket in self._suspects.values()), "an unsuspected job is among the suspects")
        require(not any(ticket.suspect for ticket in others), "a suspect is among the others")
        require(not any(ticket.tenant for ticket in waiting), "a job that waits is in a slot")
        require(all(ticket.tenant for ticket in self._running.values()), "a job that runs is in no slot")
        require(len(self.deadlines) == len(self._tickets), "a deadline is missing, or left over")
        require(all(job in self.deadlines for job in self._tickets), "a job has no deadline")
        require(isclose(self.waiting_work, sum(ticket.load for ticket in waiting), abs_tol=1e-6), "work drifts")
