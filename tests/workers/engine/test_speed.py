"""Graphs, background compilation and memory in the engine: the pictures stay the same."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG, relative_error
from tests.workers.engine.recorder import FakeRecorder, recorder
from workers.engine.config import EngineConfig, Speed
from workers.engine.contract import OutOfMemoryError
from workers.engine.denoiser import Denoiser, Passes
from workers.engine.engine import DiffusionEngine
from workers.engine.model import assemble
from workers.engine.networks import Control, Given
from workers.engine.speed import buckets

FOUR = replace(CONFIG, slots=4)
NO_MEMORY = torch.OutOfMemoryError("out of memory")
ALIKE = 1e-5


def engine(config: EngineConfig, fake: FakeRecorder | None = None) -> DiffusionEngine:
    return DiffusionEngine(config, assemble(config, demo.parts(), "cpu"), fake)


def speed(config: EngineConfig = FOUR, **changes: Any) -> EngineConfig:
    return replace(config, speed=replace(Speed(), **changes))


@pytest.fixture(scope="module")
def alone() -> dict[int, Tensor]:
    """Latents of three pictures that were made alone, without graphs, by seed."""
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


@pytest.mark.parametrize(
    ("slots", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))],
)
def test_graphs_are_kept_for_powers_of_two_and_for_all_slots(slots: int, expected: tuple[int, ...]) -> None:
    assert buckets(slots, exact=False) == expected
    assert buckets(slots, exact=True) == tuple(range(1, slots + 1))


def test_replayed_steps_make_the_same_pictures_in_buckets_that_are_not_full(alone: dict[int, Tensor]) -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    assert_alike(together(made_by), alone)
    assert fake.replays >= CONFIG.sampler.steps + 2
    assert dict(made_by.condition().graphs)["steps"] == 3


def test_recording_in_the_middle_of_a_picture_leaves_it_as_it_is(alone: dict[int, Tensor]) -> None:
    made_by = engine(FOUR, recorder())
    made_by.admit(0, made_by.prepare(demo.task(0)))
    for _ in range(2):
        made_by.step()
    made_by.admit(1, made_by.prepare(demo.task(1)))  # the next step records another bucket
    assert relative_error(demo.run(made_by, 0), alone[0]) <= ALIKE


def test_before_the_first_request_the_configured_sizes_are_recorded_the_largest_first() -> None:
    fake = recorder()
    made_by = engine(speed(sizes=[(64, 64), (128, 64)]), fake)
    made_by._workshop.set_up()
    areas = [space.batch._size for space in made_by._workshop.spaces]
    assert areas == [(8, 16), (8, 8)]
    assert dict(made_by.condition().graphs) == {"steps": 6, "steps compiled": 0, "VAE": 2, "text": 0}
    assert made_by.condition().graph_bytes == 8 * fake.size
    # One for the steps, one for the VAE, which runs beside them: so it is recorded apart.
    assert len(set(map(id, fake.pools))) == 2
    assert [pool in fake.aside for pool in fake.pools] == 2 * [False, False, False, True]


def test_nothing_is_recorded_by_a_request_for_a_configured_size() -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    made_by.warm_up()
    before = len(fake.pools)
    together(made_by)
    assert len(fake.pools) == before


def test_other_sizes_are_recorded_at_first_use_in_pools_of_their_own() -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    made_by.warm_up()
    known = set(map(id, fake.pools))
    demo.make(made_by, demo.task(1, 96))
    assert dict(made_by.condition().graphs)["steps"] == 4
    assert not known & {id(fake.pools[-1])}


def test_beyond_their_bound_the_least_recently_used_sizes_are_dropped() -> None:
    fake = recorder(size=2**29)
    made_by = engine(speed(other_sizes_gib=1.2), fake)
    for width in (72, 80, 72, 88):
        demo.make(made_by, demo.task(1, width))
    made_by._workshop.spaces.of((8, 8))
    assert [space.batch._size for space in made_by._workshop.spaces] == [(8, 9), (8, 11), (8, 8)]
    assert fake.settled


def test_sizes_in_use_and_configured_sizes_are_not_dropped(alone: dict[int, Tensor]) -> None:
    made_by = engine(speed(other_sizes_gib=0, sizes=[(96, 64)]), recorder())
    made_by._workshop.set_up()
    made_by.admit(0, made_by.prepare(demo.task(0)))
    made_by.step()
    demo.make_beside(made_by, 1, demo.task(1, 128))
    assert relative_error(demo.run(made_by, 0), alone[0]) <= ALIKE
    assert made_by._workshop.spaces.get((8, 12)) is not None


def test_a_graph_without_memory_costs_other_sizes_theirs_first() -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    demo.make(made_by, demo.task(1, 96))
    fake.failures.append(NO_MEMORY)
    demo.make(made_by, demo.task(1, 128))
    assert made_by._workshop.spaces.get((8, 12)) is None
    assert made_by.condition().fallbacks == ()


def test_a_step_without_memory_is_taken_in_smaller_parts(alone: dict[int, Tensor]) -> None:
    made_by = engine(FOUR)
    limit = _Limited(made_by, rows=2)
    assert_alike(together(made_by), alone)
    assert limit.refused == 1  # once for good
    assert made_by.condition().fallbacks == (("step: out of memory", 1),)


def test_without_memory_for_one_picture_the_error_is_raised() -> None:
    made_by = engine(FOUR)
    _Limited(made_by, rows=0)
    made_by.admit(0, made_by.prepare(demo.task(0)))
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        made_by.step()
    made_by.discard(0)
    assert made_by.step() == []


def test_a_picture_is_decoded_in_the_memory_of_other_sizes() -> None:
    made_by, fake = engine(FOUR, recorder()), Refusing(1)
    demo.make(made_by, demo.task(1, 96))
    made_by.admit(0, made_by.prepare(demo.task(0)))
    demo.run(made_by, 0)
    expected = made_by.decode(made_by.latents(0))
    made_by._finals[0][0].decoder.start = fake.instead_of(made_by._finals[0][0].decoder.start)  # type: ignore[method-assign]
    assert (made_by.collect(made_by.finish(0)) == expected).all()
    assert made_by._workshop.spaces.get((8, 12)) is None


def test_a_picture_that_cannot_be_decoded_stays_until_it_is_dropped() -> None:
    made_by, fake = engine(FOUR), Refusing(2)
    made_by.admit(0, made_by.prepare(demo.task(0)))
    demo.run(made_by, 0)
    made_by._finals[0][0].decoder.start = fake.instead_of(made_by._finals[0][0].decoder.start)  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError):
        made_by.finish(0)
    made_by.discard(0)
    made_by.admit(0, made_by.prepare(demo.task(0)))


def test_a_picture_that_cannot_be_admitted_leaves_its_slot_free(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by = engine(FOUR)
    prepared = made_by.prepare(demo.task(0))
    with monkeypatch.context() as patched:
        patched.setattr(made_by, "_hint", Refusing(2).instead_of(made_by._hint))
        with pytest.raises(OutOfMemoryError):
            made_by.admit(0, prepared)
    made_by.admit(0, prepared)
    assert [stepped.slot for stepped in made_by.step()] == [0]


@dataclass
class Refusing:
    """Something that lacks memory so many times."""

    times: int

    def instead_of(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.times -= 1
            if self.times >= 0:
                raise NO_MEMORY
            return work(*args)

        return run


class _Limited:
    """Makes an engine's networks run out of memory with more than so many pictures."""

    def __init__(self, engine: DiffusionEngine, rows: int) -> None:
        self.refused = 0
        self._rows = rows
        plain = engine._workshop._plain
        self._encode = plain.encode
        engine._workshop._plain = replace(plain, encode=self)

    def __call__(self, latents: Tensor, *rest: Any) -> Any:
        if len(latents) > self._rows:
            self.refused += 1
            raise NO_MEMORY
        return self._encode(latents, *rest)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own imports
