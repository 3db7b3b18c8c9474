"""On CUDA: half precision against diffusers in half precision, and against float32 on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from threading import Lock

import numpy as np
import pytest
import torch

from tests.workers.engine import demo, dying
from tests.workers.engine.demo import CONFIG, Reference
from workers.engine import kernel_probe
from workers.engine.attention import flaw
from workers.engine.codec import Pixels
from workers.engine.compiling import TorchCompile
from workers.engine.config import EngineConfig, Sampler, Sizing, Speed
from workers.engine.engine import DiffusionEngine
from workers.engine.graphs import CudaRecorder, Fallbacks, GraphContext, Graphs, Pool
from workers.engine.kernels import group_norm
from workers.engine.model import assemble, read
from workers.nvml import Nvml, driver_fault

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("compilers_caches"),
]

DEVICE = "cuda:0"
USUAL = replace(CONFIG, sampler=Sampler(steps=20), size=Sizing(short_side=256, long_side=256))


def made(engine: DiffusionEngine, seed: int) -> Pixels:
    engine.admit(0, engine.prepare(demo.task(seed)))
    demo.run(engine, 0)
    return engine.collect(engine.finish(0))


def on_cuda(config: EngineConfig, dtype: torch.dtype) -> tuple[DiffusionEngine, Reference]:
    parts = read(config, dtype)
    return DiffusionEngine(config, assemble(config, parts, DEVICE)), Reference(config, parts)


def fallbacks(engine: DiffusionEngine) -> list[tuple[str, int]]:
    """All but that of an xformers that was built for another torch or GPU."""
    return [each for each in engine.status().fallbacks if each[0] != "attention: xformers fails"]


def test_half_precision_makes_the_same_image_as_diffusers() -> None:
    engine, reference = on_cuda(USUAL, torch.float16)
    assert demo.psnr(made(engine, 3), reference.pixels(engine.prepare(demo.task(3)))) >= 40


def test_half_precision_makes_the_same_image_as_float32_on_the_cpu() -> None:
    engine, _ = on_cuda(USUAL, torch.float16)
    assert demo.psnr(made(engine, 3), made(demo.engine(USUAL), 3)) >= 40


def test_our_kernels_make_the_same_image_as_torchs() -> None:
    assert group_norm.flaw(torch.device(DEVICE)) == ""
    ours, _ = on_cuda(USUAL, torch.float16)
    torchs, _ = on_cuda(replace(USUAL, speed=replace(USUAL.speed, kernels=False)), torch.float16)
    assert demo.psnr(made(ours, 3), made(torchs, 3)) >= 40


def test_float32_makes_the_same_latents_as_the_cpu() -> None:
    config = replace(USUAL, dtype="float32")
    engine, _ = on_cuda(config, torch.float32)
    on_cpu = demo.make(demo.engine(config), demo.task(3))
    assert demo.relative_error(demo.make(engine, demo.task(3)).cpu(), on_cpu) <= 1e-2  # convolutions may use TF32


def test_an_image_does_not_depend_on_its_company() -> None:
    engine, _ = on_cuda(USUAL, torch.float16)
    expected = [made(engine, seed) for seed in range(3)]
    for slot in range(3):
        engine.admit(slot, engine.prepare(demo.task(slot)))
        engine.step()
    demo.run(engine, 0)
    assert all(demo.psnr(engine.collect(engine.finish(slot)), expected[slot]) >= 50 for slot in range(3))


def test_the_same_request_is_the_same_image() -> None:
    engine, _ = on_cuda(USUAL, torch.float16)
    assert np.array_equal(made(engine, 3), made(engine, 3))


def test_replayed_graphs_make_the_same_image_as_launched_kernels() -> None:
    engine, _ = on_cuda(USUAL, torch.float16)
    launched, _ = on_cuda(replace(USUAL, speed=Speed(graphs=False, beside=False)), torch.float16)
    assert demo.psnr(made(engine, 3), made(launched, 3)) >= 50
    graphs = dict(engine.status().graphs)
    assert min(graphs["steps"], graphs["VAE"], graphs["text"]) >= 1
    assert fallbacks(engine) == []
    assert dict(launched.status().graphs)["steps"] == 0


def test_a_step_does_not_wait_for_the_device() -> None:
    engine, _ = on_cuda(USUAL, torch.float16)
    made(engine, 3)
    first, second = engine.prepare(demo.task(3)), engine.prepare(demo.task(4, steps=7, temperature=0.5))
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.admit(0, first)
        engine.step()
        engine.preview(0)
        engine.admit(1, second)
        engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    demo.run(engine, 0)


def test_a_preview_is_what_it_is_on_the_cpu() -> None:
    shown = []
    for engine in (on_cuda(USUAL, torch.float16)[0], demo.engine(USUAL)):
        engine.admit(0, engine.prepare(demo.task(3)))
        for _ in range(5):
            engine.step()
        preview = engine.preview(0)
        engine.step()  # before anybody looks at it
        shown.append(engine.collect(preview))
    assert demo.psnr(*shown) >= 40


def test_an_image_is_decoded_beside_the_steps_of_others() -> None:
    engine, _ = on_cuda(USUAL, torch.float16)
    expected = [made(engine, seed) for seed in range(2)]
    engine.admit(0, engine.prepare(demo.task(0)))
    engine.step()
    engine.admit(1, engine.prepare(demo.task(1)))
    while not any(stepped.done == stepped.total for stepped in engine.step()):
        pass
    decoding = engine.finish(0)
    demo.run(engine, 1)  # without waiting
    assert demo.psnr(engine.collect(decoding), expected[0]) >= 50
    assert demo.psnr(engine.collect(engine.finish(1)), expected[1]) >= 50


def test_compiled_networks_make_the_same_image() -> None:
    engine, _ = on_cuda(replace(USUAL, slots=1), torch.float16)
    before = made(engine, 3)
    engine.warm_up()
    assert engine.wait_until_compiled(1200)
    graphs = dict(engine.status().graphs)
    assert (graphs["steps compiled"], graphs["VAE compiled"]) == (1, 1)
    assert fallbacks(engine) == []
    assert demo.psnr(made(engine, 3), before) >= 40


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with float8"
)
def test_layers_in_float8_change_an_image_little_compiled_or_not() -> None:
    plain, _ = on_cuda(USUAL, torch.float16)
    engine, _ = on_cuda(replace(USUAL, slots=1, quantisation="fp8"), torch.float16)
    before = made(engine, 3)
    assert 30 <= demo.psnr(before, made(plain, 3)) < 60
    assert np.array_equal(made(engine, 3), before)
    engine.warm_up()
    assert engine.wait_until_compiled(1200)
    assert dict(engine.status().graphs)["steps compiled"] == 1
    assert fallbacks(engine) == []
    assert demo.psnr(made(engine, 3), made(plain, 3)) >= 30


def test_warming_up_measures_the_device() -> None:
    # Without compiling, which would go on beside the next tests.
    engine, _ = on_cuda(replace(USUAL, speed=Speed(compile=False)), torch.float16)
    costs = engine.warm_up()
    assert all(0 < seconds < 1 for seconds in costs.step_seconds)


def test_a_recording_that_breaks_off_leaves_the_graphs_before_and_after_it_as_they_are() -> None:
    graphs = Graphs(GraphContext(CudaRecorder(torch.device(DEVICE)), Fallbacks(), lambda: False, Lock()), Pool())
    x, before_stream = torch.zeros(1000, device=DEVICE), torch.cuda.current_stream()

    def add(number: int) -> Callable[[], object]:
        return lambda: x.add_(torch.full_like(x, number))

    def asks_the_host() -> None:
        x.add_(x.sum().item())

    before = graphs.of("before", add(1))
    graphs.of("asks the host", asks_the_host)
    after = graphs.of("after", add(2))
    assert torch.cuda.current_stream() == before_stream
    assert (len(graphs), graphs.fallbacks.counts()) == (2, (("graph: not recordable", 1),))
    x.zero_()
    for work in (before, after, before):
        work()
    assert x.unique().tolist() == [4.0]
    torch.rand(1000, device=DEVICE)  # the generator is as it was


def test_compiled_networks_that_raise_where_they_serve_leave_the_graphs_as_they_are() -> None:
    engine, _ = on_cuda(replace(USUAL, slots=1), torch.float16)
    plain = engine._execution._functions
    faulty = dying.with_fault(dying.fault("asserts where it serves"), plain)
    engine._execution._faster = TorchCompile(lambda: faulty, automatic=False)
    engine.warm_up()
    graphs, before = dict(engine.status().graphs), made(engine, 3)
    assert engine.wait_until_compiled(600)
    assert np.array_equal(made(engine, 3), before)
    assert dict(engine.status().graphs) == graphs | {"VAE compiled": 1}
    assert fallbacks(engine) == [("compile: not taken over", 1)]


@pytest.mark.parametrize(("slots", "graphs"), [(1, True), (2, False)])
def test_steps_that_are_taken_while_networks_are_compiled_make_the_same_image(slots: int, graphs: bool) -> None:
    engine, _ = on_cuda(replace(USUAL, slots=slots, speed=Speed(graphs=graphs)), torch.float16)
    before = made(engine, 3)
    engine.warm_up()
    while not engine.wait_until_compiled(0):
        assert demo.psnr(made(engine, 3), before) >= 40
    assert fallbacks(engine) == []


@pytest.mark.skipif(find_spec("xformers") is None, reason="needs xformers")
def test_xformers_does_apart_what_it_does_here() -> None:
    assert kernel_probe.flaw_of("xformers", torch.device(DEVICE)) == flaw("xformers", torch.device(DEVICE))


def test_the_driver_of_a_gpu_that_computes_is_not_too_old() -> None:
    assert torch.ones(2, device=DEVICE).sum().item() == 2
    nvml = Nvml.open()
    assert nvml is not None
    assert nvml.cuda() is not None
    assert driver_fault(nvml) is None
    nvml.close()
