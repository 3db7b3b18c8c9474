"""Three images that are made one by one, and then together by an engine whose speed is tested: they must be alike."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeAlias

from torch import Tensor

from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG, relative_error
from tests.workers.engine.recorder import FakeRecorder
from workers.engine.config import EngineConfig, Speed
from workers.engine.engine import DiffusionEngine
from workers.engine.model import Model, assemble
from workers.engine.runtime import ModelFunctions

FOUR = replace(CONFIG, slots=4)
ALIKE = 1e-5


Change: TypeAlias = Callable[[ModelFunctions], ModelFunctions]


class Changed:
    """The demo model, with a change to the functions that run its networks."""

    def __init__(self, model: Model, change: Change) -> None:
        self._model = model
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def functions(self, *arguments: Any) -> ModelFunctions:
        return self._change(self._model.functions(*arguments))


def engine(
    config: EngineConfig, fake: FakeRecorder | None = None, change: Change = lambda functions: functions
) -> DiffusionEngine:
    model: Any = Changed(assemble(config, demo.parts(), "cpu"), change)
    return DiffusionEngine(config, model, fake)


def speed(config: EngineConfig = FOUR, **changes: Any) -> EngineConfig:
    return replace(config, speed=replace(Speed(), **changes))


@cache
def alone() -> dict[int, Tensor]:
    """Latents of three images that were made alone, without graphs, by seed."""
    plain = engine(FOUR)
    return {seed: demo.make(plain, demo.task(seed)) for seed in range(3)}


def together(made_by: DiffusionEngine) -> dict[int, Tensor]:
    """Latents of the same, each joining a step after the last."""
    for seed in range(3):
        made_by.admit(seed, made_by.prepare(demo.task(seed)))
        made_by.step()
    latents = {seed: demo.run(made_by, seed) for seed in range(3)}
    for seed in range(3):
        made_by.discard(seed)
    return latents


def assert_alike(actual: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    for seed, latents in expected.items():
        assert relative_error(actual[seed], latents) <= ALIKE
