"""Commands that are killed, meet each other or a full disk: no half model comes of it."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from tests.workers.fetch_command import (
    CONTROLNET,
    HALF,
    ONE,
    ROOT,
    SIZE,
    WEIGHTS,
    controlnet,
    end,
    fetch_from,
    files_in,
    hub_with,
    is_there,
    prepared,
    ranges,
    run_here,
    run_inside,
    start,
    weights,
    work,
)
from tests.workers.hub import COMMIT, Hub, serving, wait_until
from workers.weights.store import damages, find, manifest_in


def large() -> Hub:
    """Weights that take a moment to convert."""
    return Hub({"some/controlnet": controlnet() | {WEIGHTS: weights(torch.float32, 8_000_000)}})


def test_a_killed_download_goes_on_with_the_files_that_it_lacks(tmp_path: Path) -> None:
    """A file that was on its way begins anew; nothing of it stays."""
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    files = {name: save({name: torch.ones(3_000_000, dtype=torch.float16)}, {"format": "pt"}) for name in shards}
    config = {"config.json": controlnet()["config.json"]}
    hub = Hub({"some/controlnet": config | files}, stalls={shards[1]: [len(files[shards[1]]) - 1]})
    with serving(hub) as url:
        process = start(tmp_path, url)
        assert hub.stalled.wait(180)
        wait_until((work(tmp_path) / "originals" / shards[0]).exists)
        end(process, signal.SIGKILL)
        left = list(work(tmp_path).rglob("*.incomplete"))
        assert not is_there(tmp_path)
        done = run_inside(tmp_path, url, "--keep")
    assert done.returncode == 0, done.stderr
    assert sorted(asked.file for asked in hub.asked) == ["config.json", shards[0], shards[1], shards[1]]
    assert {asked.range for asked in hub.asked} == {None}
    assert load_file(prepared(tmp_path) / WEIGHTS).keys() == set(shards)
    assert len(left) == 1
    assert list(work(tmp_path).rglob("*.incomplete")) == []


def test_an_interrupted_download_says_that_it_goes_on(tmp_path: Path) -> None:
    hub = hub_with(stalls={WEIGHTS: [HALF]})
    with serving(hub) as url:
        process = start(tmp_path, url)
        assert hub.stalled.wait(180)
        _, said = end(process, signal.SIGINT)
    assert process.returncode == 130
    assert said == "interrupted; run the same command to continue\n"


def test_two_at_once_fetch_once(tmp_path: Path) -> None:
    hub = hub_with(stalls={WEIGHTS: [HALF]})
    with serving(hub) as url:
        first = start(tmp_path, url)
        assert hub.stalled.wait(180)
        second = start(tmp_path, url)
        assert second.stderr is not None
        assert second.stderr.readline().startswith(
            "waiting for another process that is preparing controlnet-some--controlnet"
        )
        hub.closing.set()  # the first is cut, and goes on
        outputs = [process.communicate(timeout=180)[0] for process in (first, second)]
    assert outputs == [f"engine.model: {ROOT}/configs/demo\nengine.controlnet: {prepared(tmp_path)}\n"] * 2
    assert ranges(hub) == [None, None]


def test_a_killed_conversion_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    with serving(large()) as url:
        process = start(tmp_path, url)
        ready = work(tmp_path) / "scratch" / "ready"
        wait_until(lambda: ready.is_dir() and len(list(ready.iterdir())) > 1)  # not the configuration alone
        end(process, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not is_there(tmp_path)
        assert list((tmp_path / "models").glob("controlnet*")) == []
        done = run_inside(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert load_file(prepared(tmp_path) / WEIGHTS)["numbers"].dtype == torch.float16
    assert files_in(tmp_path / "models/.work") == set()


@pytest.mark.parametrize(("options", "stride"), [((), 1), (("--again",), 3)])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_command_killed_at_any_moment_leaves_a_whole_model_or_none(
    tmp_path: Path, options: tuple[str, ...], stride: int
) -> None:
    """Killed by itself before the first thing that it does to a file, before the second, and so on to the last."""
    assert run_here(tmp_path, controlnet(), "--to", str(tmp_path / "elsewhere")) == 0  # imports what it needs
    killed = True
    for moment in range(0, 500, stride):
        if options or moment == 0:
            assert run_here(tmp_path, {}) == 0
        if not options:
            shutil.rmtree(prepared(tmp_path), ignore_errors=True)
        killed = killed_at(moment, partial(run_here, tmp_path, {}, *options))
        assert_whole_or_none(tmp_path)
        assert run_here(tmp_path, {}) == 0
        assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()
        if not killed:
            break
    assert not killed
    assert moment > 10


def killed_at(moment: int, command: Callable[[], int]) -> bool:
    """Run in a process that is killed at its (moment + 1)th event on a file; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = moment

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in FILE_EVENTS and "models" in str(arguments):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(count)
        os._exit(command())
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.copyfile", "os.chmod"}


