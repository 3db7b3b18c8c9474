"""Graphs, sizes and streams in the engine: the images stay the same."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG, relative_error
from tests.workers.engine.recorder import recorder
from tests.workers.engine.three import ALIKE, FOUR, Change, Changed, alone, assert_alike, engine, speed, together
from workers.engine import build
from workers.engine.denoiser import Denoiser, Passes, Predict, StepInputs
from workers.engine.engine import DiffusionEngine
from workers.engine.execution import buckets
from workers.engine.model import assemble
from workers.engine.networks import Control, LayerInputs
from workers.engine.runtime import ModelFunctions
from workers.engine.trials import CONVOLUTIONS, GROUP_NORM, Trials

NO_MEMORY = torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(
    ("slots", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))],
)
def test_graphs_are_kept_for_powers_of_two_and_for_all_slots(slots: int, expected: tuple[int, ...]) -> None:
    assert buckets(slots, exact=False) == expected
    assert buckets(slots, exact=True) == tuple(range(1, slots + 1))


def test_replayed_steps_make_the_same_images_in_buckets_that_are_not_full() -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    assert_alike(together(made_by), alone())
    assert fake.replays >= CONFIG.sampler.steps + 2
    assert dict(made_by.status().graphs)["steps"] == 3


def test_recording_in_the_middle_of_an_image_leaves_it_as_it_is() -> None:
    made_by = engine(FOUR, recorder())
    made_by.admit(0, made_by.prepare(demo.task(0)))
    for _ in range(2):
        made_by.step()
    made_by.admit(1, made_by.prepare(demo.task(1)))  # the next step records another bucket
    assert relative_error(demo.run(made_by, 0), alone()[0]) <= ALIKE


def test_before_the_first_request_the_configured_sizes_are_recorded_the_largest_first() -> None:
    fake = recorder()
    made_by = engine(speed(sizes=[(64, 64), (128, 64)]), fake)
    made_by.warm_up()
    areas = [space.batch._size for space in made_by._execution.spaces]
    assert areas == [demo.latent_size(128), demo.latent_size()]
    assert {kind: n for kind, n in made_by.status().graphs if n} == {"steps": 6, "VAE": 2, "hint": 2, "text": 1}
    assert made_by.status().graph_bytes == 11 * fake.size
    # One for the steps, one for the VAE, which runs beside them: so it is recorded apart.
    assert len(set(map(id, fake.pools))) == 2
    assert [pool in fake.concurrent for pool in fake.pools] == [*2 * [False, False, False, False, True], False]


def test_nothing_is_recorded_by_a_request_for_a_configured_size() -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    made_by.warm_up()
    before = len(fake.pools)
    together(made_by)
    assert len(fake.pools) == before


def test_an_image_is_a_replay_of_its_text_its_hint_each_step_and_the_vae() -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    made_by.warm_up()
    before = fake.replays
    made_by.prepare(demo.task(0), partial(made_by.begin, 0))
    assert fake.replays == before + 1
    made_by.admit(0, made_by.prepare(demo.task(0)))
    assert fake.replays == before + 2
    demo.run(made_by, 0)
    made_by.collect(made_by.finish(0))
    assert fake.replays == before + 2 + CONFIG.sampler.steps + 1


def test_other_sizes_are_recorded_at_first_use_in_pools_of_their_own() -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    made_by.warm_up()
    known = set(map(id, fake.pools))
    demo.make(made_by, demo.task(1, 96))
    assert dict(made_by.status().graphs)["steps"] == 4
    assert not known & {id(fake.pools[-1])}


def test_beyond_their_bound_the_least_recently_used_sizes_are_dropped() -> None:
    fake = recorder(size=2**28)  # each size has two graphs
    made_by = engine(speed(other_sizes_gib=1.2), fake)
    for width in (72, 80, 72, 88):
        demo.make(made_by, demo.task(1, width))
    made_by._execution.spaces.of(demo.latent_size())
    assert [space.batch._size for space in made_by._execution.spaces] == [*map(demo.latent_size, (72, 88, 64))]
    assert fake.synchronized


def test_sizes_in_use_and_configured_sizes_are_not_dropped() -> None:
    made_by = engine(speed(other_sizes_gib=0, sizes=[(96, 64)]), recorder())
    made_by.warm_up()
    made_by.admit(0, made_by.prepare(demo.task(0)))
    made_by.step()
    demo.make_beside(made_by, 1, demo.task(1, 128))
    assert relative_error(demo.run(made_by, 0), alone()[0]) <= ALIKE
    assert made_by._execution.spaces.get(demo.latent_size(96)) is not None


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
    engine(speed(replace(CONFIG, slots=1), time_convolutions=wanted)).warm_up()
    assert torch.backends.cudnn.benchmark is wanted


@pytest.mark.parametrize(
    "error", [RuntimeError("cuDNN: no valid algorithm\nmore"), torch.OutOfMemoryError("no memory")]
)
def test_convolutions_that_cannot_be_timed_run_as_cudnn_chooses(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)

    def timed(function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            if torch.backends.cudnn.benchmark:
                raise error
            return function(*arguments)

        return run

    def change(plain: ModelFunctions) -> ModelFunctions:
        return replace(plain, predict=lambda side: timed(plain.predict(side)), decode=timed(plain.decode))

    made_by = engine(speed(replace(CONFIG, slots=1), time_convolutions=True), recorder(), change)
    made_by.warm_up()
    assert not torch.backends.cudnn.benchmark
    assert made_by.status().fallbacks == (("convolutions: not timed", 1),)
    assert dict(made_by.status().graphs)["steps"] == 1
    assert_alike({0: demo.make(made_by, demo.task(0))}, {0: alone()[0]})


def test_after_a_crash_convolutions_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    config = speed(replace(CONFIG, slots=1), time_convolutions=True)
    made_by = DiffusionEngine(config, assemble(config, demo.parts(), "cpu"), trials=Trials(without={CONVOLUTIONS}))
    made_by.warm_up()
    assert not torch.backends.cudnn.benchmark
    assert made_by.status().fallbacks == (("timed convolutions: off after a crash", 1),)


def with_kernels_of_ours(predict: Callable[[Predict], Predict] = lambda predict: predict) -> Change:
    """As on a GPU; on a CPU they are torch's arithmetic."""
    return lambda plain: replace(plain, predict=lambda side: predict(plain.predict(side)), fused=True)


