"""Where the service writes: nobody else may write there, and nothing is followed that others may have put there."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.service.running import ROOT, surroundings
from workers.folders import COMPILER_CACHES, leftovers, make, prepare, replace_file

SOMEBODY = 64999


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_a_new_cache_is_ours_alone(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        folder = prepare(str(tmp_path / "volume" / "cache" / "private"))
    assert mode(folder) == 0o700
    assert mode(folder.parent) == mode(folder.parent.parent) == 0o755 & ~mask
    assert prepare(str(folder)) == folder


@pytest.mark.parametrize("shared", [0o777, 0o1777, 0o2777, 0o2775])
def test_in_a_volume_that_all_can_write_to_a_folder_of_our_own_is_made(tmp_path: Path, shared: int) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(shared)
    folder = prepare(str(volume / "private"))
    assert mode(folder) & 0o777 == 0o700


@pytest.mark.parametrize("shared", [0o777, 0o1777, 0o775, 0o2770, 0o757])
def test_a_cache_that_others_can_write_to_is_refused_until_they_cannot(tmp_path: Path, shared: int) -> None:
    folder = tmp_path / "it's shared"
    folder.mkdir()
    folder.chmod(shared)
    with pytest.raises(PermissionError, match=r"other users can write to .+, and code in it is executed") as refused:
        prepare(str(folder))
    assert list(folder.iterdir()) == []
    remedy = str(refused.value).rpartition(": ")[2]
    assert remedy.startswith("chmod go-w ")
    assert os.system(remedy) == 0
    assert prepare(str(folder)) == folder


@pytest.mark.parametrize("allowed", [0o700, 0o755, 0o750, 0o2755])
def test_a_cache_that_only_we_can_write_to_is_taken_as_it_is(tmp_path: Path, allowed: int) -> None:
    tmp_path.chmod(allowed)
    assert prepare(str(tmp_path)) == tmp_path
    assert mode(tmp_path) == allowed


@pytest.mark.parametrize("variable", COMPILER_CACHES)
def test_a_compilers_own_cache_is_held_to_the_same(
    tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "elsewhere"
    monkeypatch.setenv(variable, str(place))
    with umask(0):
        prepare(str(tmp_path / "cache"))
    assert mode(place) == 0o700
    assert not (tmp_path / "cache" / COMPILER_CACHES[variable]).exists()
    place.chmod(0o777)
    with pytest.raises(PermissionError, match=f"chmod go-w {place}"):
        prepare(str(tmp_path / "cache"))


def test_folders_of_an_earlier_version_are_checked_as_well(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton").chmod(0o775)
    with pytest.raises(PermissionError, match=f"chmod go-w {tmp_path}/triton"):
        prepare(str(tmp_path))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, SOMEBODY, SOMEBODY)
    with pytest.raises(PermissionError, match=f"{tmp_path} belongs to user {SOMEBODY}: choose a folder of your own"):
        prepare(str(tmp_path))


def test_the_service_does_not_start_with_a_cache_that_others_can_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    command = [sys.executable, "-m", "app", "--config", "configs/echo.yaml", "--port", "0"]
    environment = surroundings(WORKERS__CACHE=tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"workers.cache is {tmp_path}, ")
    assert done.stderr.endswith(
        f"other users can write to {tmp_path}, and code in it is executed: chmod go-w {tmp_path}\n"
    )


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    make(tmp_path / "models")
    assert (mode(tmp_path), mode(tmp_path / "models")) == (0o770, 0o755)


# ------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_file_is_replaced_whole_with_the_mode_that_files_have(tmp_path: Path, mask: int) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"old")
    with umask(mask):
        assert replace_file(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]


def test_no_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one with the very name that is drawn; and a link in the place of the file itself is replaced."""
    victim, path = tmp_path / "victim", tmp_path / "image.png"
    victim.write_bytes(b"precious")
    monkeypatch.setattr("workers.folders.secrets.randbelow", lambda limit: 7)
    planted = tmp_path / ".image.png.7"
    for target in (victim, tmp_path / "nothing"):
        planted.unlink(missing_ok=True)
        planted.symlink_to(target)
        with pytest.raises(FileExistsError):
            replace_file(path, b"new")
        assert planted.is_symlink()
    planted.unlink()
    path.symlink_to(victim)
    replace_file(path, b"new")
    assert (path.is_symlink(), path.read_bytes(), victim.read_bytes()) == (False, b"new", b"precious")
    assert not (tmp_path / "nothing").exists()


def test_the_names_of_unfinished_files_are_never_the_same_and_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "image.png", list[Path]()
    monkeypatch.setattr("workers.folders.os.fsync", lambda _: seen.extend(leftovers(tmp_path, {"image.png"})))
    for _ in range(20):
        replace_file(path, b"new")
    assert len(set(seen)) == 20
    assert list(leftovers(tmp_path, {"image.png"})) == []


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workers.folders.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"
