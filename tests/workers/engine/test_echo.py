import subprocess
import sys

import numpy as np
import pytest

from scheduler.messages import Costs
from tests.service.running import png
from tests.workers.engine.demo import image
from workers.engine import build, codec
from workers.engine.config import Echo, EngineConfig, Output
from workers.engine.contract import BadImageError, EngineOptions, StepProgress, Task
from workers.engine.echo import EchoEngine

START = 100.0  # what a clock shows at first


def echo(steps: int = 2, step_seconds: float = 0.0, reencode: bool = True) -> EchoEngine:
    settings = Echo(steps=steps, step_seconds=step_seconds, reencode=reencode)
    return EchoEngine(EngineConfig(kind="echo", slots=2, echo=settings, output=Output(format="png")))


def test_an_image_comes_back_after_its_steps() -> None:
    engine = echo(steps=2)
    engine.admit(1, engine.prepare(Task(image(), "", 0)))
    assert engine.step() == [StepProgress(1, 1, 2)]
    assert engine.step() == [StepProgress(1, 2, 2)]
    assert engine.step() == []
    file = engine.encode(engine.finish(1))
    assert np.array_equal(codec.decode(file), codec.decode(image()))


def test_an_image_takes_the_steps_that_its_task_asks_for() -> None:
    engine = echo(steps=2)
    engine.admit(0, engine.prepare(Task(image(), "", 0, EngineOptions(steps=3))))
    engine.admit(1, engine.prepare(Task(image(), "", 0)))
    assert engine.step() == [StepProgress(0, 1, 3), StepProgress(1, 1, 2)]
    assert engine.step() == [StepProgress(0, 2, 3), StepProgress(1, 2, 2)]
    assert engine.step() == [StepProgress(0, 3, 3)]
    assert engine.costs().steps == 2


def test_unread_bytes_come_back_as_they_are() -> None:
    engine = echo(steps=1, reencode=False)
    engine.admit(0, engine.prepare(Task(memoryview(b"not an image"), "", 0)))
    engine.step()
    assert engine.encode(engine.finish(0)) == b"not an image"
    assert engine.warm_up().fixed_seconds == 0


def test_a_reencoded_input_must_be_an_image() -> None:
    with pytest.raises(BadImageError):
        echo().prepare(Task(b"not an image", "", 0))


class Clock:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now = START

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("workers.engine.echo.time", clock)
    return clock


def test_images_share_the_time_of_a_step(clock: Clock) -> None:
    engine = echo(step_seconds=0.5)
    for slot in range(2):
        engine.admit(slot, engine.prepare(Task(image(), "", 0)))
    assert engine.step() == [StepProgress(0, 1, 2), StepProgress(1, 1, 2)]
    assert clock.now == START + 0.5


def device(clock: Clock, *sizes: tuple[int, int]) -> EchoEngine:
    """An engine whose steps take 2, 3 and 3 s, with an image of two steps of each of these sizes; at time 0."""
    settings = Echo(steps=2, batch_seconds=[2.0, 3.0], fixed_seconds=1.0, reencode=False)
    engine = EchoEngine(EngineConfig(kind="echo", slots=3, echo=settings))
    for slot, (width, height) in enumerate(sizes):
        engine.admit(slot, engine.prepare(Task(png(width, height), "", 0)))
    clock.now = 0.0
    return engine


def test_images_of_a_size_share_a_batch_and_other_sizes_cost_by_their_pixels(clock: Clock) -> None:
    engine = device(clock, (512, 512), (512, 512), (512, 1024))
    assert engine.costs() == Costs(2, (2.0, 3.0, 3.0), 1.0, 0.5)
    engine.step()
    assert clock.now == 3.0 + 2 * 2.0


def test_half_of_the_fixed_time_passes_before_the_steps_and_half_after_them(clock: Clock) -> None:
    engine = device(clock, (512, 1024))
    engine.prepare(Task(png(512, 1024), "", 0))
    assert clock.now == 1.0
    engine.step()
    engine.step()
    engine.finish(0)
    assert clock.now == 1.0 + 2 * 4.0 + 1.0


def test_the_host_has_as_long_as_a_step_to_give_a_device_the_next_one(clock: Clock) -> None:
    engine = device(clock, (512, 512))
    engine.step()
    clock.now += 1.5  # until the host comes back
    engine.step()
    assert clock.now == 2 * 2.0
    engine = device(clock, (512, 512))
    engine.step()
    clock.now += 5.0
    engine.step()
    assert clock.now == 2.0 + 5.0


def test_an_idle_device_begins_when_it_is_told(clock: Clock) -> None:
    engine = device(clock, (512, 512))
    engine.step()
    engine.discard(0)
    clock.now = 10.0
    engine.admit(0, engine.prepare(Task(png(512, 512), "", 0)))
    engine.step()
    assert clock.now == 10.0 + 0.5 + 2.0


def test_a_discarded_image_frees_its_slot() -> None:
    engine = echo()
    prepared = engine.prepare(Task(image(), "", 0))
    engine.admit(0, prepared)
    engine.discard(0)
    engine.admit(0, prepared)
    assert engine.step() == [StepProgress(0, 1, 2)]


def test_impossible_calls_are_refused() -> None:
    engine = echo()
    prepared = engine.prepare(Task(image(), "", 0))
    engine.admit(0, prepared)
    for slot in (0, 2, -1):
        with pytest.raises(ValueError, match="not free"):
            engine.admit(slot, prepared)
    with pytest.raises(ValueError, match="steps to take"):
        engine.finish(0)
    for act in (engine.finish, engine.discard):
        with pytest.raises(ValueError, match="empty"):
            act(1)


def test_costs_are_those_of_the_configuration() -> None:
    costs = echo(steps=3, step_seconds=0.25).warm_up()
    assert (costs.steps, costs.step_seconds) == (3, (0.25, 0.25))
    assert costs.fixed_seconds > 0


def test_it_is_built_without_torch() -> None:
    assert isinstance(build(EngineConfig(kind="echo"), "cpu"), EchoEngine)
    code = (
        "import sys; from workers.engine import build; from workers.engine.config import EngineConfig; "
        "build(EngineConfig(kind='echo'), 'cpu').warm_up(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
