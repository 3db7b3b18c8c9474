"""Networks that torch compiles in the background, and that take over while images are made."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, repeat
from threading import Event, Lock
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.workers.engine import demo, dying
from tests.workers.engine.demo import CONFIG, relative_error
from tests.workers.engine.recorder import recorder
from tests.workers.engine.three import FOUR, Change, Changed, alone, assert_alike, engine, speed, together
from workers.engine import model
from workers.engine.attention import Kernel
from workers.engine.compiling import TorchCompile, Upgradable, WrongResultError
from workers.engine.denoiser import Denoiser, Guided, Layers, Passes
from workers.engine.engine import DiffusionEngine
from workers.engine.execution import ExecutionManager
from workers.engine.graphs import Fallbacks, GraphContext, Graphs
from workers.engine.runtime import Decode, ModelFunctions
from workers.engine.trials import COMPILING, GRAPHS, Trials


def traced(backend: Any = "eager") -> tuple[Passes, Decode]:
    """The demo model's networks, as torch.compile traces them."""
    trace = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
    parts = demo.parts()
    plain = Passes.of(parts.unet, parts.controlnet)
    passes = Passes(trace(plain.control), trace(plain.encode), trace(plain.decode))
    return passes, trace(partial(model.decode, parts.vae))


def compiled_by(passes: Passes, decode: Decode) -> Change:
    """Have an engine take these for what is compiled."""
    layers = Layers.of(demo.parts().unet, demo.parts().controlnet)
    compiled = ModelFunctions(lambda side: Guided(Denoiser(passes, side), layers), decode)
    return lambda plain: replace(plain, faster=TorchCompile(lambda: compiled, automatic=False))


def wait_for_a_target(made_by: DiffusionEngine) -> None:
    """Wait until something is compiled that no step has taken over yet."""
    compiler = made_by._execution._compiler
    while not compiler._compiled.qsize():  # the test's own time-out bounds this
        assert not compiler.idle(), made_by.status().fallbacks
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own imports
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_networks_take_over_between_two_steps_of_an_image(backend: str) -> None:
    """The small model, for one batch size, and then its VAE: traced alone, or compiled by torch indeed."""
    gate = Event()

    def gated(plain: ModelFunctions) -> ModelFunctions:
        changed = compiled_by(*traced())(plain) if backend == "eager" else plain
        assert changed.faster is not None
        compiled = changed.faster.functions
        return replace(changed, faster=TorchCompile(lambda: compiled() if gate.wait(600) else plain, automatic=False))

    made_by = engine(speed(replace(CONFIG, slots=1), compile=True), recorder(), gated)
    planned_with = made_by.warm_up()
    made_by.admit(0, made_by.prepare(demo.task(0)))
    for _ in range(2):
        made_by.step()
    gate.set()
    wait_for_a_target(made_by)
    assert relative_error(demo.run(made_by, 0), alone()[0]) <= 1e-4
    assert dict(made_by.status().graphs)["steps compiled"] == 1
    assert made_by.costs() != planned_with
    assert made_by.wait_until_compiled(600)
    compiled = made_by.collect(made_by.finish(0)).astype(int)
    assert abs(compiled - engine(CONFIG).decode(alone()[0])).max() <= 1
    assert dict(made_by.status().graphs)["VAE compiled"] == 1
    assert made_by.status().fallbacks == ()


@pytest.mark.slow
def test_any_number_of_shapes_is_compiled() -> None:
    made_by = engine(speed(replace(CONFIG, slots=3), compile=True), change=compiled_by(*traced()))
    made_by.warm_up()
    assert made_by.wait_until_compiled(600)
    assert (
        dict(made_by.status().graphs)["steps compiled"] == 3
    )  # of three passes each: 9 compilations, of which torch takes 8
    assert made_by.status().fallbacks == ()


def test_when_compiling_fails_images_are_made_as_before() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no C compiler")

    made_by = engine(speed(compile=True), change=compiled_by(Passes(broken, broken, broken), broken))
    made_by.warm_up()
    assert made_by.wait_until_compiled(600)
    assert_alike(together(made_by), alone())
    assert made_by.status().fallbacks == (("compile: failed", 5),)  # four batch sizes, and the VAE


