"""An image that is an edge map already: the ControlNet gets it as it is."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.workers.engine import demo
from workers.engine import codec
from workers.engine.codec import Pixels
from workers.engine.config import Sizing
from workers.engine.contract import EngineOptions, Task
from workers.engine.engine import DiffusionEngine


@pytest.fixture(scope="module")
def engine() -> DiffusionEngine:
    return demo.engine()


def edge_map(width: int = 64, height: int = 64, *, ground: int = 0, line: int = 255) -> Image.Image:
    image = Image.new("L", (width, height), ground)
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), outline=line, width=3)
    return image


def file(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    held = BytesIO()
    image.save(held, kind, **how)
    return held.getvalue()


def prepared_edges(engine: DiffusionEngine, image: bytes) -> Pixels:
    return engine.prepare(Task(image, "a circle", 1, EngineOptions(control_image="edges"))).edges


def test_every_grey_level_reaches_the_model_as_it_is(engine: DiffusionEngine) -> None:
    levels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 256
    image = Image.fromarray(levels.astype(np.uint8))
    assert np.array_equal(prepared_edges(engine, file(image)), levels)
    assert np.array_equal(prepared_edges(engine, file(image.convert("RGB"))), levels)
    assert np.array_equal(prepared_edges(engine, file(image.convert("RGB"), "WEBP", lossless=True)), levels)


def test_a_coloured_map_counts_by_its_brightness(engine: DiffusionEngine) -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    assert prepared_edges(engine, file(image)).mean() == pytest.approx(0.299 * 255, abs=1)


def test_it_is_sized_as_a_photo_is(engine: DiffusionEngine) -> None:
    image = file(edge_map(200, 120))
    edges = prepared_edges(engine, image)
    assert edges.shape == engine.prepare(Task(image, "", 1)).edges.shape == (64, 104)
    assert np.array_equal(edges, codec.grey(codec.decode_to(image, 104, 64)))
    assert len(np.unique(edges)) > 2  # scaling leaves grey levels, which no threshold takes away


def test_the_configured_size_holds_for_it_too() -> None:
    sizing = Sizing(short_side=128, long_side=128, multiple=64)
    config = replace(demo.CONFIG, size=sizing)
    assert prepared_edges(demo.engine(config), file(edge_map())).shape == (128, 128)


def test_one_bit_palette_and_16_bit_maps_are_read(engine: DiffusionEngine) -> None:
    expected = np.asarray(edge_map())
    for mode in ("1", "P", "I;16"):
        image = edge_map().convert(mode) if mode != "I;16" else Image.fromarray(expected.astype(np.uint16) * 257)
        assert np.array_equal(prepared_edges(engine, file(image)), expected), mode


@pytest.mark.parametrize(
    ("image", "warning"),
    [
        (edge_map(ground=255, line=0), "Most of the edge map is white"),
        (Image.new("LA", (64, 64), (0, 0)), "Most of the edge map is white"),
        (Image.new("L", (64, 64)), "The edge map is black everywhere"),
    ],
    ids=["dark lines on white", "transparent", "black"],
)
def test_a_map_that_cannot_be_meant_is_used_and_told_of(
    engine: DiffusionEngine, image: Image.Image, warning: str
) -> None:
    (said,) = engine.prepare(Task(file(image), "a circle", 1, EngineOptions(control_image="edges"))).warnings
    assert said.startswith(warning)


def test_a_good_map_and_a_good_photo_say_nothing(engine: DiffusionEngine) -> None:
    assert engine.prepare(Task(file(edge_map()), "a circle", 1, EngineOptions(control_image="edges"))).warnings == ()
    assert engine.prepare(demo.task()).warnings == ()


def test_a_photo_without_edges_is_told_of(engine: DiffusionEngine) -> None:
    image = file(Image.new("RGB", (64, 64), "gray"))
    assert engine.prepare(Task(image, "a circle", 1)).warnings == (
        "No edges were found in the image, so only the prompt was used. Lower the thresholds to find more.",
    )


def test_a_negative_prompt_that_nothing_follows_is_told_of(engine: DiffusionEngine) -> None:
    (said,) = engine.prepare(demo.task(negative="a blue square", guidance_scale=1.0)).warnings
    assert said == "The negative prompt has no effect, as guidance_scale is 1 or less."
    unguided = demo.engine(replace(demo.CONFIG, guidance_scale=1.0))
    assert unguided.prepare(demo.task(negative="a blue square")).warnings == (said,)
    assert unguided.prepare(demo.task(negative="")).warnings == unguided.prepare(demo.task()).warnings == ()
