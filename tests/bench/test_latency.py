"""The latency benchmark itself, small: what was asked for is in its file, whatever fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import latency
from tests.bench.latency_parts import Bench

# As in tests/workers/engine/conftest.py: diffusers 0.42 hands tensors to NumPy when it sets timesteps.
pytestmark = pytest.mark.filterwarnings("ignore:__array_(_ implementation|wrap__):DeprecationWarning")

SMALL = ["--model", "demo", "--device", "cpu", "--side", "64", "--steps", "2", "--repeats", "1"]


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code = latency.main([*SMALL, "--out", str(folder / "out.json"), *arguments])
    return code, json.loads((folder / "out.json").read_text())


def test_stages_and_agreement_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(tmp_path, "--parts", "peak,engine,agreement,joining")
    assert code == 0
    (stages,) = (row for row in result["engine"].values() if isinstance(row, dict))
    parts = ("prepare", "all steps", "VAE", "encode")
    assert 0 < sum(stages[part]["min"] for part in parts) < 3 * stages["total, in process"]["max"]
    assert stages["TFLOP"] > 0
    assert result["agreement"]["PSNR against diffusers, dB"] >= 60
    assert result["agreement"]["standard deviation of the picture"] > 1
    assert result["joining"]["step of the join"]["median"] > 0
    assert result["environment"]["torch"]
    assert "of peak" in capsys.readouterr().out


def test_a_part_that_fails_is_told_and_the_others_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(latency, "PARTS", {"broken": broken, "peak": latency.PARTS["peak"]})
    code, result = run(tmp_path)
    assert code == 1
    assert result["broken"]["error"] == "RuntimeError: no such kernel"
    assert result["peak"]["TFLOP/s"] > 0


def test_what_is_cut_short_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(bench: Bench) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(latency, "PARTS", {"peak": latency.PARTS["peak"], "cut": cut})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert json.loads((tmp_path / "out.json").read_text())["peak"]["TFLOP/s"] > 0


def test_a_part_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, "--parts", "peak,speed")
    assert "there is no part speed; there are peak, http, engine" in capsys.readouterr().err
