"""Plans for different numbers of steps, and their common layout."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.engine.test_sampler import SD15
from workers.engine import plan_files
from workers.engine.config import Sampler
from workers.engine.contract import BadOptionError
from workers.engine.model import make_scheduler, plans_of
from workers.engine.plan import HistoryLayout, Plans
from workers.engine.sampler import UnsupportedSamplerError, sampler_matrix


def plans(name: str, steps: int = 4, max_steps: int = 10, **options: Any) -> Plans:
    return plans_of(Sampler(name=name, steps=steps, max_steps=max_steps, options=options), SD15)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("UniPCMultistepScheduler", HistoryLayout(10, 1)),
        ("HeunDiscreteScheduler", HistoryLayout(19, 1)),
        ("LCMScheduler", HistoryLayout(10, 10)),
        ("EulerAncestralDiscreteScheduler", HistoryLayout(10, 11)),
    ],
)
def test_there_is_room_for_the_most_steps_that_may_be_asked_for(name: str, layout: HistoryLayout) -> None:
    assert plans(name).layout == layout
    assert plans(name).of(10).weights.shape == (layout.calls + 1, layout.columns)


def test_the_configured_steps_may_always_be_taken() -> None:
    found = plans("UniPCMultistepScheduler", steps=12, max_steps=10)
    assert found.layout == HistoryLayout(12, 1)
    assert found.of(12) is found.usual
    assert found.of(11).calls == 11
    with pytest.raises(BadOptionError, match="steps is 13, but must be 1 to 12"):
        found.of(13)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "HeunDiscreteScheduler", "LCMScheduler"])
def test_a_layout_weighs_what_the_matrix_does(name: str) -> None:
    found = plans(name)
    plan, layout = found.of(3), found.layout
    noises, predictions = torch.randn(plan.noises, 5), torch.randn(plan.calls, 5)
    history = torch.zeros(layout.columns, 5)
    history[: plan.calls] = predictions
    history[layout.calls : layout.calls + len(noises)] = noises
    matrix = sampler_matrix(make_scheduler(Sampler(name=name, steps=3), SD15))
    expected = matrix.weights.float() @ torch.cat([noises, predictions])
    assert torch.allclose(plan.weights @ history, expected, atol=1e-5)


def test_a_plan_is_made_once() -> None:
    made: list[int] = []
    found = Plans(Sampler(steps=4, max_steps=10), counted(made))
    before = len(made)
    first = found.of(7)
    assert made[before:] == [7] * (len(made) - before) != []
    before = len(made)
    assert found.of(7) is first
    assert len(made) == before


def counted(made: list[int]) -> Callable[[int], Any]:
    def scheduler(steps: int) -> Any:
        made.append(steps)
        return make_scheduler(Sampler(steps=steps), SD15)

    return scheduler


def test_threads_that_ask_at_once_do_not_disturb_one_another() -> None:
    """What a sampler draws while its matrix is read off is answered in that thread alone."""
    asked = [2, 3, 5, 6, 7, 8, 9, 10] * 2
    alone, shared = (plans("EulerAncestralDiscreteScheduler") for _ in range(2))
    with ThreadPoolExecutor(8) as threads:
        for steps, plan in zip(asked, threads.map(shared.of, asked), strict=True):
            assert torch.equal(plan.weights, alone.of(steps).weights)


def test_where_the_most_steps_are_too_many_there_is_room_for_what_can_be_taken() -> None:
    found = plans("LCMScheduler", max_steps=50, original_inference_steps=20)
    assert found.layout == HistoryLayout(20, 20)
    assert found.of(20).calls == 20
    with pytest.raises(BadOptionError, match="steps is 21, which LCMScheduler cannot take"):
        found.of(21)


def test_a_plan_that_fails_in_a_later_step_is_refused() -> None:
    found = plans("DDIMScheduler", steps=998, max_steps=1000)  # with steps_offset 1 the last timestep is out of range
    assert found.layout.calls == 999
    with pytest.raises(BadOptionError, match="steps is 1000, which DDIMScheduler cannot take"):
        found.of(1000)


def test_steps_that_need_more_room_than_the_most_are_refused() -> None:
    def scheduler(steps: int) -> Any:
        return make_scheduler(Sampler(steps=20 if steps == 3 else steps), SD15)

    with pytest.raises(BadOptionError, match="steps is 3, which UniPCMultistepScheduler cannot take"):
        Plans(Sampler(steps=4, max_steps=10), scheduler).of(3)


def test_a_sampler_that_cannot_take_the_configured_steps_is_told_at_once() -> None:
    with pytest.raises(UnsupportedSamplerError, match="LCMScheduler does not work with 51 steps"):
        plans("LCMScheduler", steps=51)


def test_the_configured_plan_is_the_samplers_matrix() -> None:
    found = plans("UniPCMultistepScheduler").usual
    expected = sampler_matrix(make_scheduler(Sampler(steps=4), SD15))
    assert torch.equal(found.weights[:, : found.calls], expected.weights[:, found.noises :].float())
    assert torch.equal(found.timesteps, expected.timesteps)


def test_of_kept_plans_the_files_that_were_used_last_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_files, "_MOST_FILES", 2)
    samplers = [Sampler(steps=steps, max_steps=steps) for steps in (2, 3, 4)]
    for age, sampler in enumerate(samplers):
        plan_files.keep(plans_of(sampler, SD15), sampler, SD15, tmp_path)
        if age == 1:
            for each in samplers[:2]:
                os.utime(plan_files.path_in(tmp_path, each, SD15), (1000, 1000))
            assert plan_files.kept(samplers[0], SD15, tmp_path) is not None
    assert [plan_files.kept(each, SD15, tmp_path) is not None for each in samplers] == [True, False, True]