def test_compiled_networks_take_over_between_two_steps_of_a_picture(alone: dict[int, Tensor]) -> None:
    """Compiled by torch indeed: the small model, for one batch size."""
    config = speed(replace(CONFIG, slots=1), compile=True)
    made_by = engine(config, recorder())
    made_by._workshop.set_up()
    made_by._measurements.take_all()
    planned_with = made_by.costs()
    made_by.admit(0, made_by.prepare(demo.task(0)))
    for _ in range(2):
        made_by.step()
    made_by._workshop.start_compiling()
    compiler = made_by._workshop._compiler
    while not compiler._compiled.qsize():  # the test's own time-out bounds this
        assert compiler._thread is not None
        assert not compiler.idle(), made_by.condition().fallbacks
        compiler._thread.join(0.05)
    assert relative_error(demo.run(made_by, 0), alone[0]) <= 1e-4
    assert dict(made_by.condition().graphs)["steps compiled"] == 1
    assert made_by.settle(0)
    assert made_by.costs() != planned_with
    assert made_by.condition().fallbacks == ()


def test_any_number_of_shapes_is_compiled() -> None:
    made_by = engine(speed(replace(CONFIG, slots=3), compile=True))
    trace = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    plain = made_by._workshop._plain
    made_by._workshop._compiled = Passes(trace(plain.control), trace(plain.encode), trace(plain.decode))
    made_by._workshop.set_up()
    made_by._workshop.start_compiling()
    assert made_by.settle(120)
    assert (
        dict(made_by.condition().graphs)["steps compiled"] == 3
    )  # of three passes each: 9 compilations, of which torch takes 8
    assert made_by.condition().fallbacks == ()


