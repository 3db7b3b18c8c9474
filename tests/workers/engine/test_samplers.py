"""The names of samplers, held to diffusers."""

import json
from typing import Any

import diffusers
import pytest
from diffusers import schedulers

from tests.service.running import ROOT
from tests.workers.engine.test_sampler import SD15
from workers.engine.config import Sampler
from workers.engine.model import plans_of
from workers.engine.samplers import LEAST_STEPS, NEED_SCIPY, PROVEN_STEPS, SAMPLERS, is_proven

DEMO = json.loads((ROOT / "configs/demo/scheduler/scheduler_config.json").read_text())
NAMES = sorted(name for name in dir(schedulers) if name.endswith("Scheduler"))


def works(name: str, base: dict[str, Any], steps: int) -> bool:
    try:
        plans_of(Sampler(name=name, steps=steps, max_steps=1), base)
    except Exception:  # noqa: BLE001 - schedulers raise anything
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_those_are_listed_that_work_with_the_models_that_ship(name: str) -> None:
    few, many = LEAST_STEPS.get(name, PROVEN_STEPS[0]), PROVEN_STEPS[-1]
    found = all(works(name, base, steps) for base in (SD15, DEMO) for steps in (few, 20, many))
    assert found == (name in SAMPLERS)


@pytest.mark.parametrize("name", [*SAMPLERS, *NEED_SCIPY])
def test_each_is_one_of_diffusers(name: str) -> None:
    assert hasattr(diffusers, name)


def test_only_what_was_tried_here_is_known_to_work() -> None:
    for base in (SD15, DEMO):
        assert is_proven(Sampler(), base)
    assert not is_proven(Sampler(options={"use_karras_sigmas": True}), SD15)
    assert not is_proven(Sampler(steps=PROVEN_STEPS[-1] + 1), SD15)
    assert not is_proven(Sampler(name="PNDMScheduler", steps=3), SD15)
    assert not is_proven(Sampler(name=NEED_SCIPY[0]), SD15)
    assert not is_proven(Sampler(), SD15 | {"clip_sample": True})
    assert not is_proven(Sampler(), SD15 | {"new": 1})
    assert not is_proven(Sampler(), {key: value for key, value in SD15.items() if key != "clip_sample"})
