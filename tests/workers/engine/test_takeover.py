"""Networks that torch compiles in the background, and that take over while pictures are made."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG, relative_error
from tests.workers.engine.recorder import recorder
from tests.workers.engine.three import alone, assert_alike, engine, speed, together
from workers.engine.denoiser import Denoiser, Guided, Layers, Passes
from workers.engine.engine import DiffusionEngine
from workers.engine.model import decode
from workers.engine.runtime import Decode, Ways


def compiled_by(made_by: DiffusionEngine, passes: Passes, decode: Decode) -> None:
    """Have an engine take these for what is compiled."""
    layers = Layers.of(demo.parts().unet, demo.parts().controlnet)
    compiled = Ways(lambda aside: Guided(Denoiser(passes, aside), layers), decode)
    made_by._workshop._ways = replace(made_by._workshop._ways, compiled=lambda: compiled)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own imports
def test_compiled_networks_take_over_between_two_steps_of_a_picture() -> None:
    """Compiled by torch indeed: the small model, for one batch size, and then its VAE."""
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
    assert relative_error(demo.run(made_by, 0), alone()[0]) <= 1e-4
    assert dict(made_by.condition().graphs)["steps compiled"] == 1
    assert made_by.costs() != planned_with
    assert made_by.settle(600)
    compiled = made_by.collect(made_by.finish(0)).astype(int)
    assert abs(compiled - engine(CONFIG).decode(alone()[0])).max() <= 1
    assert dict(made_by.condition().graphs)["VAE compiled"] == 1
    assert made_by.condition().fallbacks == ()


def test_any_number_of_shapes_is_compiled() -> None:
    made_by = engine(speed(replace(CONFIG, slots=3), compile=True))
    trace = partial(torch.compile, fullgraph=True, dynamic=False, backend="eager")
    parts = demo.parts()
    plain = Passes.of(parts.unet, parts.controlnet)
    passes = Passes(trace(plain.control), trace(plain.encode), trace(plain.decode))
    compiled_by(made_by, passes, trace(partial(decode, parts.vae)))
    made_by._workshop.set_up()
    made_by._workshop.start_compiling()
    assert made_by.settle(120)
    assert (
        dict(made_by.condition().graphs)["steps compiled"] == 3
    )  # of three passes each: 9 compilations, of which torch takes 8
    assert made_by.condition().fallbacks == ()


def test_when_compiling_fails_pictures_are_made_as_before() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no C compiler")

    made_by = engine(speed(compile=True))
    compiled_by(made_by, Passes(broken, broken, broken), broken)
    made_by._workshop.set_up()
    made_by._workshop.start_compiling()
    assert made_by.settle(30)
    assert_alike(together(made_by), alone())
    assert made_by.condition().fallbacks == (("compile: failed", 5),)  # four batch sizes, and the VAE
