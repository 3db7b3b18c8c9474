"""The loop that trains: stages with a time budget each, from checkpoint to checkpoint.

A process may be killed at any time; the next one goes on from the last checkpoint. Only what came after it is done
again, and is not counted as time spent.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from example.demo_model.journal import Entry, Journal

CHECKPOINT_SECONDS = 60.0  # between two
REFRESH_SECONDS = 2.0  # of the progress bar
BAR = "{desc} {percentage:3.0f}% |{bar}| {n:.0f} of {total:.0f} s{postfix}"


class Stage(Protocol):
    """One part of a training. Its state has tensors and plain values only, so that it is read back without trust."""

    name: str  # also of its checkpoint's file, and in the journal
    seconds: float  # its time budget

    def step(self, progress: float) -> dict[str, float]:
        """Make one step of the optimiser, at `progress` (0..1) of the budget; its losses by name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, random generators too."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to such a state."""
        ...


class NonFiniteLossError(ArithmeticError):
    """A loss that is infinite or not a number: the weights are lost, the last checkpoint is not."""


@dataclass(frozen=True)
class Spent:
    """How far a stage is: steps made, and seconds of its budget."""

    steps: int = 0
    seconds: float = 0.0


def run_stage(stage: Stage, folder: Path, journal: Journal, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> None:
    """Train until the stage's budget is spent; then it has its last weights, also if they were there already.

    Raises NonFiniteLossError.
    """
    checkpoint = folder / f"{stage.name}.pt"
    spent = saved = _restore(stage, checkpoint)
    journal.resume(stage.name, spent.steps, spent.seconds)
    began = time.monotonic() - spent.seconds
    with _progress_bar(stage, spent) as bar:
        while spent.seconds < stage.seconds:
            losses = stage.step(spent.seconds / stage.seconds)
            spent = Spent(spent.steps + 1, time.monotonic() - began)
            _check_finite(losses, stage, spent, saved)
            journal.record(Entry(stage.name, spent.steps, spent.seconds, losses))
            _show(bar, spent, losses)
            if spent.seconds - saved.seconds >= checkpoint_seconds:
                saved = _save(stage, checkpoint, journal, spent)
    if saved != spent:
        _save(stage, checkpoint, journal, spent)


def _restore(stage: Stage, checkpoint: Path) -> Spent:
    if not checkpoint.exists():
        return Spent()
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    stage.load_state_dict(saved["stage"])
    return Spent(saved["steps"], saved["seconds"])


def _save(stage: Stage, checkpoint: Path, journal: Journal, spent: Spent) -> Spent:
    """Write a checkpoint, whole or not at all; the journal first, whose lines after a checkpoint are cut off."""
    journal.write()
    temporary = checkpoint.with_suffix(".tmp")
    torch.save({"stage": stage.state_dict(), "steps": spent.steps, "seconds": spent.seconds}, temporary)
    torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)  # what cannot be read replaces nothing
    temporary.replace(checkpoint)
    return spent


def _check_finite(losses: Mapping[str, float], stage: Stage, spent: Spent, saved: Spent) -> None:
    if broken := {name: loss for name, loss in losses.items() if not math.isfinite(loss)}:
        raise NonFiniteLossError(
            f"stage {stage.name!r}, step {spent.steps}: {', '.join(f'{name} is {broken[name]}' for name in broken)}. "
            f"The last checkpoint, of step {saved.steps}, is whole: run again to go on from it; "
            "if that ends the same way, lower the stage's learning rate"
        )


def _progress_bar(stage: Stage, spent: Spent) -> "tqdm[Any]":
    done = min(spent.seconds, stage.seconds)
    return tqdm(desc=stage.name, total=stage.seconds, initial=done, bar_format=BAR, mininterval=REFRESH_SECONDS)


def _show(bar: "tqdm[Any]", spent: Spent, losses: Mapping[str, float]) -> None:
    bar.set_postfix({"step": spent.steps} | {name: f"{loss:.3g}" for name, loss in losses.items()}, refresh=False)
    bar.update(min(spent.seconds, bar.total) - bar.n)
