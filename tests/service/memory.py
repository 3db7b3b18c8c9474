"""How much memory and time a process has taken, by /proc."""

import os
from pathlib import Path


def resident_bytes(process: int) -> int:
    """What is in memory now. Shared memory counts too."""
    return _status(process, "VmRSS")


def peak_bytes(process: int) -> int:
    """The most that ever was in memory at a time."""
    return _status(process, "VmHWM")


def cpu_seconds(process: int) -> float:
    """The processor's time that it has taken since its start."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _status(process: int, name: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise AssertionError(f"/proc/{process}/status has no {name}")
