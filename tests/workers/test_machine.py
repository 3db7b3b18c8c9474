"""The cores and the memory that a process may use, where a container has less of them than the machine."""

import os
from pathlib import Path

import pytest

from workers.machine import available_cores, memory_limit

GIB = 2**30


@pytest.fixture(autouse=True)
def of_four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


def group(root: Path, path: str, **files: str) -> Path:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return root


def member(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "membership"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", 4), ("900000 100000", 4)],
)
def test_a_container_computes_with_the_cores_that_it_is_granted(tmp_path: Path, limit: str, cores: int) -> None:
    assert available_cores(group(tmp_path, ".", cpu__max=limit), member(tmp_path, "0::/")) == cores


def test_a_limit_further_up_holds_as_well(tmp_path: Path) -> None:
    group(tmp_path, "pods/one", cpu__max="max 100000")
    groups = group(tmp_path, "pods", cpu__max="300000 100000")
    assert available_cores(groups, member(tmp_path, "0::/pods/one")) == 3


@pytest.mark.parametrize(("quota", "cores"), [("200000", 2), ("-1", 4)])
def test_the_first_version_of_control_groups_is_understood(tmp_path: Path, quota: str, cores: int) -> None:
    groups = group(tmp_path, "cpu,cpuacct/box", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert available_cores(groups, member(tmp_path, "4:memory:/box", "3:cpu,cpuacct:/box")) == cores


def test_a_group_that_is_not_shown_limits_nothing(tmp_path: Path) -> None:
    """Docker with the first version names a group of the host, whose folder a container does not see."""
    assert available_cores(tmp_path, member(tmp_path, "0::/system.slice/docker-1234.scope")) == 4
    assert available_cores(tmp_path, tmp_path / "no-such-file") == 4


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    """Of a machine with 16 GiB."""
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16777216 kB\nMemFree:         1000000 kB\n")
    return file


@pytest.mark.parametrize(("limit", "bytes_"), [(str(2 * GIB), 2 * GIB), ("max", 16 * GIB), (str(64 * GIB), 16 * GIB)])
def test_a_container_has_the_memory_that_it_is_granted(tmp_path: Path, meminfo: Path, limit: str, bytes_: int) -> None:
    groups = group(tmp_path, "groups", memory__max=limit) / "groups"
    assert memory_limit(meminfo, groups, member(tmp_path, "0::/")) == bytes_


def test_a_limit_of_memory_further_up_holds_as_well(tmp_path: Path, meminfo: Path) -> None:
    group(tmp_path, "pods/one", memory__max="max")
    groups = group(tmp_path, "pods", memory__max=str(3 * GIB))
    assert memory_limit(meminfo, groups, member(tmp_path, "0::/pods/one")) == 3 * GIB


@pytest.mark.parametrize(("limit", "gib"), [(str(GIB), 1), ("9223372036854771712", 16)])
def test_the_first_version_of_memory_groups_is_understood(tmp_path: Path, meminfo: Path, limit: str, gib: int) -> None:
    groups = group(tmp_path, "memory/box", memory__limit_in_bytes=limit)
    assert memory_limit(meminfo, groups, member(tmp_path, "5:cpu,cpuacct:/box", "4:memory:/box")) == gib * GIB


def test_a_group_that_is_not_shown_limits_no_memory(tmp_path: Path, meminfo: Path) -> None:
    groups = tmp_path / "groups"
    assert memory_limit(meminfo, groups, member(tmp_path, "0::/system.slice/docker-1234.scope")) == 16 * GIB
    assert memory_limit(meminfo, groups, tmp_path / "no-such-file") == 16 * GIB


def test_the_limit_of_this_process_can_be_read() -> None:
    assert memory_limit() >= 64 * 2**20
