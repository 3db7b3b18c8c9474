"""The engine's contract: slots, determinism, and neighbours that do not disturb one another."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.engine import demo
from tests.workers.engine.clock import Clock, measurements
from tests.workers.engine.demo import CONFIG
from workers.engine import build, codec, measure
from workers.engine.contract import AS_CONFIGURED, BadImageError, Engine, EngineOptions, StepProgress, Task
from workers.engine.engine import DiffusionEngine, Prepared

STEPS = CONFIG.sampler.steps
ALIKE_DB = 50  # alone against in a batch


@pytest.fixture(scope="module")
def shared() -> DiffusionEngine:
    """An engine for tests that leave it empty."""
    return demo.engine()


def pixels_of(engine: DiffusionEngine, slot: int) -> codec.Pixels:
    demo.run(engine, slot)
    return engine.collect(engine.finish(slot))


def alone(engine: DiffusionEngine, task: Task) -> codec.Pixels:
    engine.admit(0, engine.prepare(task))
    return pixels_of(engine, 0)


def test_build_makes_one() -> None:
    engine: Engine[Prepared] = build(CONFIG, "cpu")
    assert isinstance(engine, DiffusionEngine)
    assert engine.slots == 3


def test_an_image_takes_its_steps_and_becomes_a_file(shared: DiffusionEngine) -> None:
    shared.admit(2, shared.prepare(demo.task(width=128)))
    assert [shared.step() for _ in range(STEPS + 1)] == [
        *([StepProgress(2, n, STEPS)] for n in range(1, STEPS + 1)),
        [],
    ]
    pixels = shared.collect(shared.finish(2))
    assert pixels.shape == (64, 128, 3)
    assert pixels.dtype == np.uint8
    assert codec.decode(shared.encode(pixels)).shape == pixels.shape


def test_the_same_request_is_the_same_image(shared: DiffusionEngine) -> None:
    first, second = (alone(shared, demo.task(5)) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(first, alone(demo.engine(), demo.task(5)))


def test_another_seed_is_another_image(shared: DiffusionEngine) -> None:
    assert demo.psnr(alone(shared, demo.task(5)), alone(shared, demo.task(6))) < ALIKE_DB


def test_another_text_is_another_image(shared: DiffusionEngine) -> None:
    assert demo.psnr(alone(shared, demo.task(5)), alone(shared, demo.task(5, text="a blue star"))) < ALIKE_DB


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63, 2**64 - 1])
def test_seeds_at_the_limits_work(shared: DiffusionEngine, seed: int) -> None:
    noise = shared.prepare(demo.task(seed)).noise
    assert torch.equal(noise, shared.prepare(demo.task(seed)).noise)
    assert noise.isfinite().all()
    assert noise.dtype == torch.float32


def test_the_noise_is_diffusers_for_that_seed(shared: DiffusionEngine) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    shape = (1, demo.CHANNELS, *demo.latent_size())
    expected = randn_tensor(shape, generator=torch.Generator("cpu").manual_seed(9), dtype=torch.float32)[0]
    assert torch.equal(shared.prepare(demo.task(9)).noise[0], expected)


def test_an_image_does_not_depend_on_its_company(shared: DiffusionEngine) -> None:
    expected = [alone(shared, demo.task(seed)) for seed in range(3)]
    for slot in range(3):
        shared.admit(slot, shared.prepare(demo.task(slot)))
        shared.step()
    for slot in range(3):
        assert demo.psnr(pixels_of(shared, slot), expected[slot]) >= ALIKE_DB


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("after", range(STEPS + 1))
def test_discarding_one_leaves_the_others_as_they_are(shared: DiffusionEngine, victim: int, after: int) -> None:
    others = [slot for slot in range(3) if slot != victim]
    expected = {slot: alone(shared, demo.task(slot)) for slot in others}
    for slot in range(3):
        shared.admit(slot, shared.prepare(demo.task(slot)))
    for _ in range(after):
        shared.step()
    shared.discard(victim)
    for slot in others:
        assert demo.psnr(pixels_of(shared, slot), expected[slot]) >= ALIKE_DB


def test_sizes_run_side_by_side_in_one_step(shared: DiffusionEngine) -> None:
    widths = (64, 96, 128)
    expected = [alone(shared, demo.task(1, width)) for width in widths]
    for slot, width in enumerate(widths):
        shared.admit(slot, shared.prepare(demo.task(1, width)))
    assert {stepped.slot for stepped in shared.step()} == {0, 1, 2}
    for slot, width in enumerate(widths):
        pixels = pixels_of(shared, slot)
        assert pixels.shape == (64, width, 3)
        assert demo.psnr(pixels, expected[slot]) >= ALIKE_DB


def test_finished_images_wait_without_taking_part(shared: DiffusionEngine) -> None:
    expected = [alone(shared, demo.task(seed)) for seed in range(2)]
    shared.admit(0, shared.prepare(demo.task(0)))
    demo.run(shared, 0)
    shared.admit(1, shared.prepare(demo.task(1)))
    assert shared.step() == [StepProgress(1, 1, STEPS)]
    assert np.array_equal(pixels_of(shared, 1), expected[1])
    assert np.array_equal(shared.collect(shared.finish(0)), expected[0])


def test_a_slot_is_reused_without_a_trace(shared: DiffusionEngine) -> None:
    expected = alone(shared, demo.task(1))
    poison = shared.prepare(demo.task(2))
    poison.noise.fill_(float("inf"))
    shared.admit(0, poison)
    shared.step()
    shared.discard(0)
    assert np.array_equal(alone(shared, demo.task(1)), expected)


def test_impossible_calls_are_refused_and_change_nothing(shared: DiffusionEngine) -> None:
    prepared = shared.prepare(demo.task())
    shared.admit(0, prepared)
    for slot in (0, -1, 3):
        with pytest.raises(ValueError, match=f"slot {slot} is not free"):
            shared.admit(slot, prepared)
    with pytest.raises(ValueError, match="no image that has taken its last step"):
        shared.finish(0)
    with pytest.raises(ValueError, match="slot 1 is empty"):
        shared.discard(1)
    demo.run(shared, 0)
    with pytest.raises(ValueError, match="slot 0 is not free"):
        shared.admit(0, prepared)
    shared.discard(0)
    with pytest.raises(ValueError, match="no image that has taken its last step"):
        shared.finish(0)
    assert shared.step() == []


def test_an_image_that_has_begun_takes_its_slot_and_no_step(shared: DiffusionEngine) -> None:
    prepared = shared.prepare(demo.task(), partial(shared.begin, 0))
    with pytest.raises(ValueError, match="slot 0 is not free"):
        shared.begin(0, prepared)
    assert shared.step() == []
    with pytest.raises(ValueError, match="no running image"):
        shared.preview(0)
    shared.discard(0)
    with pytest.raises(ValueError, match="slot 0 is empty"):
        shared.discard(0)


def test_a_bad_image_is_refused_at_prepare(shared: DiffusionEngine) -> None:
    with pytest.raises(BadImageError):
        shared.prepare(Task(b"not an image", "", 0))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["begin", "admit", "step", "discard"]), st.integers(0, 2)), max_size=15))
def test_any_order_of_joining_and_leaving_makes_the_same_images(acts: list[tuple[str, int]]) -> None:
    engine = demo.engine(replace(CONFIG, guidance_scale=1.0))
    expected = {slot: alone(engine, demo.task(slot)) for slot in range(3)}
    begun, running = set[int](), dict[int, int]()
    for act, slot in acts:
        if act == "begin" and slot not in begun | running.keys():
            engine.prepare(demo.task(slot), partial(engine.begin, slot))
            begun.add(slot)
        elif act == "admit" and slot not in running:
            engine.admit(slot, engine.prepare(demo.task(slot)))
            begun.discard(slot)
            running[slot] = 0
        elif act == "discard" and slot in begun | running.keys():
            engine.discard(slot)
            begun.discard(slot)
            running.pop(slot, None)
        elif act == "step":
            unfinished = {slot for slot, done in running.items() if done < STEPS}
            running.update({slot: running[slot] + 1 for slot in unfinished})
            assert sorted(engine.step(), key=lambda stepped: stepped.slot) == [
                StepProgress(slot, running[slot], STEPS) for slot in sorted(unfinished)
            ]
    for slot in running:
        assert demo.psnr(pixels_of(engine, slot), expected[slot]) >= ALIKE_DB


def test_warming_up_measures_every_batch_size_and_leaves_the_engine_empty() -> None:
    engine = demo.engine()
    costs = engine.warm_up()
    assert costs.steps == STEPS
    assert len(costs.step_seconds) == 3
    assert all(seconds > 0 for seconds in (*costs.step_seconds, costs.fixed_seconds))
    assert engine.step() == []


def idle() -> bool:
    return True


def refused() -> None:
    raise torch.OutOfMemoryError("out of memory")


def test_a_start_on_a_busy_machine_is_forgotten_when_it_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    engine, delay = demo.engine(), 0.5
    dummy_run = engine.dummy_run

    def slow(bucket: int, *size: Any) -> Callable[[], None]:
        return clock.later(0.01 * bucket + delay, dummy_run(bucket, *size))

    monkeypatch.setattr(engine, "dummy_run", slow)
    engine.warm_up()
    assert engine.measure_again(idle)
    assert engine.costs().step_seconds[0] >= 0.5
    delay = 0.0
    assert engine.measure_again(idle)
    assert engine.costs().step_seconds == pytest.approx((0.011, 0.021, 0.031))
    assert engine.step() == []


def test_batch_sizes_that_a_slow_start_left_out_are_measured_when_it_idles(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = demo.engine()
    with monkeypatch.context() as busy:
        busy.setattr(measure, "_STEPS_S", 0.0)
        engine.warm_up()
    taken, dummy_run = set[int](), engine.dummy_run

    def noted(bucket: int, *size: tuple[int, int]) -> Callable[[], None]:
        taken.add(bucket)
        return dummy_run(bucket, *size)

    monkeypatch.setattr(engine, "dummy_run", noted)
    assert engine.measure_again(idle)
    assert taken == {1, 2, 3}


def test_work_that_slowed_only_what_is_not_a_step_is_forgotten_as_well(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    engine, seconds = demo.engine(), 0.5  # less than what a call takes that is not repeated
    encode = engine.encode

    def slow(pixels: object, options: EngineOptions = AS_CONFIGURED) -> bytes:
        clock.now += seconds
        return encode(pixels, options)

    monkeypatch.setattr(engine, "encode", slow)
    assert engine.warm_up().fixed_seconds == pytest.approx(0.5, abs=0.01)
    seconds = 0.1
    assert engine.measure_again(idle)
    assert engine.costs().fixed_seconds == pytest.approx(0.1, abs=0.01)


def test_measuring_ends_with_the_step_that_runs_when_the_engine_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = demo.engine()
    before = engine.warm_up()
    steps: list[int] = []
    monkeypatch.setattr(engine, "dummy_run", lambda bucket: partial(steps.append, bucket))
    assert not engine.measure_again(lambda: len(steps) < 2)
    assert len(steps) == 2
    assert engine.costs() == before
    assert engine.step() == []


def test_without_memory_to_measure_again_what_was_measured_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = demo.engine()
    before = engine.warm_up()

    monkeypatch.setattr(engine, "dummy_run", lambda *part: refused)
    assert engine.measure_again(idle)
    after = engine.costs()
    assert (after.step_seconds, after.sizes) == (before.step_seconds, before.sizes)


def test_a_sampler_of_one_step_can_be_warmed_up_too() -> None:
    engine = demo.engine(replace(demo.CONFIG, slots=1, sampler=replace(demo.CONFIG.sampler, steps=1)))
    assert engine.warm_up().steps == 1
    assert engine.step() == []


def test_images_that_fill_no_bucket_cost_as_much_as_those_that_do(clock: Clock) -> None:
    measured = measurements(clock, (1, 2, 4), {(1, None): 1.0, (2, None): 1.5, (4, None): 2.0})
    assert measured.costs().step_seconds == pytest.approx((1.0, 1.5, 2.0, 2.0))


def test_a_bucket_without_memory_to_measure_it_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = demo.engine()
    dummy_run = engine.dummy_run
    monkeypatch.setattr(engine, "dummy_run", lambda bucket, *size: dummy_run(bucket, *size) if bucket == 1 else refused)
    costs = engine.warm_up()
    assert costs.step_seconds == pytest.approx([n * costs.step_seconds[0] for n in (1, 2, 3)])


def test_buckets_without_time_to_measure_are_estimated_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measure, "_STEPS_S", 0.0)
    with caplog.at_level(logging.INFO):
        costs = demo.engine().warm_up()
    assert costs.step_seconds == pytest.approx([n * costs.step_seconds[0] for n in (1, 2, 3)])
    assert "Measured steps of batches of 1; estimated those of 2, 3" in caplog.text
