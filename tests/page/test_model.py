"""The page with the small model: what is seen forming is a picture of its own."""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.page.conftest import Visitor
from tests.page.test_making import WATCH
from tests.page.visiting import downloaded, pixels_of
from tests.service.running import Pixels, Service


@pytest.fixture(scope="module")
def demo() -> Iterator[Service]:
    with Service("demo", ENGINE__OUTPUT__FORMAT="png") as service:
        yield service.wait_until_ready()


def test_a_drawing_becomes_a_picture_in_the_prompts_colours_and_is_seen_forming(
    visitor: Visitor, demo: Service
) -> None:
    visit = visitor(demo)
    visit.page.get_by_role("button", name="Draw").click()
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
    picture = pixels_of(file)
    assert picture.shape == (256, 256, 3)
    assert _strongest(picture[112:144, 112:144]) == "red"
    assert _strongest(picture[:24]) == "blue"


def _strongest(part: Pixels) -> str:
    return ("red", "green", "blue")[int(np.argmax(part.reshape(-1, 3).mean(axis=0)))]
