"""Measured costs of the steps of other sizes, and of work that delays steps."""

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.generator import effort
from scheduler.messages import BatchKey
from tests.workers.engine import demo
from tests.workers.engine.clock import Clock, Part, measurements
from tests.workers.engine.demo import CONFIG
from tests.workers.engine.recorder import recorder
from tests.workers.engine.three import FOUR, speed
from tests.workers.engine.three import engine as engine_of
from workers.engine import measure
from workers.engine.contract import MAX_SIZES
from workers.engine.engine import DiffusionEngine
from workers.engine.header import read_header
from workers.engine.plan import Size

WIDE = BatchKey(2.0, (128, 64))
MIDDLE = BatchKey(1.5, (96, 64))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, nothing is left out."""
    monkeypatch.setattr(measure, "_STEPS_S", 1000.0)
    monkeypatch.setattr(measure, "_OTHERS_S", 1000.0)


def idle() -> bool:
    return True


def run_together(engine: DiffusionEngine, *sizes: tuple[int, int]) -> None:
    """Take one step with images of these sizes."""
    for slot, (width, height) in enumerate(sizes):
        engine.admit(slot, engine.prepare(demo.task(1, width, height)))
    engine.step()
    for slot in range(len(sizes)):
        engine.discard(slot)


def measured_parts(engine: DiffusionEngine) -> list[tuple[Size, int]]:
    """Will hold other sizes and their buckets, in the order in which they are measured from now on."""
    parts, dummy_run = list[tuple[Size, int]](), engine.dummy_run

    def noted(bucket: int, size: Size | None = None) -> Callable[[], None]:
        if size is not None:
            parts.append((size, bucket))
        return dummy_run(bucket, size)

    engine.dummy_run = noted  # type: ignore[method-assign]
    return parts


def sizes_of(engine: DiffusionEngine) -> dict[BatchKey, tuple[float, ...]]:
    return dict(engine.costs().sizes)


@pytest.mark.usefixtures("patient")
def test_a_start_measures_an_image_of_two_to_one_as_well_and_keeps_no_buffers_for_it() -> None:
    engine = demo.engine()
    ((key, steps),) = engine.warm_up().sizes
    assert key == WIDE
    assert len(steps) == 3
    assert min(steps) > 0
    assert engine._execution.spaces.get(demo.latent_size(128)) is None


def test_a_slow_start_leaves_other_sizes_to_when_it_idles(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = demo.engine()
    with monkeypatch.context() as busy:
        busy.setattr(measure, "_STEPS_S", 0.0)
        assert engine.warm_up().sizes == ()
        assert engine.measure_again(idle)
        assert engine.costs().sizes == ()  # an image that comes would wait for so long a step
    monkeypatch.setattr(measure, "_STEPS_S", 1000.0)
    assert engine.measure_again(idle)
    assert list(sizes_of(engine)) == [WIDE]


@pytest.mark.usefixtures("patient")
def test_where_the_long_side_is_bound_a_wide_image_is_smaller_than_the_nominal_one() -> None:
    engine = demo.engine(replace(CONFIG, size=replace(CONFIG.size, long_side=64)))
    assert [key for key, _ in engine.warm_up().sizes] == [BatchKey(0.5, (64, 32))]


@pytest.mark.usefixtures("patient")
def test_an_idle_engine_measures_what_has_run_in_the_batch_sizes_that_ran() -> None:
    engine = demo.engine()
    engine.warm_up()
    run_together(engine, (96, 64), (96, 64), (64, 64))
    assert MIDDLE not in sizes_of(engine)
    parts = measured_parts(engine)
    assert engine.measure_again(idle)
    assert sizes_of(engine).keys() == {MIDDLE, WIDE}
    assert {bucket for size, bucket in parts if size == demo.latent_size(96)} == {2}


@pytest.mark.usefixtures("patient")
def test_sizes_are_told_as_jobs_name_them() -> None:
    engine = demo.engine()
    engine.warm_up()
    run_together(engine, (88, 64), (64, 72))
    assert engine.measure_again(idle)
    rules: Any = SimpleNamespace(engine=CONFIG, defaults={"steps": 4})
    for width, height in ((88, 64), (64, 72)):
        work, _, size = effort(read_header(demo.image(width, height)), 4, rules)
        assert BatchKey(work, size) in sizes_of(engine)


@pytest.mark.usefixtures("patient")
def test_a_request_ends_the_measuring_of_other_sizes_and_what_is_done_stays() -> None:
    engine = demo.engine()
    engine.warm_up()
    run_together(engine, (96, 64), (112, 64))
    before = engine.costs()
    assert engine.measure_again(
        lambda: MIDDLE not in sizes_of(engine) and BatchKey(1.75, (112, 64)) not in sizes_of(engine)
    )
    after = engine.costs()
    assert len(after.sizes) == 2  # of three
    assert after.step_seconds != before.step_seconds


@pytest.mark.usefixtures("patient")
def test_of_more_sizes_than_are_told_those_that_ran_last_are() -> None:
    engine = demo.engine()
    engine.warm_up()
    ran = [*((width, 64) for width in range(72, 129, 8)), (64, 72), (64, 80)]
    for part in (ran[:5], ran[5:]):
        for size in part:
            run_together(engine, size)
        assert engine.measure_again(idle)
    assert [key.size for key in sizes_of(engine)] == sorted(ran[-MAX_SIZES:], key=lambda size: (size[1], size[0]))


@pytest.mark.usefixtures("patient")
def test_those_that_were_measured_longest_ago_come_first_when_time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = demo.engine()
    engine.warm_up()
    run_together(engine, (96, 64), (112, 64))
    monkeypatch.setattr(measure, "_OTHERS_S", 0.0)
    parts = measured_parts(engine)
    for _ in range(4):
        assert engine.measure_again(idle)
    assert parts == [(demo.latent_size(width), 1) for width in (112, 96, 128, 112)]


@pytest.mark.usefixtures("patient")
def test_nothing_is_recorded_to_be_measured() -> None:
    fake = recorder()
    engine = engine_of(FOUR, fake)
    assert engine.warm_up().sizes == ()
    run_together(engine, (96, 64))
    recorded, parts = len(fake.pools), measured_parts(engine)
    assert engine.measure_again(idle)
    assert list(sizes_of(engine)) == [MIDDLE]
    assert parts == [(demo.latent_size(96), 1)]
    assert len(fake.pools) == recorded


@pytest.mark.usefixtures("patient")
def test_configured_sizes_are_measured_when_it_starts() -> None:
    engine = engine_of(speed(CONFIG, sizes=[(64, 64), (96, 64)]), recorder())
    parts = measured_parts(engine)
    assert [key for key, _ in engine.warm_up().sizes] == [MIDDLE]
    assert parts == [(demo.latent_size(96), bucket) for bucket in (1, 2, 3)]


def test_batch_sizes_that_were_not_measured_grow_as_so_much_work_of_the_nominal_size(clock: Clock) -> None:
    wide, middle = demo.latent_size(128), demo.latent_size(96)
    seconds: dict[Part, float] = {(1, None): 1.0, (2, None): 1.5, (4, None): 2.0}
    seconds |= {(1, wide): 1.8, (4, middle): 4.5, (2, middle): 1.75}
    measured = measurements(clock, (1, 2, 4), seconds)
    assert dict(measured.costs().sizes) == {
        # two nominal images take 1.5, four 2, and eight 4: here 1.2 times that
        WIDE: pytest.approx((1.8, 2.4, 4.8, 4.8)),
        # of one and a half, three and six nominal images: 1, 1 and 1.5 times 1.25, 1.75 and 3
        MIDDLE: pytest.approx((1.25, 1.75, 4.5, 4.5)),
    }


def test_sizes_that_cannot_be_measured_again_change_as_the_nominal_one_does(clock: Clock) -> None:
    seconds: dict[Part, float] = {(1, None): 1000.0, (1, demo.latent_size(128, 128)): 4000.0}
    measured = measurements(clock, (1,), seconds)
    seconds[1, None] = 0.5
    with torch.no_grad():
        assert measured.refresh(idle)
    assert measured.costs().step_seconds == pytest.approx((0.5,))
    assert dict(measured.costs().sizes)[BatchKey(4.0, (128, 128))] == pytest.approx((2.0,))


def slow(action: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        time.sleep(0.5)
        return action(*arguments)

    return run


@pytest.mark.parametrize(
    ("part", "keeps_the_device"), [("decode", True), ("admit", True), ("prepare", False), ("encode", False)]
)
def test_work_that_delays_steps_is_measured_separately(
    part: str, keeps_the_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = demo.engine()
    monkeypatch.setattr(engine, part, slow(getattr(engine, part)))
    costs = engine.warm_up()
    host = costs.fixed_seconds - costs.decode_seconds
    slowed, other = (costs.decode_seconds, host) if keeps_the_device else (host, costs.decode_seconds)
    assert slowed >= 0.5
    assert 0 < other < slowed