def assert_whole_or_none(folder: Path) -> None:
    found = find(folder / "models", "controlnet", CONTROLNET, "auto")
    if found is not None:
        manifest = manifest_in(found)
        assert manifest is not None
        assert list(damages(found, manifest)) == []


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_too_little_space_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    hub = large()
    with small_disk(tmp_path / "disk", 8) as disk, serving(hub) as url:
        done = run_inside(tmp_path, url, "--to", str(disk))
    assert done.returncode == 1
    assert (
        f"it needs 0.04 GiB, but {disk} has 0.01 GiB free: free some space, or choose another disk with --to"
        in done.stderr
    )
    assert hub.asked == []


def test_a_disk_that_others_fill_is_told(tmp_path: Path) -> None:
    content = weights(count=3_000_000)
    half = len(content) // 2
    hub = Hub({"some/controlnet": controlnet() | {WEIGHTS: content}}, stalls={WEIGHTS: [half]})
    with small_disk(tmp_path / "disk", 10) as disk, serving(hub) as url:
        process = start(tmp_path, url, "--to", str(disk))
        assert hub.stalled.wait(180)
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        hub.closing.set()
        _, said = process.communicate(timeout=180)
        assert process.returncode == 1
        assert f"engine.controlnet: some/controlnet: {WEIGHTS}: no space is left in {disk}" in said
        filler.unlink()
        assert run_inside(tmp_path, url, "--to", str(disk)).returncode == 0


@pytest.mark.parametrize("limit", [HALF, SIZE + 1000])
def test_a_disk_that_fills_up_is_told(tmp_path: Path, limit: int) -> None:
    """A limit on a file's size stands for the disk: first for the download, then for what it is converted to."""
    shrink = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    options = ("--dtype", "float32") if limit > SIZE else ()
    with serving(hub_with()) as url:
        process = start(tmp_path, url, *options, preexec_fn=shrink)
        _, said = process.communicate(timeout=180)
        assert process.returncode == 1
        assert "engine.controlnet: some/controlnet: " in said
        assert "no space is left in" in said
        assert "Traceback" not in said
        assert not is_there(tmp_path)
        if not options:  # there is room again
            assert run_inside(tmp_path, url).returncode == 0


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = fetch_from(hub_with(), tmp_path, "--to", str(tmp_path / "file" / "models"))
    assert done.returncode == 1
    assert f"Not a directory: '{tmp_path}/file/models'" in done.stderr


@pytest.mark.parametrize("name", ["originals/{WEIGHTS}", "originals/.cache", "scratch", ""])
def test_no_link_that_others_have_put_into_the_folder_is_followed(tmp_path: Path, name: str) -> None:
    """In a folder that all may write to: what it points to is neither written to nor emptied."""
    planted, victim = work(tmp_path) / name.format(WEIGHTS=WEIGHTS), tmp_path / "victim"
    planted.parent.mkdir(parents=True)
    victim.mkdir()
    (victim / "config.json").write_bytes(b"precious")
    planted.symlink_to(victim if not name.endswith("}") else victim / "config.json")
    done = fetch_from(hub_with(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_in(victim) == {"config.json"}
    assert (victim / "config.json").read_bytes() == b"precious"
    assert not any(path.is_symlink() for path in (tmp_path / "models").rglob("*"))


@pytest.mark.parametrize(
    "path", ["../victim.safetensors", "/{folder}/victim.safetensors", "a/../../../victim.safetensors"]
)
def test_no_repository_can_write_outside_its_folder(tmp_path: Path, path: str) -> None:
    named = path.format(folder=tmp_path)
    hub = Hub({"some/controlnet": controlnet(), "some/lora": {named: weights()}})
    lora = f"loras: [{{path: some/lora, revision: {COMMIT}, file: {named}}}]"
    done = fetch_from(hub, tmp_path, config=f"{ONE}  {lora}\n")
    assert done.returncode == 1
    assert f"the repository has no {named}; its safetensors files: none" in done.stderr
    assert list(tmp_path.rglob("victim*")) == []


def test_fetched_files_are_readable_by_all_and_writable_by_the_owner(tmp_path: Path) -> None:
    """Whatever the umask: the cache of compiled code lies beside it by default, and is refused if others can write."""
    before = os.umask(0o002)
    try:
        assert run_here(tmp_path, controlnet(), "--to", str(tmp_path / "cache" / "contour" / "models")) == 0
    finally:
        os.umask(before)
    for folder in (tmp_path / "cache", tmp_path / "cache/contour", tmp_path / "cache/contour/models"):
        assert folder.stat().st_mode & 0o777 == 0o755
