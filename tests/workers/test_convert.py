"""`python -m workers.convert CONFIG --to openvino`, and where workers look for what it makes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from app.checks.finding import Level, Subject
from app.cli.doctor import examine
from tests.service.running import ROOT, surroundings
from workers.convert import read_engine
from workers.engine.config import EngineConfig, Speed
from workers.engine.runtimes import openvino_files as files
from workers.engine.runtimes.files import RuntimeProblem

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
