"""How much memory a process has, by /proc."""

from pathlib import Path


def resident_bytes(process: int) -> int:
    """What is in memory now. Shared memory counts too."""
    return _status(process, "VmRSS")


def peak_bytes(process: int) -> int:
    """The most that ever was in memory at a time."""
    return _status(process, "VmHWM")


def _status(process: int, name: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise AssertionError(f"/proc/{process}/status has no {name}")
