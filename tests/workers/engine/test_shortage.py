"""An engine that lacks memory: it makes room, does less at a time, or says so and works on."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.engine import demo
from tests.workers.engine.recorder import recorder
from tests.workers.engine.three import FOUR, Change, alone, assert_alike, engine, together
from workers.engine.batch import Batch
from workers.engine.contract import OutOfMemoryError
from workers.engine.denoiser import Denoiser, Guided, Layers, Passes
from workers.engine.streams import Decoder

NO_MEMORY = torch.OutOfMemoryError("out of memory")


def test_a_graph_without_memory_costs_other_sizes_theirs_first() -> None:
    fake = recorder()
    made_by = engine(FOUR, fake)
    demo.make(made_by, demo.task(1, 96))
    fake.failures.append(NO_MEMORY)
    demo.make(made_by, demo.task(1, 128))
    assert dict(made_by.status().graphs)["steps"] == 1  # of the last size alone
    assert made_by.status().fallbacks == ()


def test_a_step_without_memory_is_taken_in_smaller_parts() -> None:
    limit = _Limited(rows=2)
    made_by = engine(FOUR, change=limit.change)
    assert_alike(together(made_by), alone())
    assert limit.refused == 1  # once for good
    assert made_by.status().fallbacks == (("step: out of memory", 1),)


def test_without_memory_for_one_image_the_error_is_raised() -> None:
    made_by = engine(FOUR, change=_Limited(rows=0).change)
    made_by.admit(0, made_by.prepare(demo.task(0)))
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        made_by.step()
    made_by.discard(0)
    assert made_by.step() == []


def test_an_image_is_decoded_in_the_memory_of_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by, fake = engine(FOUR, recorder()), Refusing(1)
    demo.make(made_by, demo.task(1, 96))
    made_by.admit(0, made_by.prepare(demo.task(0)))
    demo.run(made_by, 0)
    expected = made_by.decode(made_by.latents(0))
    monkeypatch.setattr(Decoder, "start", fake.instead_of(Decoder.start))
    assert (made_by.collect(made_by.finish(0)) == expected).all()
    assert dict(made_by.status().graphs)["steps"] == 0  # neither size runs, and so both gave theirs


def test_an_image_that_cannot_be_decoded_stays_until_it_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by, fake = engine(FOUR), Refusing(2)
    made_by.admit(0, made_by.prepare(demo.task(0)))
    demo.run(made_by, 0)
    monkeypatch.setattr(Decoder, "start", fake.instead_of(Decoder.start))
    with pytest.raises(OutOfMemoryError):
        made_by.finish(0)
    made_by.discard(0)
    made_by.admit(0, made_by.prepare(demo.task(0)))


@pytest.mark.parametrize("where", ["load", "admit"])
@pytest.mark.parametrize("begun", [False, True])
def test_an_image_that_cannot_be_admitted_leaves_its_slot_free(
    where: str, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = engine(FOUR)
    prepared = made_by.prepare(demo.task(0))
    with monkeypatch.context() as patched:
        patched.setattr(Batch, where, Refusing(4 if begun and where == "load" else 2).instead_of(getattr(Batch, where)))
        if begun:
            with pytest.raises(OutOfMemoryError) if where == "load" else nullcontext():
                made_by.begin(0, prepared)
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
    """Makes an engine's networks run out of memory with more than so many images."""

    def __init__(self, rows: int) -> None:
        self.refused = 0
        self._rows = rows
        parts = demo.parts()
        plain, layers = Passes.of(parts.unet, parts.controlnet), Layers.of(parts.unet, parts.controlnet)
        self._encode = plain.encode
        limited = replace(plain, encode=self)
        self.change: Change = partial(replace, predict=lambda side: Guided(Denoiser(limited, side), layers))

    def __call__(self, latents: Tensor, *rest: Any) -> Any:
        if len(latents) > self._rows:
            self.refused += 1
            raise NO_MEMORY
        return self._encode(latents, *rest)