NOT_TAKEN, FAILED, GIVEN_UP = "compile: not taken over", "compile: failed", "compile: given up"
SURVIVED = {
    "raises where it serves": NOT_TAKEN,
    "asserts where it serves": NOT_TAKEN,
    "looks up what is missing where it serves": NOT_TAKEN,
    "has no memory where it serves": NOT_TAKEN,
    "asserts while compiling": FAILED,
    "has no memory while compiling": FAILED,
    "leaves the compiler's thread": FAILED,
    "computes nothing": NOT_TAKEN,
    "computes infinity": NOT_TAKEN,
    "mixes images up": NOT_TAKEN,
    "computes another shape": NOT_TAKEN,
    "is a little wrong": NOT_TAKEN,
    "asserts at the first step of an image": GIVEN_UP,
    "asserts at a later step of an image": GIVEN_UP,
}


@pytest.mark.parametrize("recorded", [False, True], ids=["", "recorded"])
@pytest.mark.parametrize("fault", SURVIVED)
def test_a_fault_of_compiled_networks_costs_them_alone(fault: str, recorded: bool) -> None:
    fake = recorder() if recorded else None

    def faulty(plain: ModelFunctions) -> ModelFunctions:
        return replace(plain, faster=TorchCompile(lambda: dying.with_fault(dying.fault(fault), plain), automatic=False))

    made_by = engine(speed(replace(CONFIG, slots=1), compile=True), fake, faulty)
    made_by.warm_up()
    graphs = dict(made_by.status().graphs)
    assert made_by.wait_until_compiled(600)
    for _ in range(2):
        assert_alike({0: demo.make(made_by, demo.task(0))}, {0: alone()[0]})
    condition = made_by.status()
    reasons = {SURVIVED[fault]: 1} | ({"graph: not replayed": 1} if recorded and SURVIVED[fault] is GIVEN_UP else {})
    assert dict(condition.fallbacks) == reasons
    assert dict(condition.graphs) == graphs | {"VAE compiled": 1}


