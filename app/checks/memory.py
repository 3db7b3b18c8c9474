"""The available memory against what the workers need at least; and shared memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from app.checks.finding import GIB, Finding, Level, Subject, size
from app.checks.weights import bytes_of_weights
from app.start import slot_layout
from workers.machine import GROUPS, MEMBERSHIP, group_folders
from workers.slots import SlotMemory

MEMINFO = Path("/proc/meminfo")
# A group's limit and what it has taken, in the second and the first version of control groups.
USAGE_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
# What a worker took with the small model (422 MB without files and shared memory), whose weights are next to nothing.
WORKER_BYTES, ECHO_BYTES = 0.4 * GIB, 0.05 * GIB


def check(subject: Subject) -> Iterator[Finding]:
    """Check main memory and shared memory. GPU memory is checked with each GPU."""
    yield _of_machine(subject)
    yield _shared(subject)


def _of_machine(subject: Subject) -> Finding:
    workers = len(subject.placement.devices)
    each = ECHO_BYTES if subject.settings.engine.kind == "echo" else WORKER_BYTES + bytes_of_weights(subject)
    free, needed = available_bytes(), workers * each
    text = f"{size(free)} available; {workers} worker(s) need about {size(needed)}, and more for each image"
    if free < needed:
        return Finding("memory", Level.WARNING, text, "end other programs, raise the limit, or run fewer workers")
    return Finding("memory", Level.OK, text)


def available_bytes(meminfo: Path = MEMINFO, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """The free memory of the machine and of this process's control groups, whichever is less."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return max(0, min([int(lines["MemAvailable"].split()[0]) * 1024, *_left(groups, membership)]))


def _left(groups: Path, membership: Path) -> Iterator[int]:
    """What the groups of this process, and all above them, leave it. In a container those at the top are its own."""
    for folder in group_folders("memory", groups, membership):
        for limit, taken in USAGE_FILES:
            with suppress(OSError, ValueError):  # no such file, or "max": no limit
                yield int((folder / limit).read_text()) - int((folder / taken).read_text())


def _shared(subject: Subject) -> Finding:
    layout = slot_layout(subject.settings)
    try:
        SlotMemory.create(layout).close()
    except OSError as error:
        text = f"a region of {size(layout.total)} cannot be made: {error.strerror or error}"
        remedy = "allow memfd_create (a seccomp profile may not), or lower engine.slots and server.max_image_bytes"
        return Finding("shared memory", Level.MISSING, text, remedy)
    text = f"memfd works; a worker has up to {size(layout.total)} of it, as images need it. /dev/shm is not used"
    return Finding("shared memory", Level.OK, text)
