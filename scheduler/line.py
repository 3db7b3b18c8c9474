"""One client's jobs that wait: those of higher priority first, of equal priority in the order they came."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from scheduler.errors import require
from scheduler.messages import JobId
from scheduler.records import Ticket

SLACK = 64  # gaps that are not worth closing


class Row:
    """Jobs of one priority. Each has a number when it comes; who leaves from the middle leaves a gap.

    So a job's place is a difference of two numbers, less the gaps between them. Gaps are closed when they are the
    majority: everything takes O(log n), amortised.
    """

    __slots__ = ("_gaps", "_next", "_tickets")

    def __init__(self) -> None:
        self._tickets: OrderedDict[JobId, Ticket] = OrderedDict()
        self._gaps: list[int] = []  # sorted
        self._next = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets.values())

    @property
    def first(self) -> Ticket:
        """The one that came first."""
        return next(iter(self._tickets.values()))

    def add(self, ticket: Ticket) -> None:
        """At the end."""
        self._tickets[ticket.job.id] = ticket
        ticket.number = self._next
        self._next += 1

    def drop(self, ticket: Ticket) -> None:
        """From wherever it is."""
        if ticket is not self.first:
            insort(self._gaps, ticket.number)
        del self._tickets[ticket.job.id]
        if len(self._gaps) > 2 * len(self._tickets) + SLACK:
            self._close_gaps()

    def _close_gaps(self) -> None:
        self._gaps, self._next = [], len(self._tickets)
        for number, ticket in enumerate(self):
            ticket.number = number

    def before(self, ticket: Ticket) -> int:
        """How many stand before one."""
        first, number = self.first.number, ticket.number
        return number - first - (bisect_left(self._gaps, number) - bisect_left(self._gaps, first))


@dataclass(slots=True, eq=False)
class Line:
    """A client's rows. `served` is all that had been started by its last turn; `work` is what waits, in pictures.

    `first` is the job that starts next, and means nothing while none waits.
    """

    served: float = 0.0
    work: float = 0.0
    length: int = 0
    rows: dict[int, Row] = field(default_factory=dict)  # by priority, none of them empty
    first: Ticket = field(init=False)
    behind: tuple[int, float] | None = None  # as how many jobs, and how much work, what is behind the first was counted

    def __iter__(self) -> Iterator[Ticket]:
        return chain.from_iterable(self.rows[priority] for priority in sorted(self.rows, reverse=True))

    @property
    def turn(self) -> float:
        """What its client will have had when that job is started: the least has the turn."""
        return self.served + self.first.charge

    def add(self, ticket: Ticket) -> None:
        """At the end of its priority's row."""
        row = self.rows.get(ticket.job.priority)
        if row is None:
            row = self.rows[ticket.job.priority] = Row()
        row.add(ticket)
        if not self.length or ticket.job.priority > self.first.job.priority:
            self.first = ticket
        self.length += 1
        self.work += ticket.load

    def drop(self, ticket: Ticket) -> None:
        """From wherever it is."""
        row = self.rows[ticket.job.priority]
        row.drop(ticket)
        if not row:
            del self.rows[ticket.job.priority]
        if ticket is self.first and self.rows:
            self.first = self.rows[max(self.rows)].first
        self.length -= 1
        self.work -= ticket.load

    def before(self, ticket: Ticket) -> int:
        """How many of the client's own jobs start before this one."""
        priority = ticket.job.priority
        higher = sum([len(row) for each, row in self.rows.items() if each > priority])
        return higher + self.rows[priority].before(ticket)

    def check(self) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        tickets = list(self)
        require(self.length == len(tickets) > 0, "a line is miscounted, or empty and kept")
        require(all(self.rows.values()), "an empty row is kept")
        require(self.first is tickets[0], "a line has a wrong first job")
        require([self.before(each) for each in tickets] == list(range(self.length)), "a place in a line is wrong")
