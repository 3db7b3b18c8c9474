"""The full architecture of Stable Diffusion 1.5 in the engine and in diffusers; a minute and 6 GB."""

from dataclasses import replace

import pytest

from tests.workers.engine import demo, full_size
from tests.workers.engine.demo import Reference, relative_error
from workers.engine.config import EngineConfig, Prompting, Sampler, Sizing
from workers.engine.engine import DiffusionEngine
from workers.engine.model import Parts, assemble

CONFIG = EngineConfig(
    slots=1,
    guidance_scale=7.5,
    sampler=Sampler(steps=2),
    prompt=Prompting(suffix=", best quality", negative="monochrome"),
    size=Sizing(short_side=64, long_side=64),
)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def parts() -> Parts:
    return full_size.random_parts()


def test_it_has_the_published_numbers_of_parameters() -> None:
    parts = full_size.architecture()
    assert {
        name: sum(parameter.numel() for parameter in getattr(parts, name).parameters()) for name in full_size.PARAMETERS
    } == full_size.PARAMETERS


def test_its_tokenizer_spells() -> None:
    numbers = full_size.tokenizer()("a cat").ids
    assert numbers[0] == 49406
    assert numbers[-1] == 49407
    assert len(numbers) == len("acat") + 2


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["UniPCMultistepScheduler", "DDIMScheduler"])
def test_it_makes_the_same_latents_as_diffusers(parts: Parts, sampler: str) -> None:
    config = replace(CONFIG, sampler=Sampler(name=sampler, steps=2))
    engine = DiffusionEngine(config, assemble(config, parts, "cpu"))
    expected = Reference(config, parts).latents(engine.prepare(demo.task()))
    assert expected.isfinite().all()
    assert 0.1 < expected.std() < 100
    assert relative_error(demo.make(engine, demo.task()), expected) <= TOLERANCE