def tried(change: Change, told: list[tuple[str, ...]], fake: Any = None) -> DiffusionEngine:
    changed: Any = Changed(assemble(CONFIG, demo.parts(), "cpu"), change)
    return DiffusionEngine(replace(CONFIG, slots=2), changed, fake, Trials(told.append))


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", ""])
def test_kernels_of_ours_are_a_trial_at_the_first_step_of_each_shape(recorded: bool) -> None:
    told = list[tuple[str, ...]]()
    made_by = tried(with_kernels_of_ours(), told, recorder() if recorded else None)
    for width in (64, 96, 64, 96):
        demo.make(made_by, demo.task(1, width))
    assert (told.count((GROUP_NORM,)), told[-1], made_by.status().fallbacks) == (2, (), ())


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", ""])
@pytest.mark.parametrize(("error", "blamed"), [(RuntimeError("out of resources"), True), (NO_MEMORY, False)])
def test_a_process_that_ends_by_an_error_of_theirs_blames_them(error: Exception, blamed: bool, recorded: bool) -> None:
    def fail(inputs: StepInputs) -> torch.Tensor:
        raise error

    told = list[tuple[str, ...]]()
    made_by = tried(with_kernels_of_ours(lambda plain: fail), told, recorder() if recorded else None)
    with pytest.raises(type(error)):
        made_by.warm_up()
    assert told[-1] == ((GROUP_NORM,) if blamed else ())


def test_after_a_crash_there_are_none() -> None:
    made_by: Any = build(CONFIG, "cpu", Trials(without={GROUP_NORM}))
    assert not made_by._config.speed.kernels
    assert made_by.status().fallbacks == (("group norm kernels: off after a crash", 1),)


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
    """In place of an SideStream."""

    def __init__(self, order: list[str]) -> None:
        self._order = order

    def fork(self) -> Any:
        self._order.append("fork")
        return nullcontext()

    def join(self) -> None:
        self._order.append("join")


NOTHING = LayerInputs((), ())
NO_CONTROL = Control(torch.zeros(1), torch.zeros(1), torch.ones(1), NOTHING)


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


def test_what_does_not_change_is_read_where_it_is_if_the_slots_are_neighbours() -> None:
    read: list[StepInputs] = []

    def watched(plain: ModelFunctions) -> ModelFunctions:
        def predict(side: Any) -> Any:
            networks = plain.predict(side)

            def watching(inputs: StepInputs) -> Tensor:
                read.append(inputs)
                return networks(inputs)

            return watching

        return replace(plain, predict=predict)

    def in_place(*slots: int) -> bool:
        made_by = engine(FOUR, change=watched)
        for slot in slots:
            made_by.admit(slot, made_by.prepare(demo.task(slot)))
        latents = {slot: demo.run(made_by, slot) for slot in slots}
        assert_alike(latents, {slot: alone()[slot] for slot in slots})
        buffers, (first, *_) = made_by._execution.spaces.of(demo.latent_size()).batch._buffers, slots
        return read[-1].text.is_set_to(buffers.text[first : first + len(slots)])

    assert in_place(2)
    assert in_place(1, 2)
    assert not in_place(2, 1)
    assert not in_place(0, 2)


class Everywhere:
    """Makes functions that are as fast as the plain ones, for sizes and batches in use first."""

    automatic = everywhere = True

    def __init__(self, plain: ModelFunctions) -> None:
        self._plain = plain

    def prepare(self) -> None:
        pass

    def functions(self) -> ModelFunctions:
        return self._plain

    def serving(self) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def compiling(self) -> AbstractContextManager[None]:
        return nullcontext()

    trying = compiling


def test_batches_are_compiled_when_they_are_used_or_when_nothing_runs() -> None:
    made_by = engine(CONFIG, change=lambda plain: replace(plain, faster=Everywhere(plain)))
    made_by.warm_up()

    def asked() -> set[int | None]:
        return {part for _, part in made_by._execution._compiler._asked}

    made_by.admit(0, made_by.prepare(demo.task(0)))
    for _ in range(2):
        made_by.step()
    assert asked() == {1, None}
    made_by.admit(1, made_by.prepare(demo.task(1)))
    for _ in range(2):
        made_by.step()
    assert asked() == {1, None, 2}
    assert_alike({slot: demo.run(made_by, slot) for slot in range(2)}, {slot: alone()[slot] for slot in range(2)})
    assert made_by.wait_until_compiled(600)
    assert asked() == {1, None, 2, 3}
    assert made_by.status().fallbacks == ()
