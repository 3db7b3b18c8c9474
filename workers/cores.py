"""How many cores this process may keep busy: those it may run on, or what its control groups grant of them."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Whole cores, at least one: a thread for which there is only part of a core keeps all others waiting."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.floor(min([allowed, *_quotas(groups, membership)])))


def _quotas(groups: Path, membership: Path) -> Iterator[float]:
    """The cores that this process's groups and all above them grant, where they are limited."""
    for folder in group_folders("cpu", groups, membership):
        with suppress(OSError, ValueError):  # no such file: no limit. "max": no limit either
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota) / int(period)
        with suppress(OSError, ValueError):  # the first version of control groups
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield int(quota) / int(period)


def group_folders(controller: str, groups: Path, membership: Path) -> Iterator[Path]:
    """Where a controller's limits of this process are. In a container the files at the top are its own."""
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                group = PurePosixPath(path)
                yield from (groups / controllers / str(part).strip("/") for part in (group, *group.parents))