def test_compiled_networks_that_fail_fall_back_to_plain_graphs_and_these_to_none() -> None:
    fake = recorder()

    def faulty(plain: ModelFunctions) -> ModelFunctions:
        fault = dying.fault("asserts at a later step of an image")
        return replace(plain, faster=TorchCompile(lambda: dying.with_fault(fault, plain), automatic=False))

    made_by = engine(speed(replace(CONFIG, slots=1), compile=True), fake, faulty)
    made_by.warm_up()
    assert made_by.wait_until_compiled(600)
    fake.failures.append(RuntimeError("operation not permitted when stream is capturing"))
    assert_alike({0: demo.make(made_by, demo.task(0))}, {0: alone()[0]})
    graphs = dict(made_by.status().graphs)
    assert [graphs[kind] for kind in ("steps", "steps compiled", "VAE", "VAE compiled")] == [0, 0, 1, 1]
    assert made_by.status().fallbacks == ((GIVEN_UP, 1), ("graph: not recordable", 1), ("graph: not replayed", 1))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_device_that_fails_at_a_replay_is_blamed_on_what_is_replayed(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First on compiled networks, and only in another process on graphs."""

    def working(plain: ModelFunctions) -> ModelFunctions:
        fault = dying.fault("works")
        return replace(plain, faster=TorchCompile(lambda: dying.with_fault(fault, plain), automatic=False))

    def lost() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("workers.engine.compiling.perf_counter", count().__next__)
    told, fake = list[tuple[str, ...]](), recorder()
    trials = Trials(told.append)
    changed: Any = Changed(model.assemble(CONFIG, demo.parts(), "cpu"), working)
    made_by = DiffusionEngine(speed(replace(CONFIG, slots=1), compile=compiled), changed, fake, trials)
    made_by.warm_up()
    assert made_by.wait_until_compiled(600)
    demo.make(made_by, demo.task(0))
    made_by.admit(0, made_by.prepare(demo.task(0)))
    told.clear()
    fake.broken, trials.synchronize = True, lost
    with pytest.raises(torch.AcceleratorError):
        made_by.step()
    assert told == [(COMPILING if compiled else GRAPHS,)]


def test_of_the_images_of_a_batch_each_must_agree() -> None:
    """One of four that is off by 5% is off by 2.5% of all."""
    made_by = engine(FOUR)
    execution = made_by._execution
    batch, times = execution.spaces.of(demo.latent_size()).batch, execution.schedule(execution._model.plans.usual).times
    images = torch.ones(4, 1, 1, 1)
    batch.upgrade(4, execution._predict, times)
    images[2] = 1.05
    with pytest.raises(WrongResultError):
        batch.upgrade(4, lambda inputs: images * execution._predict(inputs), times)


def test_compiled_networks_keep_the_attention_kernels_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for sizes of batches that were not recorded, nor measured at the start; and another size changes nothing."""
    candidates = tuple(Kernel(name, scaled_dot_product_attention) for name in ("one", "two"))
    monkeypatch.setattr(ExecutionManager, "_kernels", lambda self: candidates)
    monkeypatch.setattr("workers.engine.attention.device_seconds", lambda work: float(len(work())))
    monkeypatch.setattr("workers.engine.measure._STEPS_S", 0.0)
    monkeypatch.setattr("workers.engine.compiling.perf_counter", count().__next__)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    made_by = engine(speed(replace(CONFIG, slots=2), compile=True))
    made_by.warm_up()
    assert made_by.wait_until_compiled(600)
    assert made_by.status().fallbacks == ()
    assert dict(made_by.status().graphs)["steps compiled"] == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        demo.make(made_by, demo.task(1, 96))
        assert_alike({0: demo.make(made_by, demo.task(0))}, {0: alone()[0]})
    assert made_by.status().fallbacks == ()


def test_compiled_networks_serve_while_others_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is recorded. That something is traced, torch knows only for all threads together."""
    entered, gate, runs = Event(), Event(), count(1)

    def waiting(module: Any, examples: Any) -> Any:
        def run(*arguments: Any) -> Any:
            if threading.current_thread() is not threading.main_thread() and next(runs) > 4:  # three passes and the VAE
                entered.set()
                assert gate.wait(600)
            return module.forward(*arguments)

        return run

    made_by = engine(speed(replace(CONFIG, slots=2), compile=True), change=compiled_by(*traced(waiting)))
    made_by.warm_up()
    while not entered.wait(0.01):  # the test's own time-out bounds this
        made_by.step()
    assert dict(made_by.status().graphs)["steps compiled"] == 1
    with monkeypatch.context() as patch:
        patch.setattr("torch.fx._symbolic_trace._is_fx_tracing_flag", True)
        assert_alike({0: demo.make(made_by, demo.task(0))}, {0: alone()[0]})
    gate.set()
    assert made_by.wait_until_compiled(600)
    assert dict(made_by.status().graphs)["steps compiled"] == 2
    assert made_by.status().fallbacks == ()


def test_a_compiled_vae_that_is_wrong_is_not_taken_over_and_one_that_fails_is_given_up() -> None:
    for faulty, reason in ((_inverted, NOT_TAKEN), (_tired(), GIVEN_UP)):
        decode = partial(faulty, partial(model.decode, demo.parts().vae))
        change = partial(_with_decoder, decode)
        made_by = engine(speed(replace(CONFIG, slots=1), compile=True), change=change)
        made_by.warm_up()
        assert made_by.wait_until_compiled(600)
        latents = demo.make(made_by, demo.task(0))
        assert (made_by.decode(latents) == model.decode(demo.parts().vae, latents).numpy()).all()
        assert made_by.status().fallbacks == ((reason, 1),)
        assert dict(made_by.status().graphs)["VAE compiled"] == 0


def _with_decoder(decode: Decode, plain: ModelFunctions) -> ModelFunctions:
    return replace(plain, faster=TorchCompile(lambda: ModelFunctions(plain.predict, decode), automatic=False))


def _inverted(decode: Decode, latents: torch.Tensor) -> torch.Tensor:
    return 255 - decode(latents)


def _tired() -> Callable[[Decode, torch.Tensor], torch.Tensor]:
    """Fails at its third call, after compilation and proof."""
    calls = count(1)

    def run(decode: Decode, latents: torch.Tensor) -> torch.Tensor:
        assert next(calls) < 3
        return decode(latents)

    return run


class Clock:
    """The clock that compares functions; it goes on only while these run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[float] = []

    def taking(self, seconds: float, functions: ModelFunctions) -> ModelFunctions:
        """The same functions, each of whose calls takes so long."""

        def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                self.now += seconds
                self.calls.append(seconds)
                return function(*arguments)

            return run

        return replace(functions, predict=lambda side: slowed(functions.predict(side)), decode=slowed(functions.decode))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("workers.engine.compiling.perf_counter", lambda: clock.now)
    return clock


@pytest.mark.parametrize("recorded", [False, True], ids=["", "recorded"])
@pytest.mark.parametrize(
    ("plain", "faster", "taken"),
    [(0.024, 0.015, True), (0.025, 0.051, False), (0.025, 0.026, True), (8.82, 5.16, True), (3.0, 5.0, False)],
)
def test_compiled_networks_take_over_unless_they_are_slower(
    plain: float, faster: float, taken: bool, recorded: bool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def change(functions: ModelFunctions) -> ModelFunctions:
        compiled = clock.taking(faster, functions)
        return replace(clock.taking(plain, functions), faster=TorchCompile(lambda: compiled, automatic=False))

    made_by = engine(speed(replace(CONFIG, slots=1), compile=True), recorder() if recorded else None, change)
    with caplog.at_level("INFO"):
        made_by.warm_up()
        assert made_by.wait_until_compiled(600)
    kinds = {kind: n for kind, n in made_by.status().graphs if kind.endswith("compiled") and n}
    expected = ("steps compiled", "VAE compiled") if taken else ("steps kept uncompiled", "VAE kept uncompiled")
    assert kinds == dict.fromkeys(expected, 1)
    assert made_by.status().fallbacks == ()
    outcome = "have taken over" if taken else "are slower and not used"
    for part in ("batch of 1", "VAE"):
        figures = f"{1000 * faster:.1f} ms; uncompiled {1000 * plain:.1f} ms"
        assert f"latents of 16x16, {part}: compiled networks {outcome} ({figures})" in caplog.messages
    clock.calls.clear()
    assert_alike({0: demo.make(made_by, demo.task(0))}, {0: alone()[0]})
    assert set(clock.calls) == {faster if taken else plain}
    assert made_by.wait_until_compiled(600)  # the decision stands
    assert dict(made_by.status().graphs)["steps kept uncompiled"] == (not taken)


@pytest.mark.parametrize(
    ("faster", "taken"),
    [
        ([0.02, 0.01], True),
        ([0.02, 0.02, 0.02, 0.02, 0.01], True),
        ([0.02] * 6, False),
        ([0.5, 0.01], True),
        ([5.0, 5.0], False),
        ([5.0, 2.9], True),
        ([2.9], True),
    ],
)
def test_functions_are_compared_until_one_turn_is_good_or_all_are_bad(
    faster: list[float], taken: bool, clock: Clock
) -> None:
    """One call of each is for the results, and counts where it takes seconds."""
    plain = 3.0 if max(faster) > 1 else 0.01

    def taking(seconds: Iterator[float]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            clock.calls.append(next(seconds))
            clock.now += clock.calls[-1]
            return torch.ones(1)

        return run

    graphs = Graphs(GraphContext(None, Fallbacks(), lambda: False, Lock()))
    function = Upgradable(graphs, "step", taking(repeat(plain)), lambda each: each())
    seconds = function.offer(taking(iter(faster)), lambda each: each(), torch.float32)
    assert seconds == pytest.approx((plain, faster[-1]))
    assert len(clock.calls) == 2 * len(faster)
    assert (function.upgraded, function.kept) == (taken, not taken)


def test_networks_that_would_be_compiled_again_where_they_serve_are_not_taken_over() -> None:
    """That takes minutes, in which nobody's step would be taken."""
    change = compiled_by(traced()[0], partial(model.decode, demo.parts().vae))
    made_by = engine(speed(replace(CONFIG, slots=1), compile=True), change=change)
    made_by.warm_up()
    wait_for_a_target(made_by)
    torch.compiler.reset()  # all that was compiled is forgotten
    assert made_by.wait_until_compiled(600)
    assert_alike({0: demo.make(made_by, demo.task(0))}, {0: alone()[0]})
    assert dict(made_by.status().graphs)["steps compiled"] == 0
    assert (NOT_TAKEN, 1) in made_by.status().fallbacks
