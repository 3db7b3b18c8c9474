"""Errors that stop the start, as a person sees them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.running import ROOT, Service


def start(config: Path | str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app", "--config", str(config)],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(tmp_path), "CONTOUR_WORKERS__MODELS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_weights_that_are_not_here_stop_it_with_the_command_that_gets_them(tmp_path: Path) -> None:
    done = start("configs/sd15-canny.yaml", tmp_path)
    assert done.returncode == 2
    assert "engine.model: stable-diffusion-v1-5/stable-diffusion-v1-5" in done.stderr
    assert "engine.controlnet: lllyasviel/sd-controlnet-canny" in done.stderr
    assert "python -m workers.fetch configs/sd15-canny.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_configuration_stops_it_with_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("server: {prot: 8000}\nengine: {kind: echo}\n")
    done = start(path, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{path}: server.prot")
    assert "did you mean port?" in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("engine: {sampler: {name: UniPCMultistepSchedular}}", "did you mean UniPCMultistepScheduler?"),
        ("engine: {kind: echo}\nworkers: {cache: /dev/null/x}", "workers.cache is /dev/null/x, which cannot be used: "),
        (
            "engine: {model: {path: ./nowhere}, controlnet: {path: ./nowhere}}",
            "engine.model.path is {folder}/nowhere, but there is no such folder",
        ),
    ],
)
def test_a_wrong_name_or_path_stops_it_before_any_worker(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    done = start(path, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told.format(folder=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert "orker" not in done.stderr.replace("workers.cache", "")


def test_it_says_what_it_serves_on_which_devices_where() -> None:
    with Service("demo", ENGINE__SAMPLER__STEPS=7) as service:
        said = "".join(service.log)
    assert "UniPCMultistepScheduler, 7 steps, guidance 2, short side 256 px" in said
    assert "CUDA_VISIBLE_DEVICES is empty; running on the CPU (1 worker)" in said
    assert f"Listening on {service.url}" in said
