"""How much memory this process may take: that of the machine, or what its control groups grant of it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from workers.cores import GROUPS, MEMBERSHIP, group_folders

MEMINFO = Path("/proc/meminfo")


def memory_limit(meminfo: Path = MEMINFO, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes that this process, and all others in its control groups, may take together."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return min([int(lines["MemTotal"].split()[0]) * 1024, *_limits(groups, membership)])


def _limits(groups: Path, membership: Path) -> Iterator[int]:
    """The limits of this process's groups and of all above them."""
    for folder in group_folders("memory", groups, membership):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of the second and the first version of control groups
            with suppress(OSError, ValueError):  # no such file, or "max": no limit
                yield int((folder / name).read_text())
