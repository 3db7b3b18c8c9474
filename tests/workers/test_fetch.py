"""The weights that `python -m workers.fetch` prepares and the engine reads. The hub is a server on loopback."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from safetensors.torch import load, load_file, save

from tests.workers.engine import demo
from tests.workers.fetch_command import (
    BOTH,
    CONTROLNET,
    DEMO,
    MODEL,
    ONE,
    ROOT,
    WEIGHTS,
    assert_same_image,
    controlnet,
    fetch_from,
    files_in,
    prepared,
    run_fetch,
    run_here,
    run_inside,
    weights,
)
from tests.workers.hub import COMMIT, Hub, files_of, serving
from workers import fetch
from workers.config import locate
from workers.engine.config import Lora
from workers.engine.weights import absent
from workers.weights.store import find, manifest_in, sha256_of

Fetched: TypeAlias = tuple[Path, Hub, "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    """The small model, fetched from a hub: the folder, the hub (gone by now), and what the command said."""
    folder = tmp_path_factory.mktemp("fetched")
    hub = Hub(
        {"some/model": files_of(DEMO) | {"unet/weights.bin": b""}, "some/controlnet": files_of(DEMO / "controlnet")}
    )
    with serving(hub) as url:
        done = run_fetch(folder, config=BOTH, HF_ENDPOINT=url)
    return folder, hub, done


def test_a_configurations_weights_are_prepared(fetched: Fetched) -> None:
    folder, hub, done = fetched
    model, control = prepared(folder, MODEL), prepared(folder, CONTROLNET)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"engine.model: {model}", f"engine.controlnet: {control}"]
    taken = {name for name in files_in(DEMO) if not name.startswith(("controlnet/", "model_index", "about"))}
    assert files_in(model) == taken | {"contour.json"}
    assert files_in(control) == {"config.json", WEIGHTS, "contour.json"}
    assert len(hub.asked) == len(taken) + 2


def test_nothing_else_is_left_behind(fetched: Fetched) -> None:
    folder, _, _ = fetched
    empty = {path.name for path in (folder / "models" / ".locks").iterdir() if path.stat().st_size == 0}
    assert {path.name for path in (folder / "models").iterdir()} == {
        ".locks",
        ".work",
        prepared(folder, MODEL).name,
        prepared(folder).name,
    }
    assert files_in(folder / "models" / ".work") == set()
    assert len(empty) == 2
    assert not (folder / "cache" / "hub").exists()


def test_the_manifest_has_every_file_with_its_hash(fetched: Fetched) -> None:
    folder = prepared(fetched[0], MODEL)
    manifest = manifest_in(folder)
    assert manifest is not None
    assert {name: stored.sha256 for name, stored in manifest.files.items()} == {
        name: sha256_of(folder / name) for name in files_in(folder) - {"contour.json"}
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_fetched_weights_make_the_same_image(fetched: Fetched) -> None:
    named = replace(demo.CONFIG, model=MODEL, controlnet=CONTROLNET)
    config = locate(named, ROOT, str(fetched[0] / "models"))
    assert absent(config) == []
    assert_same_image(config)


def test_existing_weights_need_no_request(fetched: Fetched) -> None:
    done = run_fetch(fetched[0], config=BOTH, HF_ENDPOINT="http://127.0.0.1:9")  # nobody listens there
    assert (done.returncode, done.stdout, done.stderr) == (0, fetched[2].stdout, "")


def test_of_a_lora_one_file_is_fetched_as_it_is(tmp_path: Path) -> None:
    lora = f"loras: [{{path: some/lora, revision: {COMMIT}, file: few.safetensors}}]"
    content = weights(torch.float32)
    files = {"a.bin": b"", "few.safetensors": content, "README.md": b""}
    done = fetch_from(Hub({"some/controlnet": controlnet(), "some/lora": files}), tmp_path, config=f"{ONE}  {lora}\n")

    assert done.returncode == 0, done.stderr
    folder = prepared(tmp_path, Lora(path="some/lora", revision=COMMIT, file="few.safetensors"))
    assert done.stdout.splitlines()[-1] == f"engine.loras.0: {folder}"
    assert files_in(folder) == {"few.safetensors", "contour.json"}
    assert (folder / "few.safetensors").read_bytes() == content


@pytest.mark.parametrize(
    ("options", "found", "wanted"),
    [
        ((), torch.float32, torch.float16),
        (("--dtype", "bfloat16"), torch.float32, torch.bfloat16),
        (("--dtype", "float32"), torch.float32, torch.float32),
        ((), torch.bfloat16, torch.float16),
    ],
)
def test_weights_are_converted_to_what_is_wanted(
    tmp_path: Path, options: tuple[str, ...], found: torch.dtype, wanted: torch.dtype
) -> None:
    folder = tmp_path / "some" / "controlnet"
    folder.mkdir(parents=True)
    for name, content in controlnet(found).items():
        (folder / name).write_bytes(content)

    (tmp_path / "my.yaml").write_text(ONE)
    where = ("--from", str(tmp_path), "--to", str(tmp_path / "models"))
    assert fetch.main([str(tmp_path / "my.yaml"), *where, *options]) == 0

    original, converted = load_file(folder / WEIGHTS), load_file(prepared(tmp_path) / WEIGHTS)
    assert torch.equal(converted["numbers"], original["numbers"].to(wanted))
    assert converted["positions"].dtype == torch.int64
    assert (prepared(tmp_path) / WEIGHTS).stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_shards_become_one_file(tmp_path: Path) -> None:
    tensors = load(weights())
    shards = {
        f"diffusion_pytorch_model-0000{n}-of-00002.safetensors": save({name: tensor}, {"format": "pt"})
        for n, (name, tensor) in enumerate(tensors.items(), 1)
    }
    assert run_here(tmp_path, {"config.json": controlnet()["config.json"], **shards}) == 0
    assert load_file(prepared(tmp_path) / WEIGHTS).keys() == tensors.keys()


def test_the_engines_format_is_the_default(tmp_path: Path) -> None:
    assert run_here(tmp_path, controlnet(torch.float32), config=f"{ONE}  dtype: bfloat16\n") == 0
    assert prepared(tmp_path, dtype="bfloat16").name.endswith("-bfloat16")


def test_the_format_that_is_asked_for_is_found_first(tmp_path: Path) -> None:
    for dtype in ("float16", "float32"):
        assert run_here(tmp_path, controlnet(torch.float32), "--dtype", dtype) == 0
    names = {
        asked: prepared(tmp_path, dtype=asked).name.rpartition("-")[2] for asked in ("float32", "auto", "bfloat16")
    }
    assert names == {"float32": "float32", "auto": "float16", "bfloat16": "float16"}


def test_a_check_finds_what_is_damaged_and_again_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(tmp_path, controlnet()) == 0
    assert run_here(tmp_path, {}, "--check") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "engine.model: your own folder, which has no list of hashes to compare with",
        "engine.controlnet: whole",
    ]

    path = prepared(tmp_path) / WEIGHTS
    path.write_bytes(weights()[:-1] + b"x")

    assert run_here(tmp_path, {}, "--check") == 1
    told = capsys.readouterr()
    assert f"engine.controlnet: {path} has changed since it was written: its SHA-256 is" in told.out
    assert "add --again to replace" in told.err
    assert run_here(tmp_path, {}, "--again") == 0
    assert path.read_bytes() == weights()


def test_a_check_tells_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "given").mkdir()
    assert run_here(tmp_path, {}, "--check") == 1
    assert f"engine.controlnet: some/controlnet is not in {tmp_path}/models" in capsys.readouterr().out


def test_a_check_tells_of_a_folder_that_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = f"engine: {{model: {{path: {DEMO}}}, controlnet: {{path: .}}}}"
    assert run_here(tmp_path, {"README.md": b""}, "--check", config=config) == 1
    assert f"engine.controlnet: {tmp_path}: there is no config.json in it\n" in capsys.readouterr().out


def test_half_a_model_is_no_model(tmp_path: Path) -> None:
    assert run_here(tmp_path, controlnet()) == 0
    path = prepared(tmp_path) / WEIGHTS
    for damage in (path.unlink, lambda: path.write_bytes(weights()[:-1]), (path.parent / "contour.json").unlink):
        damage()
        assert find(tmp_path / "models", "controlnet", CONTROLNET, "auto") is None
        assert run_here(tmp_path, {}) == 0
        assert path.read_bytes() == weights()


def test_originals_are_kept_if_asked(tmp_path: Path) -> None:
    hub = Hub({"some/controlnet": controlnet()})
    with serving(hub) as url:
        assert run_inside(tmp_path, url, "--keep").returncode == 0
        shutil.rmtree(prepared(tmp_path))
        assert run_inside(tmp_path, url).returncode == 0
    assert [asked.file for asked in hub.asked] == ["config.json", WEIGHTS]
    assert (prepared(tmp_path) / WEIGHTS).read_bytes() == weights()
    assert files_in(tmp_path / "models" / ".work") == set()
