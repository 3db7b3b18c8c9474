"""Memory: what is to be had, against what the workers will take at least; and shared memory."""

from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path

from app.checks.finding import GIB, Finding, Level, Subject, size
from app.start import slot_layout
from workers.cores import GROUPS, MEMBERSHIP
from workers.engine.ahead import files
from workers.engine.weights import absent
from workers.fetching.errors import FetchError
from workers.fetching.tensors import shapes_in
from workers.slots import SlotMemory

MEMINFO = Path("/proc/meminfo")
# What a worker took with the small model (422 MB without files and shared memory), whose weights are next to nothing.
WORKER_BYTES, ECHO_BYTES = 0.4 * GIB, 0.05 * GIB
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def check(subject: Subject) -> Iterator[Finding]:
    """Finds out about the machine's, the GPUs' and the shared one."""
    weights = _weights(subject)
    yield _of_machine(subject, weights)
    if subject.on_gpu and weights:
        yield from _of_gpus(subject, weights)
    yield _shared(subject)


def _weights(subject: Subject) -> int:
    """Bytes of a model's weights as a worker computes with them; 0 where there are none, or not all."""
    engine = subject.settings.engine
    if engine.kind == "echo" or absent(engine):
        return 0
    name = "cuda:0" if subject.on_gpu else "cpu"
    item = ITEM_BYTES[engine.dtype_on(cuda=subject.on_gpu)]
    with suppress(FileNotFoundError, FetchError):  # the check of weights tells of that
        return item * sum(prod(shape) for path in files(engine, name) for shape in shapes_in(path).values())
    return 0


def _of_machine(subject: Subject, weights: int) -> Finding:
    workers = len(subject.placement.devices)
    each = ECHO_BYTES if subject.settings.engine.kind == "echo" else WORKER_BYTES + weights
    free, needed = available_bytes(), workers * each
    text = f"{size(free)} to be had; {workers} worker(s) take some {size(needed)}, and more for each picture"
    if free < needed:
        return Finding("memory", Level.WARNING, text, "end other programs, raise the limit, or run fewer workers")
    return Finding("memory", Level.OK, text)


def available_bytes(meminfo: Path = MEMINFO, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Memory that the machine has left, and the control groups of this process."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return max(0, min([int(lines["MemAvailable"].split()[0]) * 1024, *_left(groups, membership)]))


def _left(groups: Path, membership: Path) -> Iterator[int]:
    """What the groups of this process, and all above them, leave it. In a container those at the top are its own."""
    with suppress(OSError):
        path = next((line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")), "/")
        group = groups / path.strip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # no such file, or "max": no limit
                yield int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())


def _of_gpus(subject: Subject, weights: int) -> Iterator[Finding]:
    assert subject.nvml is not None  # or no worker would be on a GPU
    for device in subject.placement.devices:
        reading = subject.nvml.read(device.token or "")
        if reading.memory_total is None or reading.memory_used is None:
            continue
        free = reading.memory_total - reading.memory_used
        text = f"{device.id}: {size(free)} free; the weights take {size(weights)}, each picture and graph more"
        if free < weights:
            yield Finding("gpu memory", Level.MISSING, text, "end what else runs on it (nvidia-smi), or choose another")
        else:
            yield Finding("gpu memory", Level.OK, text)


def _shared(subject: Subject) -> Finding:
    layout = slot_layout(subject.settings)
    try:
        SlotMemory.create(layout).close()
    except OSError as error:
        text = f"a region of {size(layout.total)} cannot be made: {error.strerror or error}"
        remedy = "allow memfd_create (a seccomp profile may not), or lower engine.slots and server.max_picture_bytes"
        return Finding("shared memory", Level.MISSING, text, remedy)
    text = f"memfd works; a worker has up to {size(layout.total)} of it, as pictures need it. /dev/shm is not used"
    return Finding("shared memory", Level.OK, text)
