"""Resources that a process and its descendants use, by /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.service.running import alive, descendants

PAGE = os.sysconf("SC_PAGE_SIZE")
REGION = "memfd:contour-slots"
TRIES = 5  # as processes may end while they are looked at
RESIDENT_SLACK = 64 * 2**20  # the allocator of each process may keep more than this of what was freed
RESIDENT_SHARE = 1.25
POOLED = min(32, (os.cpu_count() or 1) + 4)  # threads in the server's pool, which start when they are needed


@dataclass(frozen=True, slots=True)
class Footprint:
    """Counts over all processes; `regions` are mappings of shared memory, `resident` is in bytes."""

    processes: int
    threads: int
    descriptors: int
    regions: int
    resident: int

    def excess(self, over: "Footprint") -> list[str]:
        """What there is more of than before, or, of processes and regions, less."""
        wrong = {
            "processes": self.processes != over.processes,
            "regions": self.regions != over.regions,
            "descriptors": self.descriptors > over.descriptors,
            "threads": self.threads > over.threads + POOLED,
            "resident": self.resident > over.resident * RESIDENT_SHARE + RESIDENT_SLACK,
        }
        return [f"{name}: {getattr(over, name)} before, {getattr(self, name)} after" for name in wrong if wrong[name]]


def footprint(root: int) -> Footprint:
    """Of a process and its descendants."""
    for _ in range(TRIES):
        try:
            return _sum([_one(pid) for pid in sorted({root} | descendants(root))])
        except OSError:
            continue
    raise AssertionError(f"the processes below {root} come and go")


def _sum(each: list[Footprint]) -> Footprint:
    names = ("processes", "threads", "descriptors", "regions", "resident")
    return Footprint(**{name: sum(getattr(one, name) for one in each) for name in names})


def _one(pid: int) -> Footprint:
    process = Path(f"/proc/{pid}")
    return Footprint(
        processes=1,
        threads=len(os.listdir(process / "task")),
        descriptors=len(os.listdir(process / "fd")),
        regions=(process / "maps").read_text().count(REGION),
        resident=int((process / "statm").read_text().split()[1]) * PAGE,
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: str

    @property
    def there(self) -> bool:
        """Whether it still lives."""
        return alive(self.pid) and _started(self.pid) == self.started


def family(root: int) -> list[Identity]:
    """All descendants of a process."""
    return [Identity(pid, _started(pid)) for pid in descendants(root)]


def _started(pid: int) -> str:
    """In clock ticks since boot; proc(5), field 22."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