def test_when_compiling_fails_pictures_are_made_as_before(alone: dict[int, Tensor]) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no C compiler")

    made_by = engine(speed(compile=True))
    made_by._workshop._compiled = Passes(broken, broken, broken)
    made_by._workshop.set_up()
    made_by._workshop.start_compiling()
    assert made_by.settle(30)
    assert_alike(together(made_by), alone)
    assert made_by.condition().fallbacks == (("compile: failed", 4),)


class _Asked(TorchDispatchMode):
    """Notes operations that make the host wait for a value from the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [True, False])
def test_cudnn_times_its_algorithms_only_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not wanted)  # and as it was, after the test
    engine(speed(replace(CONFIG, slots=1), time_convolutions=wanted))._workshop.set_up()
    assert torch.backends.cudnn.benchmark is wanted


def test_a_step_asks_the_host_nothing() -> None:
    made_by = engine(FOUR)
    made_by.admit(0, made_by.prepare(demo.task(0)))
    made_by.step()
    with _Asked() as asked:
        made_by.step()
    assert asked.seen == []
    with _Asked() as asked:
        torch.ones(1).item()
    assert asked.seen  # the test would notice


class _Noted:
    """In place of an Aside."""

    def __init__(self, order: list[str]) -> None:
        self._order = order

    def fork(self) -> Any:
        self._order.append("fork")
        return nullcontext()

    def join(self) -> None:
        self._order.append("join")


NOTHING = Given((), ())
NO_CONTROL = Control(torch.zeros(1), torch.zeros(1), NOTHING)


def test_the_controlnet_runs_aside_and_is_joined_before_it_is_needed() -> None:
    order: list[str] = []

    def noted(name: str, result: Any) -> Any:
        def run(*_: Any) -> Any:
            order.append(name)
            return result

        return run

    passes = Passes(noted("control", ([], 0)), noted("encode", ([], 0)), noted("decode", "noise"))
    denoiser = Denoiser(passes, _Noted(order))  # type: ignore[arg-type]
    made: object = denoiser(torch.zeros(1), NOTHING, NO_CONTROL)
    assert made == "noise"
    assert order == ["fork", "control", "encode", "join", "decode"]


def test_the_controlnet_is_joined_even_when_memory_gives_out() -> None:
    order: list[str] = []

    def fail(*_: Any) -> Any:
        raise NO_MEMORY

    denoiser = Denoiser(Passes(fail, fail, fail), _Noted(order))  # type: ignore[arg-type]
    with pytest.raises(torch.OutOfMemoryError):
        denoiser(torch.zeros(1), NOTHING, NO_CONTROL)
    assert order == ["fork", "join"]
