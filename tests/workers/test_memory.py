"""The memory that a process may take, where a container has less of it than the machine."""

from pathlib import Path

import pytest

from tests.workers.test_cores import group, member
from workers.memory import memory_limit

GIB = 2**30


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


def test_a_limit_further_up_holds_as_well(tmp_path: Path, meminfo: Path) -> None:
    group(tmp_path, "pods/one", memory__max="max")
    groups = group(tmp_path, "pods", memory__max=str(3 * GIB))
    assert memory_limit(meminfo, groups, member(tmp_path, "0::/pods/one")) == 3 * GIB


@pytest.mark.parametrize(("limit", "gib"), [(str(GIB), 1), ("9223372036854771712", 16)])
def test_the_first_version_of_control_groups_is_understood(tmp_path: Path, meminfo: Path, limit: str, gib: int) -> None:
    groups = group(tmp_path, "memory/box", memory__limit_in_bytes=limit)
    assert memory_limit(meminfo, groups, member(tmp_path, "5:cpu,cpuacct:/box", "4:memory:/box")) == gib * GIB


def test_a_group_that_is_not_shown_limits_nothing(tmp_path: Path, meminfo: Path) -> None:
    groups = tmp_path / "groups"
    assert memory_limit(meminfo, groups, member(tmp_path, "0::/system.slice/docker-1234.scope")) == 16 * GIB
    assert memory_limit(meminfo, groups, tmp_path / "no-such-file") == 16 * GIB


def test_the_limit_of_this_process_can_be_read() -> None:
    assert memory_limit() >= 64 * 2**20
