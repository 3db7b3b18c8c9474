"""Clients by whose turn it is."""

from bisect import bisect_left, insort
from itertools import count

from scheduler.messages import ClientId


class Turns:
    """Clients by a number, the least first; equal ones in the order they were put.

    Unlike an `Agenda` it knows how many come before one: it is a sorted list, searched in O(log n). What a change moves
    in it is memory in one piece, of some microseconds with tens of thousands of clients.
    """

    def __init__(self) -> None:
        self._sorted: list[tuple[float, int, ClientId]] = []
        self._entries: dict[ClientId, tuple[float, int, ClientId]] = {}
        self._order = count()

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, client: ClientId) -> bool:
        return client in self._entries

    def put(self, client: ClientId, turn: float) -> None:
        """Add a client, or move it."""
        self.drop(client)
        entry = self._entries[client] = (turn, next(self._order), client)
        insort(self._sorted, entry)

    def drop(self, client: ClientId) -> None:
        """Withdraw a client, if it is there."""
        if (entry := self._entries.pop(client, None)) is not None:
            del self._sorted[bisect_left(self._sorted, entry)]

    @property
    def first(self) -> ClientId | None:
        """The client whose turn it is."""
        return self._sorted[0][2] if self._sorted else None

    @property
    def least(self) -> float:
        """That client's number."""
        return self._sorted[0][0]

    def before(self, client: ClientId) -> int:
        """How many have their turn before a client."""
        return bisect_left(self._sorted, self._entries[client])

    def until(self, turn: float) -> int:
        """How many have their turn before that number."""
        return bisect_left(self._sorted, (turn,))
