"""Whose turn it is: the jobs that wait, in a line for each client.

Turns are fair: clients who wait get the same work started, however many jobs each has in its line (self-clocked fair
queueing: Golestani, INFOCOM 1994). Whose turn it is starts its most important job. But every job was promised its
deadline when it was taken, by what was there to start before it: the promised order. Who starts out of that order
delays others, its client's own jobs among them. Each job has a leeway for that, in work, and who has none left is
overtaken no more: then the promised order holds, until such jobs have started.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import isclose

from scheduler.agenda import Agenda
from scheduler.crowd import Crowd
from scheduler.errors import require
from scheduler.line import Line
from scheduler.messages import ClientId, JobId
from scheduler.records import Ticket
from scheduler.turns import Turns

NOBODY = Line()


@dataclass(frozen=True, slots=True)
class Before:
    """What starts before a job that waits: so many jobs, of so much work. Both are expectations."""

    jobs: float
    work: float


class Lines:
    """Owns the tickets that wait, suspects apart. Everything takes O(log n)."""

    def __init__(self) -> None:
        self._lines: dict[ClientId, Line] = {}
        self._turns = Turns()
        self._served = 0.0  # by the last turn that somebody had: who comes now starts from here
        self._ahead: OrderedDict[JobId, Ticket] = OrderedDict()  # the promised order: these ...
        self._behind: OrderedDict[JobId, Ticket] = OrderedDict()  # ... then these
        self._leeways: Agenda[JobId] = Agenda()  # each plus what had overtaken by the time its job came
        self._overtaken = 0.0  # all the work that has overtaken
        self._crowd = Crowd()  # of what is behind the first job of each line
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
        client = self._turns.first
        if client is None:
            return None
        fair, promised = self._lines[client].first, self._promised
        return fair if fair is promised or self.can_bear(fair.load, but=fair.job.id) else promised

    @property
    def _promised(self) -> Ticket:
        return next(iter((self._ahead or self._behind).values()))

    def can_bear(self, work: float, but: JobId | None = None) -> bool:
        """Whether everybody who waits, other than `but`, would still be in time if so much work overtook them."""
        tightest = self._leeways.first(but=but)
        return tightest is None or self._leeways[tightest] >= self._overtaken + work

    def add(self, ticket: Ticket, leeway: float, *, ahead: bool) -> None:
        """Into its client's line. `ahead`: before all who were not promised that, who have to bear it."""
        job = ticket.job
        if ahead:
            self._overtaken += ticket.load
            self._ahead[job.id] = ticket
        else:
            self._behind[job.id] = ticket
            self.behind_work += ticket.load
        self._leeways.put(job.id, leeway + self._overtaken)
        line = self._lines.get(job.client)
        if line is None:
            line = self._lines[job.client] = Line(self._served)
        line.add(ticket)
        self._arrange(line, moved=line.first is ticket)

    def start(self, ticket: Ticket) -> None:
        """A job has its turn: the first in the line of its client, or the one that was promised to be next."""
        line, promised = self._lines[ticket.job.client], self._promised
        require(ticket in (line.first, promised), "a job starts out of turn, and was not promised to be next")
        if ticket is not promised:
            self._overtaken += ticket.load
        line.served += ticket.charge
        self._served = max(self._served, line.served)
        self._leave(line, ticket, moved=True)

    def drop(self, ticket: Ticket) -> None:
        """It waits no more."""
        line = self._lines[ticket.job.client]
        self._leave(line, ticket, moved=line.first is ticket)

    def _leave(self, line: Line, ticket: Ticket, *, moved: bool) -> None:
        job = ticket.job
        line.drop(ticket)
        if not line.length:
            del self._lines[job.client]
            self._turns.drop(job.client)
        self._arrange(line, moved=moved)
        self._leeways.drop(job.id)
        if self._ahead.pop(job.id, None) is None:
            del self._behind[job.id]
            self.behind_work = self.behind_work - ticket.load if self._behind else 0.0
        if not self._lines:
            self._served = self._overtaken = 0.0

    def _arrange(self, line: Line, *, moved: bool) -> None:
        """A line has changed; `moved`: its turn has as well."""
        if line.behind is not None:
            self._crowd.remove(*line.behind)
            line.behind = None
        if not line.length:
            return
        first = line.first
        if line.length > 1:
            line.behind = line.length - 1, line.work - first.load
            self._crowd.add(*line.behind)
        if moved:
            self._turns.put(first.job.client, line.turn)

    def before(self, ticket: Ticket, load: float) -> Before:
        """What is to start before a job, by fair turns: promises that go before them and jobs to come are left out.

        Its place in its client's line is known, and so is how many clients have a turn before it. What these start
        beside the first in their lines is estimated (`Crowd`). `load` is what a job of theirs takes in the mean.
        """
        if ticket is self.next:
            return Before(0.0, 0.0)
        line = self._lines[ticket.job.client]
        own = line.before(ticket)
        work = own * line.work / line.length
        turn = line.served + work + ticket.charge
        firsts = self._turns.before(ticket.job.client)
        if own:  # by when its own turn comes; an expected one may be sooner than that of a longer job that is first
            firsts = max(firsts, self._turns.until(turn) - 1)
        reach = turn - self._turns.least - load / 2  # others' turns are half a turn later, in the mean
        more, more_work = self._crowd.within(max(0.0, reach), but=line.behind)
        return Before(own + firsts + more, work + firsts * load + more_work)

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        tickets = {ticket.job.id: ticket for line in self._lines.values() for ticket in line}
        require(tickets == self._ahead | self._behind, "a job is in two lines, or in none")
        require(len(self) == len(self._leeways) == len(tickets), "a leeway is missing, or left over")
        require(all(client in self._turns for client in self._lines), "a client has no turn")
        require(len(self._turns) == len(self._lines), "a client who has nothing has a turn")
        behind = sum(ticket.load for ticket in self._behind.values())
        require(isclose(self.behind_work, behind, abs_tol=1e-6), "work behind drifts")
        for line in self._lines.values():
            line.check()
            work = sum(ticket.load for ticket in line)
            require(isclose(line.work, work, abs_tol=1e-6), "a line's work drifts")
        jobs, _ = self._crowd.within(float("inf"))
        require(isclose(jobs, len(tickets) - len(self._lines), abs_tol=1e-6), "the crowd is miscounted")
