"""Images in shared memory: one anonymous region per worker, cut into fixed input and output slots.

The region is a memfd. It has no name, so no crash leaves anything in /dev/shm, no resource tracker has to know it,
and a container's 64 MB /dev/shm does not bound it. Pages are allocated when they are first touched.

Its size is sealed. A worker decodes what strangers send, and shares this memory. If it could make the file shorter, the
front end would be killed (SIGBUS) by its next access to what is gone.
"""

import fcntl
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """`count` slots, each with room for `input_bytes` of request and `output_bytes` of result."""

    count: int
    input_bytes: int
    output_bytes: int

    @property
    def total(self) -> int:
        """Size of the whole region in bytes."""
        return self.count * (self.input_bytes + self.output_bytes)


class SlotMemory:
    """A mapped region. The scheduler decides who may touch which slot when; this is only the arithmetic."""

    def __init__(self, descriptor: int, layout: SlotLayout) -> None:
        self.descriptor = descriptor
        self.layout = layout
        self._map = mmap.mmap(descriptor, layout.total)
        self._view = memoryview(self._map)

    @classmethod
    def create(cls, layout: SlotLayout) -> "SlotMemory":
        """Make a new region; hand its `descriptor` to the process that shares it."""
        descriptor = os.memfd_create("contour-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, layout.total)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, FIXED_SIZE)
        return cls(descriptor, layout)

    def input(self, slot: int) -> memoryview:
        """The request side of a slot, writable."""
        return self._cut(slot, 0, self.layout.input_bytes)

    def output(self, slot: int) -> memoryview:
        """The result side of a slot, writable."""
        return self._cut(slot, self.layout.input_bytes, self.layout.output_bytes)

    def write(self, slot: int, *parts: bytes | memoryview) -> None:
        """Put parts one after another at the beginning of the request side of a slot."""
        with self.input(slot) as room:
            start = 0
            for part in parts:
                room[start : start + len(part)] = part
                start += len(part)

    def read(self, slot: int, length: int) -> bytes:
        """So many bytes of the result side of a slot."""
        with self.output(slot) as room:
            return bytes(room[:length])

    def clear(self) -> None:
        """Give all pages back: what was in the slots is lost."""
        self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Unmap and close. Views handed out before must be gone: BufferError otherwise."""
        self._view.release()
        self._map.close()
        os.close(self.descriptor)

    def __reduce__(self) -> tuple[Callable[..., "SlotMemory"], tuple[Any, SlotLayout]]:
        """Pickled as an argument of a process being spawned, it arrives there as the same memory."""
        return _attach, (reduction.DupFd(self.descriptor), self.layout)

    def _cut(self, slot: int, offset: int, length: int) -> memoryview:
        if not 0 <= slot < self.layout.count:
            raise IndexError(f"slot {slot} of {self.layout.count}")
        start = slot * (self.layout.input_bytes + self.layout.output_bytes) + offset
        return self._view[start : start + length]


def _attach(descriptor: Any, layout: SlotLayout) -> SlotMemory:
    return SlotMemory(descriptor.detach(), layout)
