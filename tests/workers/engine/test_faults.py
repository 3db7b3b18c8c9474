"""The engine that fails by chance, without a process around it."""

import logging
import os
from typing import Any

import pytest

from tests.service.running import png
from workers.engine import build
from workers.engine.config import Echo, EngineConfig, Faults
from workers.engine.contract import Engine, OutOfMemoryError, StepProgress, Task
from workers.engine.echo import EchoEngine
from workers.engine.faults import FaultyEngine

TASK = Task(png(64, 64), "a square", 1)
ALWAYS = 1.0


def engine(faults: Faults) -> Engine[Any]:
    return build(EngineConfig(kind="echo", slots=2, echo=Echo(steps=2, reencode=False), faults=faults), "cpu")


def running(faults: Faults) -> Engine[Any]:
    made = engine(faults)
    made.admit(0, made.prepare(TASK))
    return made


def test_no_engine_fails_unless_it_is_asked_to() -> None:
    assert isinstance(engine(Faults()), EchoEngine)
    assert isinstance(engine(Faults(seed=5, hang_seconds=1)), EchoEngine)


def test_one_that_is_asked_to_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert isinstance(engine(Faults(hang=0.1)), FaultyEngine)
    assert "FAILS ON PURPOSE" in caplog.text


def test_between_faults_it_is_the_engine_inside() -> None:
    made = running(Faults(hang=ALWAYS, hang_seconds=0))
    assert made.slots == 2
    assert made.step() == [StepProgress(0, 1, 2)]
    assert made.step() == [StepProgress(0, 2, 2)]
    assert made.encode(made.collect(made.finish(0))) == TASK.image


def test_memory_is_refused_while_an_image_is_prepared() -> None:
    made = engine(Faults(prepare_memory=ALWAYS))
    with pytest.raises(OutOfMemoryError, match="in prepare"):
        made.prepare(TASK)


def test_a_step_without_memory_takes_no_step() -> None:
    inner = engine(Faults())
    made = FaultyEngine(inner, Faults(step_memory=ALWAYS))
    made.admit(0, made.prepare(TASK))
    with pytest.raises(OutOfMemoryError, match="in step"):
        made.step()
    assert inner.step() == [StepProgress(0, 1, 2)]


def test_an_image_that_cannot_be_finished_can_be_discarded() -> None:
    made = running(Faults(finish_memory=ALWAYS))
    made.step()
    made.step()
    with pytest.raises(OutOfMemoryError, match="in finish"):
        made.finish(0)
    made.discard(0)
    made.admit(0, made.prepare(TASK))


def test_nothing_fails_while_nothing_runs() -> None:
    made = engine(Faults(step_memory=ALWAYS, exit=ALWAYS, hang=ALWAYS))
    assert made.step() == []
    made.admit(0, made.prepare(TASK))
    made.discard(0)
    assert made.step() == []


def test_another_process_has_another_fate(monkeypatch: pytest.MonkeyPatch) -> None:
    def fate(process: int) -> list[bool]:
        monkeypatch.setattr(os, "getpid", lambda: process)
        made = engine(Faults(seed=1, prepare_memory=0.5))
        return [_refused(made) for _ in range(64)]

    assert fate(1) == fate(1)
    assert fate(1) != fate(2)


def _refused(made: Engine[Any]) -> bool:
    try:
        made.prepare(TASK)
    except OutOfMemoryError:
        return True
    return False
