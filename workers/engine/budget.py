"""A limit of the memory that is spent on decoding images at one time."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from workers.engine.contract import BadPictureError
from workers.engine.header import Header, decoding_bytes, table_bytes

_MIB = 2**20


class DecodeBudget:
    """Bytes for images that are being decoded. May be used by several threads at once.

    Whoever finds too few free waits for its turn: first come, first served, so that small images do not keep a large
    one waiting for ever.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = self._free = capacity
        self._waiting: deque[object] = deque()
        self._changed = Condition()

    @contextmanager
    def spend_on(self, header: Header, size: tuple[int, int]) -> Iterator[None]:
        """Hold what it takes to decode an image to a size (width, height). Raises BadPictureError if that is too much.

        What is too much for the whole budget would wait for ever. A lossless WebP takes all of it if its codes may need
        so much: hardly any does, and which do is known only when it is decoded, so it is decoded alone.
        """
        needed = decoding_bytes(header, size)
        if needed > self._capacity:
            raise BadPictureError(_refusal(header, size, needed, self._capacity))
        needed = min(needed + table_bytes(header), self._capacity)
        self._take(needed)
        try:
            yield
        finally:
            self._give_back(needed)

    def _take(self, needed: int) -> None:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            self._changed.wait_for(lambda: self._waiting[0] is turn and needed <= self._free)
            self._waiting.popleft()
            self._free -= needed
            self._changed.notify_all()  # there may be enough for the next one, too

    def _give_back(self, taken: int) -> None:
        with self._changed:
            self._free += taken
            self._changed.notify_all()


def _refusal(header: Header, size: tuple[int, int], needed: int, capacity: int) -> str:
    return (
        f"Decoding this {header.format} image of {header.width} x {header.height} pixels can take {needed // _MIB} MiB "
        f"of memory; the limit is {capacity // _MIB} MiB. Send a smaller one: {size[0]} x {size[1]} pixels are used."
    )
