"""A priority queue whose entries can be moved and withdrawn."""

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

SLACK = 64  # stale entries that are not worth a clean-up


class Agenda(Generic[Key]):
    """Keys by a number, the least first; equal ones in the order they were put.

    A moved or withdrawn key leaves its old entry in the heap, to be dropped when it comes up or when such entries are
    the majority. So everything takes O(log n), amortised.
    """

    def __init__(self) -> None:
        self._live: dict[Key, tuple[float, int, Key]] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: Key) -> bool:
        return key in self._live

    def __getitem__(self, key: Key) -> float:
        return self._live[key][0]

    def put(self, key: Key, number: float) -> None:
        """Add a key, or move it."""
        entry = (number, next(self._order), key)
        self._live[key] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._live) + SLACK:
            self._heap = list(self._live.values())
            heapify(self._heap)

    def drop(self, key: Key) -> None:
        """Withdraw a key, if it is there."""
        self._live.pop(key, None)

    def first(self, *, but: Key | None = None) -> Key | None:
        """The first key other than `but`, None if there is no such key."""
        entry = self._first()
        if entry is None or entry[2] != but:
            return entry and entry[2]
        heappop(self._heap)
        second = self._first()
        heappush(self._heap, entry)
        return second and second[2]

    @property
    def least(self) -> float | None:
        """The first key's number."""
        entry = self._first()
        return entry and entry[0]

    def due(self, now: float) -> Iterator[Key]:
        """Withdraw and yield the keys whose number has come, including those that are put in meanwhile."""
        while (entry := self._first()) is not None and entry[0] <= now:
            del self._live[entry[2]]
            yield entry[2]

    def _first(self) -> tuple[float, int, Key] | None:
        while self._heap:
            entry = self._heap[0]
            if self._live.get(entry[2]) is entry:
                return entry
            heappop(self._heap)
        return None
