"""The page with the small model: an image is seen forming, and the page says how little this model knows."""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.page.conftest import Visitor
from tests.page.test_for_everybody import faults
from tests.page.test_making import WATCH
from tests.page.visiting import downloaded
from tests.service.running import Pixels, Service, pixels_of, png


@pytest.fixture(scope="module")
def demo() -> Iterator[Service]:
    with Service("demo", ENGINE__OUTPUT__FORMAT="png") as service:
        yield service.wait_until_ready()


def test_a_drawing_becomes_an_image_in_the_prompts_colours_and_is_seen_forming(visitor: Visitor, demo: Service) -> None:
    visit = visitor(demo)
    visit.page.get_by_role("button", name="Draw", exact=True).click()
    box = visit.page.locator("#canvas").bounding_box()
    assert box is not None
    visit.slide("Width", 96)
    x, y, side = box["x"] + 0.35 * box["width"], box["y"] + 0.35 * box["height"], 0.3 * box["width"]
    visit.page.mouse.move(x, y)
    visit.page.mouse.down()
    for n in range(1, 25):  # to and fro, until it is a square
        visit.page.mouse.move(x + side * (n % 2), y + side * n / 24, steps=3)
    visit.page.mouse.up()
    visit.page.get_by_role("button", name="Use it").click()
    expect(visit.page.locator("#edges-image")).to_be_visible()
    visit.page.get_by_text("More", exact=True).click()
    visit.slide("Steps", 40)
    card = visit.generate("a red square on a blue background", seed=3)
    card.evaluate(WATCH)
    expect(card.locator(".compare")).to_be_visible()
    seen = visit.page.evaluate("seen")
    assert len(set(seen["previews"])) >= 3
    assert seen["shares"] == sorted(seen["shares"])
    assert len(seen["shares"]) >= 10
    file = downloaded(visit, card)
    with Image.open(BytesIO(file)) as image:  # what made it stands in it, as the page asks for that
        assert image.info["parameters"].startswith("a red square on a blue background")
        assert "Steps: 40" in image.info["parameters"]
    pixels = pixels_of(file)
    assert pixels.shape == (256, 256, 3)
    assert _strongest(pixels[112:144, 112:144]) == "red"
    assert _strongest(pixels[:24]) == "blue"


def test_a_model_that_knows_little_says_so_and_offers_prompts(visitor: Visitor, demo: Service) -> None:
    visit = visitor(demo)
    expect(visit.page.get_by_text("Demo model: it draws the edges of any image")).to_be_visible()
    assert faults(visit) == []
    chips = visit.page.get_by_role("list", name="Prompts to try").get_by_role("button")
    words = chips.nth(1).inner_text()
    chips.nth(1).click()
    prompt = visit.page.get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value(words)
    expect(prompt).to_be_focused()


def test_warnings_are_shown_with_the_result(visitor: Visitor, demo: Service) -> None:
    visit = visitor(demo)
    visit.upload(png(64, 64))
    visit.page.get_by_text("More", exact=True).click()
    visit.slide("Steps", 1)
    card = visit.make("a red heart and a yellow star " * 12)
    warnings = card.get_by_role("list", name="Warnings")
    expect(warnings).to_contain_text("tokens; the model reads the first 75")
    visit.page.reload()
    visit.page.locator("#recent-list button").first.click()
    expect(warnings).to_contain_text("tokens; the model reads the first 75")


def _strongest(part: Pixels) -> str:
    return ("red", "green", "blue")[int(np.argmax(part.reshape(-1, 3).mean(axis=0)))]
