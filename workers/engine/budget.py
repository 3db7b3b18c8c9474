"""A limit on the memory for decoding images at one time."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from workers.engine.contract import BadImageError
from workers.engine.header import Header, decoding_bytes, table_bytes

_MIB = 2**20
_LARGE_PART = 8  # an image that needs more than this part of the budget is large
_SMALL_PART = 4  # this part of the budget, once more, is for the small ones together


class DecodeBudget:
    """Limits the bytes of images that are being decoded. Thread-safe.

    Large images take seconds, and are decoded one at a time. Small ones do not wait for them, else a client with a few
    large files would delay everybody. The total is `capacity` and a quarter of it.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small = FairSemaphore(capacity // _SMALL_PART)
        self._large = FairSemaphore(1)

    @contextmanager
    def spend_on(self, header: Header, size: tuple[int, int]) -> Iterator[None]:
        """Hold the memory to decode an image to a size (width, height). Raises BadImageError if that is too much.

        A lossless WebP may need all of the budget for its codes. Hardly any does, but that is known only after
        decoding, so it counts as large.
        """
        needed = decoding_bytes(header, size)
        if needed > self._capacity:
            raise BadImageError(_refusal(header, size, needed, self._capacity))
        needed += table_bytes(header)
        if needed > self._capacity // _LARGE_PART:
            with self._large.hold(1):
                yield
        else:
            with self._small.hold(needed):
                yield


class FairSemaphore:
    """A semaphore that serves in the order of arrival, of bytes or places."""

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._waiting: deque[object] = deque()
        self._changed = Condition()

    @contextmanager
    def hold(self, needed: int) -> Iterator[None]:
        """Wait for `needed` units, and return them afterwards."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and needed <= self._free)
            self._waiting.popleft()
            self._free -= needed
            self._changed.notify_all()  # there may be enough for the next, too
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


def _refusal(header: Header, size: tuple[int, int], needed: int, capacity: int) -> str:
    return (
        f"Decoding this {header.format} image of {header.width} x {header.height} pixels can take {needed // _MIB} MiB "
        f"of memory; the limit is {capacity // _MIB} MiB. Send a smaller one: {size[0]} x {size[1]} pixels are used."
    )
