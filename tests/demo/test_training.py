"""A whole training of some seconds: killed on the way and resumed, and its model is served."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from example.demo_model.__main__ import main
from example.demo_model.scenes import flat_scenes
from example.demo_model.training import SHARES, Plan, train
from tests.demo.test_quality import CALM, make
from tests.service.running import ROOT, Service, until

MINUTES = 0.15
SCENES = 64
NETWORKS = ("unet", "vae", "controlnet", "text_encoder")


def training(folder: Path) -> subprocess.Popen[str]:
    """`python -m example.demo_model train`, on one thread: it is not alone here."""
    command = [sys.executable, "-m", "example.demo_model", "train", "--minutes", str(MINUTES), "--scenes", str(SCENES)]
    folders = ["--work", str(folder / "work"), "--out", str(folder / "model")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([*command, *folders], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def entries(folder: Path) -> list[dict[str, Any]]:
    written = folder / "work" / "losses.jsonl"
    return [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training whose process was killed between its first checkpoints and its last stage."""
    folder = tmp_path_factory.mktemp("training")
    with training(folder) as killed:
        until((folder / "work" / "latents-128.pt").exists, seconds=240)
        killed.send_signal(signal.SIGKILL)
    assert not (folder / "model").exists()
    with training(folder) as resumed:
        printed, _ = resumed.communicate(timeout=400)
    assert resumed.returncode == 0
    assert "| finish |" in printed
    return folder


@pytest.mark.parametrize(("minutes", "scenes"), [(0.0, 64), (1.5, 0)])
def test_a_plan_of_nothing_is_refused(minutes: float, scenes: int) -> None:
    with pytest.raises(ValueError, match="minutes must be above 0 and scenes 1 or more"):
        Plan(minutes, scenes)


def test_a_plan_of_impossible_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="no stage 'decoder'; the stages are autoencoder, half size"):
        Plan(1.5, 64, start="model", stages=("decoder",))
    with pytest.raises(ValueError, match="a model to start from is needed"):
        Plan(1.5, 64, stages=("finish",))


def test_a_training_starts_from_a_model(trained: Path, tmp_path: Path) -> None:
    plan = Plan(0.01, 8, start=str(trained / "model"), stages=("finish",))
    train(plan, tmp_path / "work", tmp_path / "model")
    vae = "vae/diffusion_pytorch_model.safetensors"

    assert entries(tmp_path)[-1]["stage"] == "finish"
    assert (tmp_path / "model" / vae).read_bytes() == (trained / "model" / vae).read_bytes()
    one, other = (
        load_file(folder / "model/unet/diffusion_pytorch_model.safetensors") for folder in (trained, tmp_path)
    )
    assert all(torch.allclose(weight, other[name], atol=0.05) for name, weight in one.items())


def test_every_stage_has_its_turn(trained: Path) -> None:
    assert [*dict.fromkeys(entry["stage"] for entry in entries(trained))] == list(SHARES)
    assert (trained / "work" / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_stage_was_not_run_again(trained: Path) -> None:
    for stage, share in SHARES.items():
        seconds = [entry["seconds"] for entry in entries(trained) if entry["stage"] == stage]
        assert seconds == sorted(seconds)
        assert seconds[-1] >= share * MINUTES * 60 * 0.99


def test_the_service_makes_images_with_it(trained: Path) -> None:
    folder = trained / "model"
    paths = {"ENGINE__MODEL__PATH": folder, "ENGINE__CONTROLNET__PATH": folder / "controlnet"}
    scene = flat_scenes(1, seed=3)[0]
    with Service("demo", **CALM, **paths) as service:
        service.wait_until_ready()
        image = make(service, scene)

    assert image.shape == scene.image.shape
    assert image.std() > 1
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < 28e6


def test_a_folder_of_another_training_is_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a training of .*'seed': 0.* and this one is of .*'seed': 1"):
        train(Plan(MINUTES, SCENES, seed=1), trained / "work", trained / "other")
    assert not (trained / "other").exists()


def test_the_shares_of_the_stages_add_up() -> None:
    assert mean(SHARES.values()) * len(SHARES) == pytest.approx(1.0)


def test_the_options_of_a_training_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--minutes" in capsys.readouterr().out
