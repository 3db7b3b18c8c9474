"""Whose turn it is: the jobs that wait, in a line for each client.

Turns are fair: clients who wait get the same work started, however many jobs each has in its line (self-clocked fair
queueing: Golestani, INFOCOM 1994). But every job was promised its deadline when it was taken, by what was there to
start before it: the promised order. Who starts out of that order delays others. Each job has a leeway for that, in
work, and who has none left is overtaken no more: then the promised order holds, until such jobs have started.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from math import isclose

from scheduler.agenda import Agenda
from scheduler.errors import require
from scheduler.messages import ClientId, JobId
from scheduler.records import Ticket


@dataclass(slots=True, eq=False)
class Line:
    """One client's jobs, first come, first served. `served` is all that had been started by the client's last turn."""

    served: float = 0.0
    tickets: OrderedDict[JobId, Ticket] = field(default_factory=OrderedDict)
    work: float = 0.0

    @property
    def first(self) -> Ticket:
        """The job that starts next."""
        return next(iter(self.tickets.values()))

    @property
    def turn(self) -> float:
        """What its client will have had when that job is started: the least has the turn."""
        return self.served + self.first.job.work


NOBODY = Line()


class Lines:
    """Owns the tickets that wait, suspects apart. Everything takes O(log n)."""

    def __init__(self) -> None:
        self._lines: dict[ClientId, Line] = {}
        self._turns: Agenda[ClientId] = Agenda()
        self._served = 0.0  # by the last turn that somebody had: who comes now starts from here
        self._ahead: OrderedDict[JobId, Ticket] = OrderedDict()  # the promised order: these ...
        self._behind: OrderedDict[JobId, Ticket] = OrderedDict()  # ... then these
        self._leeways: Agenda[JobId] = Agenda()  # each plus what had overtaken by the time its job came
        self._overtaken = 0.0  # all the work that has overtaken
        self.behind_work = 0.0
        """Work that was not promised to go ahead of others."""

    def __len__(self) -> int:
        return len(self._ahead) + len(self._behind)

    def __iter__(self) -> Iterator[Ticket]:
        return chain(self._ahead.values(), self._behind.values())

    def of(self, client: ClientId) -> Line:
        """The line of a client; an empty one if nothing of it waits."""
        return self._lines.get(client, NOBODY)

    @property
    def next(self) -> Ticket | None:
        """The job whose turn it is: in fair order as long as everybody else can bear that, else in the promised one."""
        client = self._turns.first()
        if client is None:
            return None
        fair, promised = self._lines[client].first, self._promised
        return fair if fair is promised or self.can_bear(fair.job.work, but=fair.job.id) else promised

    @property
    def _promised(self) -> Ticket:
        return next(iter((self._ahead or self._behind).values()))

    def can_bear(self, work: float, but: JobId | None = None) -> bool:
        """Whether everybody who waits, other than `but`, would still be in time if so much work overtook them."""
        tightest = self._leeways.first(but=but)
        return tightest is None or self._leeways[tightest] >= self._overtaken + work

    def add(self, ticket: Ticket, leeway: float, *, ahead: bool) -> None:
        """At the end of its client's line. `ahead`: before all who were not promised that, who have to bear it."""
        job = ticket.job
        if ahead:
            self._overtaken += job.work
            self._ahead[job.id] = ticket
        else:
            self._behind[job.id] = ticket
            self.behind_work += job.work
        self._leeways.put(job.id, leeway + self._overtaken)
        line = self._lines.setdefault(job.client, Line(self._served))
        line.tickets[job.id] = ticket
        line.work += job.work
        if line.first is ticket:
            self._turns.put(job.client, line.turn)

    def start(self, ticket: Ticket) -> None:
        """The first in the line of a client has its turn."""
        line = self._lines[ticket.job.client]
        require(line.first is ticket, "a job starts before an older one of its client")
        if ticket is not self._promised:
            self._overtaken += ticket.job.work
        line.served = line.turn
        self._served = max(self._served, line.served)
        self.drop(ticket)

    def drop(self, ticket: Ticket) -> None:
        """It waits no more."""
        job = ticket.job
        line = self._lines[job.client]
        was_first = line.first is ticket
        del line.tickets[job.id]
        line.work -= job.work
        if not line.tickets:
            del self._lines[job.client]
            self._turns.drop(job.client)
        elif was_first:
            self._turns.put(job.client, line.turn)
        self._leeways.drop(job.id)
        if self._ahead.pop(job.id, None) is None:
            del self._behind[job.id]
            self.behind_work = self.behind_work - job.work if self._behind else 0.0
        if not self._lines:
            self._served = self._overtaken = 0.0

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        tickets = {job: ticket for line in self._lines.values() for job, ticket in line.tickets.items()}
        require(tickets == self._ahead | self._behind, "a job is in two lines, or in none")
        require(len(self) == len(self._leeways) == len(tickets), "a leeway is missing, or left over")
        require(all(line.tickets for line in self._lines.values()), "an empty line is kept")
        require(all(client in self._turns for client in self._lines), "a client has no turn")
        require(len(self._turns) == len(self._lines), "a client who has nothing has a turn")
        behind = sum(ticket.job.work for ticket in self._behind.values())
        require(isclose(self.behind_work, behind, abs_tol=1e-6), "work behind drifts")
        for line in self._lines.values():
            work = sum(ticket.job.work for ticket in line.tickets.values())
            require(isclose(line.work, work, abs_tol=1e-6), "a line's work drifts")
