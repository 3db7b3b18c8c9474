"""Stages that are run, killed, gone on with, and broken."""

import pickle
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from example.demo_model.journal import Journal
from example.demo_model.loop import NonFiniteLossError, run_stage
from tests.service.running import ROOT, until

STEP_SECONDS = 0.005
CHILD = "import sys; from pathlib import Path; from tests.demo.test_loop import walk; walk(Path(sys.argv[1]), 60)"


class Walk:
    """A stage whose every step depends on all before it: random strides, added up."""

    name = "walk"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.position = torch.zeros(1, dtype=torch.float64)
        self.rng = torch.Generator().manual_seed(5)
        self.progress: list[float] = []

    def step(self, progress: float) -> dict[str, float]:
        time.sleep(STEP_SECONDS)
        self.progress.append(progress)
        self.position += torch.rand(1, generator=self.rng)
        return {"position": self.position.item()}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "rng": self.rng.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position.copy_(state["position"])
        self.rng.set_state(state["rng"])


class Broken(Walk):
    """A walk that leaves the numbers at its fourth step."""

    def step(self, progress: float) -> dict[str, float]:
        losses = super().step(progress)
        return losses if len(self.progress) < 4 else losses | {"height": float("nan")}


class Unreadable(Walk):
    """A walk with a state that no checkpoint takes."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"folder": Path()}


def walk(folder: Path, seconds: float) -> Walk:
    """Run a walk with many lines and checkpoints."""
    stage = Walk(seconds)
    run_stage(stage, folder, Journal(folder, every_seconds=0.02), checkpoint_seconds=0.3)
    return stage


def walked(steps: int) -> float:
    """Where a walk without a break is after so many steps."""
    stage = Walk(1)
    for _ in range(steps):
        stage.step(0)
    return stage.position.item()


def checkpoint(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / "walk.pt", weights_only=True)
    return saved


def test_a_stage_runs_until_its_seconds_are_spent(tmp_path: Path) -> None:
    began = time.monotonic()
    stage = walk(tmp_path, 0.3)
    assert time.monotonic() - began >= 0.3
    assert stage.progress[0] == 0
    assert all(earlier < later < 1 for earlier, later in pairwise(stage.progress))
    last = Journal(tmp_path).entries()[-1]
    assert (last.stage, last.step) == ("walk", len(stage.progress))
    assert last.seconds >= 0.3


def test_a_finished_stage_is_loaded_and_not_run_again(tmp_path: Path) -> None:
    first = walk(tmp_path, 0.1)
    lines = (tmp_path / "losses.jsonl").read_text()
    again = walk(tmp_path, 0.1)
    assert again.progress == []
    assert again.position == first.position
    assert (tmp_path / "losses.jsonl").read_text() == lines


def test_a_larger_budget_goes_on_where_the_smaller_ended(tmp_path: Path) -> None:
    first = walk(tmp_path, 0.2)
    second = walk(tmp_path, 2 * checkpoint(tmp_path)["seconds"])
    assert second.progress[0] == 0.5
    assert second.position.item() == walked(len(first.progress) + len(second.progress))


def test_a_killed_stage_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL) as child:
        until((tmp_path / "walk.pt").exists)
        reached = checkpoint(tmp_path)["steps"]
        until(lambda: Journal(tmp_path).entries()[-1].step > reached)
        child.kill()
    saved = checkpoint(tmp_path)

    stage = walk(tmp_path, saved["seconds"] + 0.2)

    assert stage.progress[0] == saved["seconds"] / stage.seconds
    assert stage.position.item() == walked(saved["steps"] + len(stage.progress))
    entries = Journal(tmp_path).entries()
    assert all(earlier.step < later.step for earlier, later in pairwise(entries))
    assert all(earlier.seconds <= later.seconds for earlier, later in pairwise(entries))
    assert entries[-1].step == saved["steps"] + len(stage.progress)


def test_a_loss_that_is_not_a_number_ends_the_run_and_spares_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"'walk', step 4: height is nan\. The last checkpoint, of step 3,"):
        run_stage(Broken(60), tmp_path, Journal(tmp_path), checkpoint_seconds=0)
    assert checkpoint(tmp_path)["steps"] == 3
    assert checkpoint(tmp_path)["stage"]["position"].item() == walked(3)


def test_a_state_that_cannot_be_read_back_replaces_no_checkpoint(tmp_path: Path) -> None:
    first = walk(tmp_path, 0.1)
    with pytest.raises(pickle.UnpicklingError):
        run_stage(Unreadable(60), tmp_path, Journal(tmp_path), checkpoint_seconds=0)
    assert checkpoint(tmp_path)["steps"] == len(first.progress)
