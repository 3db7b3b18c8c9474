"""`python -m workers.convert CONFIG --to openvino`, and where workers look for what it makes."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import pytest

from app.checks.finding import Level, Subject
from app.cli.doctor import examine
from tests.service.running import ROOT, surroundings
from workers.config import engine_problems
from workers.convert import read_engine
from workers.engine.config import EngineConfig, Speed, Weights, installed
from workers.engine.runtimes import openvino_files as files
from workers.engine.runtimes.files import RuntimeProblem, identity

DEMO = ROOT / "configs/demo.yaml"


def convert(config: Path, *flags: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [sys.executable, "-m", "workers.convert", str(config), "--to", "openvino", *flags]
    environment = surroundings(**settings)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


NETWORKS = {f"{name}.{kind}" for name in ("step", "vae", "text", "hint", "times") for kind in ("xml", "bin")}
FILES = {files.FACTS, *NETWORKS}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A workers.cache with files that are taken for the small model's converted networks."""
    folder = tmp_path / "cache" / "openvino" / files.name_of(read_engine(DEMO))
    folder.mkdir(parents=True)
    for name in NETWORKS:
        (folder / name).touch()
    facts = files.Facts(1, 1, 1, 4, 8, {name: (0, files.fingerprint(folder / name)) for name in NETWORKS})
    (folder / files.FACTS).write_bytes(msgspec.json.encode(facts))
    return tmp_path / "cache"


@pytest.mark.slow
def test_the_files_are_where_a_worker_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    done = convert(DEMO, WORKERS__CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert "Converting the networks for OpenVINO" in done.stderr
    (plans,) = {Path(line).name for line in done.stdout.splitlines()} - FILES
    assert plans.startswith("plans-")
    monkeypatch.setenv(files.CACHE, str(cache / "openvino"))
    assert files.is_complete(files.folder_for(read_engine(DEMO)))


def test_converted_files_are_kept(cache: Path) -> None:
    done = convert(DEMO, WORKERS__CACHE=cache)
    assert (done.returncode, done.stderr) == (0, "")
    assert {Path(line).name for line in done.stdout.splitlines()} == FILES


def test_files_that_are_built_in_are_used_and_all_others_go_to_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.CACHE, str(tmp_path / "new"))
    monkeypatch.setenv(files.BUILT_IN, str(cache / "openvino"))
    engine = read_engine(DEMO)
    assert files.folder_for(engine).parent == cache / "openvino"
    assert files.folder_for(replace(engine, guidance_scale=1.0)).parent == tmp_path / "new"


def test_doctor_says_whether_the_networks_are_converted(cache: Path, tmp_path: Path) -> None:
    there, first = (
        next(examine(Subject(DEMO, environ(WORKERS__CACHE=place)), ["openvino"])) for place in (cache, tmp_path / "new")
    )
    assert (there.level, str(cache) in there.text) == (Level.OK, True)
    assert (first.level, "the first start converts the networks" in first.text) == (Level.OK, True)
    assert not (tmp_path / "new").exists()


def environ(**settings: object) -> dict[str, str]:
    """Variables that override keys, and no GPU."""
    return {"CUDA_VISIBLE_DEVICES": ""} | {f"CONTOUR_{key}": str(value) for key, value in settings.items()}


@pytest.mark.parametrize("settings", [{"ENGINE__RUNTIME": "torch"}, {"ENGINE__SPEED__COMPILE": "false"}])
def test_doctor_says_nothing_of_openvino_where_it_is_turned_off(settings: dict[str, str]) -> None:
    assert list(examine(Subject(DEMO, environ(**settings)), ["openvino"])) == []
    (found,) = examine(Subject(DEMO, environ(ENGINE__DTYPE="float32", **settings)), ["configuration"])
    assert found.text.endswith("run by torch in float32")


def test_doctor_says_what_runs_the_networks() -> None:
    (found,) = examine(Subject(DEMO, environ(ENGINE__DTYPE="bfloat16")), ["configuration"])
    assert "run by OpenVINO in bfloat16; torch until" in found.text


def test_openvino_cannot_be_asked_for_in_half_precision() -> None:
    subject = Subject(DEMO, environ(ENGINE__RUNTIME="openvino", ENGINE__DTYPE="float16"))
    (found,) = examine(subject, ["openvino"])
    assert (found.level, "bfloat16 or float32" in found.text) == (Level.MISSING, True)


def test_openvino_cannot_be_asked_for_on_a_gpu() -> None:
    with pytest.raises(RuntimeProblem, match="which runs on a CPU: make it auto"):
        files.check("float16", cuda=True)


def test_weights_that_are_not_here_are_told_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    done = convert(ROOT / "configs/sd15-canny.yaml", WORKERS__MODELS=tmp_path, WORKERS__CACHE=tmp_path)
    assert done.returncode == 1
    assert "workers.fetch configs/sd15-canny.yaml" in done.stderr.replace(f"{ROOT}/", "")


