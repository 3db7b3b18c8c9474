"""Previews of the small model's images: what they look like, and that nothing else comes of them."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from example.demo_model.scenes import flat_scenes
from tests.service.running import file_of
from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG
from tests.workers.engine.test_shortage import Refusing
from tests.workers.engine.three import engine as engine_of
from workers.convert import read_engine
from workers.engine import codec, execution, sampler
from workers.engine.batch import Batch
from workers.engine.codec import Pixels
from workers.engine.contract import EngineOptions, OutOfMemoryError, Task
from workers.engine.engine import DiffusionEngine
from workers.engine.model import decode
from workers.engine.preview import Colours, fit
from workers.engine.runtime import Decode

DEMO = read_engine(Path(__file__).parents[3] / "configs" / "demo.yaml")
STEPS, SIDE = 10, DEMO.size.short_side // demo.SCALE
RESEMBLES_DB, RESEMBLES = 20.0, 0.92  # the second is a correlation; of eight scenes the worst had 20.4 dB and 0.932

ALIKE_DB = 45  # alone against in a batch


@dataclass(frozen=True)
class Made:
    """An image: its previews after each step but the last, its final latents, and itself with a pixel for each."""

    previews: list[Pixels]
    latents: Tensor
    image: Pixels


@pytest.fixture(scope="module")
def engine() -> DiffusionEngine:
    """One of the demo's own configuration, whose images are those that the model was trained for."""
    return demo.engine(DEMO)


@pytest.fixture(scope="module")
def made(engine: DiffusionEngine) -> list[Made]:
    """Two images that run together."""
    slots = range(2)
    for slot, scene in zip(slots, flat_scenes(len(slots), seed=3), strict=True):
        task = Task(file_of(scene.image), scene.caption, slot, EngineOptions(steps=STEPS))
        engine.admit(slot, engine.prepare(task))
    previews: list[list[Pixels]] = [[] for _ in slots]
    for _ in range(STEPS - 1):
        engine.step()
        for slot in slots:
            previews[slot].append(shown(engine, slot))
    engine.step()
    latents = [engine.latents(slot) for slot in slots]
    return [Made(previews[slot], latents[slot], small(engine.collect(engine.finish(slot)))) for slot in slots]


def shown(engine: DiffusionEngine, slot: int) -> Pixels:
    preview = engine.preview(slot)
    assert preview is not None
    return engine.collect(preview)


