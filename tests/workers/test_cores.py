"""The cores that a worker computes with, where a container has fewer than the machine."""

import os
from pathlib import Path

import pytest

from workers.cores import available_cores


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