def test_a_cache_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = convert(DEMO, WORKERS__CACHE=tmp_path / "file" / "cache")
    assert (done.returncode, "which cannot be used" in done.stderr) == (1, True)


def test_echo_has_nothing_to_convert() -> None:
    done = convert(ROOT / "configs/echo.yaml")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no networks" in done.stderr


def test_the_runtime_is_the_one_that_serves() -> None:
    assert EngineConfig().runtime_on(cuda=True) == "torch"
    assert EngineConfig().runtime_on(cuda=False) == "openvino"
    assert EngineConfig(dtype="float16").runtime_on(cuda=False) == "torch"
    assert EngineConfig(speed=Speed(compile=False)).runtime_on(cuda=False) == "torch"
    assert EngineConfig(runtime="onnxruntime").runtime_on(cuda=True) == "onnxruntime"


def test_a_folder_of_its_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--out openvino` makes one in the working directory."""
    (tmp_path / "a_mere_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("a_mere_folder") is not None
    assert [installed(each) for each in ("a_mere_folder", "nothing_of_that_name", "openvino")] == [False, False, True]


@pytest.mark.parametrize(("key", "value"), [("attention", "math"), ("time_convolutions", True)])
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_settings_for_torch_are_refused_with_another_runtime(runtime: Any, key: str, value: Any) -> None:
    engine = replace(read_engine(DEMO), runtime=runtime, speed=replace(Speed(), **{key: value}))
    (problem,) = engine_problems(engine)
    assert problem.key == ("engine", "speed", key)
    assert f"but engine.runtime is {runtime}, and this is for torch" in problem.text


# ---------------------------------------------------------------------------------------------------------- which files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the small model, to be changed. Its VAE lies elsewhere, behind a link."""
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "configs/demo", folder)
    (folder / "vae").rename(tmp_path / "vae")
    (folder / "vae").symlink_to(tmp_path / "vae")
    return folder


def set_key(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 4 :] = bytes(len(content) - len(content) // 4)  # training changes weights everywhere
    file.write_bytes(content)


def link_elsewhere(folder: Path) -> None:
    """To a VAE with other weights, at the same place."""
    other = folder.resolve().with_name("other")
    shutil.copytree(folder, other)
    change_weights(other / "diffusion_pytorch_model.safetensors")
    folder.unlink()
    folder.symlink_to(other)


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda model: change_weights(model / "unet" / "diffusion_pytorch_model.safetensors"),
    "weights behind a link": lambda model: change_weights(model / "vae" / "diffusion_pytorch_model.safetensors"),
    "a link": lambda model: link_elsewhere(model / "vae"),
    "the latents' scale": lambda model: set_key(model / "vae" / "config.json", scaling_factor=0.5),
    "heads": lambda model: set_key(model / "controlnet" / "config.json", attention_head_dim=3),
    "an activation": lambda model: set_key(model / "text_encoder" / "config.json", hidden_act="gelu"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_networks_that_compute_something_else_are_others(model: Path, change: str) -> None:
    engine = replace(EngineConfig(), model=Weights(path=str(model)), controlnet=Weights(path=str(model / "controlnet")))
    before = files.name_of(engine), identity(engine, "float32")
    assert before == (files.name_of(engine), identity(engine, "float32"))
    CHANGES[change](model)
    after = files.name_of(engine), identity(engine, "float32")
    assert all(one != other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("package", ["openvino", "torch", "diffusers", "transformers"])
def test_networks_that_another_version_has_made_are_others(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = read_engine(DEMO)
    versions = {"openvino": "1", "torch": "1", "diffusers": "1", "transformers": "1"}
    monkeypatch.setattr(files, "version", versions.__getitem__)
    before = files.name_of(engine)
    versions[package] = "2"
    assert files.name_of(engine) != before


# --------------------------------------------------------------------------------------------------- several converters


@pytest.fixture
def converter(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where networks are to be, and a file with a line for each conversion, which a copy of files stands in for."""
    (made,) = (cache / "openvino").iterdir()
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho $$ >> {calls}\nexec cp -r {made} "$3"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return tmp_path / "place" / made.name, calls


def test_of_two_processes_one_converts(converter: tuple[Path, Path]) -> None:
    folder, calls = converter
    threads = [Thread(target=files.convert, args=(read_engine(DEMO), folder)) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert files.is_complete(folder)
    assert len(calls.read_text().split()) == 1


def test_what_killed_ones_have_left_is_deleted_but_nothing_of_one_that_runs(
    converter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = converter
    left = folder.with_name(f"{files._UNFINISHED}abc")
    (left / "new").mkdir(parents=True)
    monkeypatch.setattr(files, "TIMEOUT_S", 1.0)
    other = os.open(folder.parent, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(files.ConversionError, match="another process has been converting in "):
        files.convert(read_engine(DEMO), folder)
    assert (left.exists(), calls.exists()) == (True, False)
    os.close(other)
    files.convert(read_engine(DEMO), folder)
    assert (left.exists(), files.is_complete(folder)) == (False, True)
