"""Weights from a cache or a folder, and what is said where there is nothing to fetch."""

import os
from pathlib import Path

import pytest

from app.settings import load as load_settings
from tests.workers.fetch_command import (
    CONTROLNET,
    DEMO,
    MODEL,
    ROOT,
    WEIGHTS,
    controlnet,
    fetch_from,
    prepared,
    run_fetch,
    run_here,
    weights,
)
from tests.workers.hub import COMMIT, Asked, Hub, entry
from workers import fetch
from workers.config import locate
from workers.engine.config import EngineConfig, Weights
from workers.engine.weights import absent


def cached(folder: Path, files: dict[str, bytes]) -> None:
    """The Hugging Face cache after a download of these files."""
    repository = folder / "cache" / "hub" / "models--some--controlnet"
    for name, content in files.items():
        listed = entry(name, content)
        known = str(listed["lfs"]["sha256"] if isinstance(listed.get("lfs"), dict) else listed["blobId"])  # type: ignore[index]
        blob, link = repository / "blobs" / known, repository / "snapshots" / COMMIT / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))


def test_a_cache_serves_without_a_network(tmp_path: Path) -> None:
    cached(tmp_path, controlnet())
    done = run_fetch(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()
    assert (tmp_path / f"cache/hub/models--some--controlnet/snapshots/{COMMIT}" / WEIGHTS).is_file()  # it stays


def test_cached_files_are_not_downloaded(tmp_path: Path) -> None:
    cached(tmp_path, {WEIGHTS: weights()})
    hub = Hub({"some/controlnet": controlnet()})
    done = fetch_from(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.asked == [Asked("config.json", None)]


def test_a_damaged_cache_is_told(tmp_path: Path) -> None:
    cached(tmp_path, controlnet())
    link = tmp_path / f"cache/hub/models--some--controlnet/snapshots/{COMMIT}" / WEIGHTS
    link.resolve().write_bytes(weights()[:-1] + b"x")
    done = run_fetch(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert f"{link} is damaged: its hash does not match its name" in done.stderr


def test_offline_without_a_cache_is_told(tmp_path: Path) -> None:
    done = run_fetch(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert done.stderr == (
        f"engine.controlnet: some/controlnet: HF_HUB_OFFLINE is set, and {tmp_path}/cache/hub does not have it at "
        f"revision {COMMIT}: unset it to download, or name a folder that has it with --from\n"
    )


@pytest.mark.parametrize("place", ["some/controlnet", "controlnet", f"hub/models--some--controlnet/snapshots/{COMMIT}"])
def test_a_folder_serves_without_a_network(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "given" / place
    folder.mkdir(parents=True)
    for name, content in controlnet().items():
        (folder / name).write_bytes(content)
    assert run_here(tmp_path, {}) == 0
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()


def test_a_folder_that_lacks_the_repository_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "given").mkdir()
    assert run_here(tmp_path, {}) == 1
    assert f"{tmp_path}/given does not have it: none of these folders exists there:" in capsys.readouterr().err


def test_the_server_reads_what_was_prepared(tmp_path: Path) -> None:
    assert run_here(tmp_path, controlnet()) == 0
    settings = load_settings(tmp_path / "my.yaml", {"CONTOUR_WORKERS__MODELS": str(tmp_path / "models")})
    assert settings.engine.controlnet == Weights(path=str(prepared(tmp_path)))


def test_prepared_weights_go_before_the_cache(tmp_path: Path) -> None:
    assert run_here(tmp_path, controlnet()) == 0
    engine = EngineConfig(model=Weights(path=str(DEMO)), controlnet=CONTROLNET)
    located = locate(engine, tmp_path, str(tmp_path / "models")).controlnet
    assert located == Weights(path=str(prepared(tmp_path)))
    assert locate(engine, tmp_path, str(tmp_path / "elsewhere")).controlnet == CONTROLNET


def test_of_folders_nothing_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([str(ROOT / "configs" / "demo.yaml")]) == 0
    assert capsys.readouterr().out.splitlines() == [f"engine.model: {DEMO}", f"engine.controlnet: {DEMO}/controlnet"]


def test_a_folder_to_take_from_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([str(ROOT / "configs" / "sd15-canny.yaml"), "--from", str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/gone: there is no such folder\n"


def test_an_engine_without_a_model_needs_nothing() -> None:
    assert fetch.main([str(ROOT / "configs" / "echo.yaml")]) == 0
    assert absent(EngineConfig(kind="echo")) == []


def test_missing_weights_are_listed(tmp_path: Path) -> None:
    engine = EngineConfig(model=MODEL, controlnet=Weights(path="./gone"))
    assert absent(locate(engine, tmp_path)) == ["engine.model: some/model", f"engine.controlnet: {tmp_path}/gone"]


def test_the_demo_is_here() -> None:
    engine = EngineConfig(model=Weights(path="./demo"), controlnet=Weights(path="./demo/controlnet"))
    assert absent(locate(engine, ROOT / "configs", "/nowhere")) == []
