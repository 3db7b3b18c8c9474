"""The cores and the memory that this process may use: the machine's, or what its control groups grant of them.

And settings of the C allocator for a process that handles one large image after another.
"""

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

MEMINFO, CPUINFO = Path("/proc/meminfo"), Path("/proc/cpuinfo")
GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores(groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Whole cores, at least one: a thread for which there is only part of a core keeps all others waiting."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.floor(min([allowed, *_quotas(groups, membership)])))


def computes_in_bfloat16(info: Path = CPUINFO) -> bool:
    """Whether this CPU has instructions for bfloat16, AVX-512 BF16 or AMX."""
    with suppress(OSError):
        lines = (line.partition(":") for line in info.read_text().splitlines())
        flags = {flag for name, _, found in lines if name.strip() == "flags" for flag in found.split()}
        return not flags.isdisjoint({"avx512_bf16", "amx_bf16"})
    return False


def memory_limit(meminfo: Path = MEMINFO, groups: Path = GROUPS, membership: Path = MEMBERSHIP) -> int:
    """Bytes that this process, and all others in its control groups, may take together."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return min([int(lines["MemTotal"].split()[0]) * 1024, *_limits(groups, membership)])


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


def _limits(groups: Path, membership: Path) -> Iterator[int]:
    """The limits of this process's groups and of all above them."""
    for folder in group_folders("memory", groups, membership):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of the second and the first version of control groups
            with suppress(OSError, ValueError):  # no such file, or "max": no limit
                yield int((folder / name).read_text())


def group_folders(controller: str, groups: Path, membership: Path) -> Iterator[Path]:
    """Where a controller's limits of this process are. In a container the files at the top are its own."""
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                group = PurePosixPath(path)
                yield from (groups / controllers / str(part).strip("/") for part in (group, *group.parents))


# ------------------------------------------------------------------------------------------------------------ allocator


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEPT_BYTES = 256 * 2**20
MAPPED_BYTES = 32 * 2**20  # the most that glibc accepts on 64 bits


def keep_freed_memory(kept: int = KEPT_BYTES) -> None:
    """Keep what is freed instead of giving it back to the kernel, up to `kept` bytes (at most 2 GiB - 1).

    Otherwise every buffer of some 100 KB is mapped anew, and each of its pages faults when first touched. With images
    of 384 KiB that took half of a request's time in the service. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, kept)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