def small(pixels: Pixels) -> Pixels:
    """A pixel for each of the latents."""
    return codec.resize(pixels, pixels.shape[1] // demo.SCALE, pixels.shape[0] // demo.SCALE)


def correlation(one: Pixels, other: Pixels) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def resembles(preview: Pixels, image: Pixels) -> bool:
    return demo.psnr(preview, image) >= RESEMBLES_DB and correlation(preview, image) >= RESEMBLES


def test_a_preview_resembles_the_image(made: list[Made]) -> None:
    for each in made:
        assert each.previews[-1].shape == (SIDE, SIDE, 3)
        assert resembles(each.previews[-1], each.image)


def test_previews_come_closer_to_the_image(made: list[Made]) -> None:
    for each in made:
        first, *later = (demo.psnr(each.previews[step], each.image) for step in (0, 4, STEPS - 2))
        assert min(later) > first + 3


def test_no_other_order_of_the_channels_resembles_both_as_much(made: list[Made]) -> None:
    colours = fit(partial(decode, demo.parts().vae), demo.CHANNELS, torch.device("cpu"))

    def likeness(order: tuple[int, ...]) -> float:
        return sum(demo.psnr(colours(each.latents[list(order)]).numpy(), each.image) for each in made)

    assert max(permutations(range(demo.CHANNELS)), key=likeness) == tuple(range(demo.CHANNELS))


@pytest.mark.parametrize("channels", [3, 4, 6, 16, 33])
def test_the_map_of_a_linear_decoder_is_found_for_any_number_of_channels(channels: int) -> None:
    weights = torch.randn(channels, 3, generator=torch.Generator().manual_seed(channels)) * 30 / channels

    def linear(latents: Tensor) -> Tensor:
        assert torch.equal(latents.mean((1, 2)), torch.zeros(channels))
        pixels = torch.einsum("chw, cr -> hwr", latents, weights) + 128
        return pixels.repeat_interleave(4, 0).repeat_interleave(4, 1)

    colours = fit(linear, channels, torch.device("cpu"))
    torch.testing.assert_close(colours.weights, weights)
    torch.testing.assert_close(colours.bias, torch.full((3,), 128.0))


def test_the_map_is_the_same_each_time_and_warming_up_fits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = list[Colours]()

    def noted(decode: Decode, channels: int, device: torch.device) -> Colours:
        fitted.append(fit(decode, channels, device))
        return fitted[-1]

    monkeypatch.setattr(execution, "fit", noted)
    engine = demo.engine()
    engine.warm_up()
    (found,) = fitted
    demo.make(engine, demo.task(previews=True))
    assert len(fitted) == 1
    again = fit(partial(decode, demo.parts().vae), demo.CHANNELS, torch.device("cpu"))
    assert torch.equal(found.weights, again.weights)
    assert torch.equal(found.bias, again.bias)


def test_where_no_colours_are_found_images_are_made_without_previews() -> None:
    def broken(latents: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    engine = engine_of(CONFIG, change=partial(replace, decode=broken))
    engine.admit(0, engine.prepare(demo.task(0, previews=True)))
    engine.step()
    assert engine.preview(0) is None
    assert engine.status().fallbacks == (("previews: off", 1),)


# ------------------------------------------------------------------------------------------- as the contract has it


def test_it_is_drawn_as_a_small_jpeg() -> None:
    engine = demo.engine()
    engine.admit(1, engine.prepare(demo.task(width=128)))
    engine.step()
    with Image.open(BytesIO(engine.draw(engine.preview(1)))) as image:
        assert (image.format, image.size) == ("JPEG", (32, 16))


def test_there_is_something_to_show_from_the_first_step_to_the_last_but_one() -> None:
    engine = demo.engine()
    engine.admit(0, engine.prepare(demo.task()))
    assert engine.preview(0) is None
    for _ in range(CONFIG.sampler.steps - 1):
        engine.step()
        assert engine.preview(0) is not None
    engine.step()
    for slot in range(2):
        with pytest.raises(ValueError, match=f"slot {slot} holds no running image"):
            engine.preview(slot)


def test_it_is_the_last_step_that_is_shown() -> None:
    engine = demo.engine()
    engine.admit(0, engine.prepare(demo.task()))
    engine.step()
    engine.step()
    before, predictions = shown(engine, 0), engine._workspaces[0].batch._buffers.history[0]
    predictions[2] += 1  # not made yet
    assert np.array_equal(shown(engine, 0), before)
    predictions[1] += 1
    assert demo.psnr(shown(engine, 0), before) < ALIKE_DB


def test_an_image_that_is_shown_is_the_same() -> None:
    engine = demo.engine()
    expected = demo.make(engine, demo.task())
    engine.admit(0, engine.prepare(demo.task()))
    for _ in range(CONFIG.sampler.steps):
        engine.step()
        with suppress(ValueError):  # after the last
            engine.preview(0)
    assert torch.equal(engine.latents(0), expected)


def test_each_is_shown_by_its_own_number_of_steps() -> None:
    tasks = [demo.task(1, steps=3), demo.task(2, steps=6)]
    together, alone = demo.engine(), [demo.engine() for _ in tasks]
    for slot, task in enumerate(tasks):
        together.admit(slot, together.prepare(task))
        alone[slot].admit(0, alone[slot].prepare(task))
    for engine in (together, *alone) * 2:
        engine.step()
    for slot, engine in enumerate(alone):
        assert demo.psnr(shown(together, slot), shown(engine, 0)) >= ALIKE_DB
    assert demo.psnr(shown(together, 0), shown(together, 1)) < ALIKE_DB


def test_a_sampler_that_does_not_tell_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "estimates", lambda *_: None)
    engine = demo.engine()
    engine.admit(0, engine.prepare(demo.task()))
    engine.step()
    assert engine.preview(0) is None
    demo.run(engine, 0)


def test_without_memory_it_says_so_and_the_image_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = demo.engine()
    engine.admit(0, engine.prepare(demo.task()))
    engine.step()
    monkeypatch.setattr(Batch, "estimate", Refusing(1).instead_of(Batch.estimate))
    with pytest.raises(OutOfMemoryError):
        engine.preview(0)
    assert engine.preview(0) is not None
    demo.run(engine, 0)
