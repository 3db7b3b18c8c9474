"""Results larger than the window: by click, keys, wheel, pinch and buttons."""

from typing import Any

from playwright.sync_api import Locator, expect

from tests.page.conftest import Visitor
from tests.page.test_for_everybody import faults
from tests.page.visiting import DESKTOP, PHONE, Visit
from tests.service.running import png, until


def made(visit: Visit) -> Locator:
    visit.upload(png(96, 64))
    return visit.make()


def level(visit: Visit) -> int:
    """Percent of the size that fits the window."""
    return int(visit.page.locator("#zoom-level").inner_text().removesuffix("%"))


def box_of(place: Locator) -> dict[str, Any]:
    box = place.bounding_box()
    assert box is not None
    return dict(box)


def test_a_click_enlarges_and_the_keys_do_the_rest(visit: Visit) -> None:
    card = made(visit)
    dialog, image = visit.page.locator("#zoom"), visit.page.locator("#zoom-image")
    slider = card.get_by_label("How much of before is shown")
    box = box_of(slider)
    slider.click(position={"x": box["width"] * 0.7, "y": box["height"] / 2})
    expect(dialog).to_be_visible()
    expect(slider).to_have_value("0")  # it did not jump to where it was clicked
    expect(image).to_have_attribute("alt", "Result: a red circle")
    assert level(visit) == 100
    for key in ("+", "+", "+"):
        visit.page.keyboard.press(key)
    assert level(visit) == 274
    before = box_of(image)
    visit.page.keyboard.press("ArrowRight")
    assert box_of(image)["x"] < before["x"]
    for _ in range(100):
        visit.page.keyboard.press("ArrowRight")
    assert box_of(image)["x"] + box_of(image)["width"] >= DESKTOP["width"] - 1
    visit.page.keyboard.press("-")
    assert level(visit) == 196
    visit.page.keyboard.press("0")
    assert level(visit) == 100
    assert faults(visit) == []
    visit.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(slider).to_be_focused()
    slider.press("Enter")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_a_drag_moves_the_slider_and_enlarges_nothing(visit: Visit) -> None:
    card = made(visit)
    slider = card.get_by_label("How much of before is shown")
    box = box_of(slider)
    y = box["y"] + box["height"] / 2
    visit.page.mouse.move(box["x"] + box["width"] * 0.6, y)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + box["width"] * 0.3, y, steps=5)
    visit.page.mouse.up()
    assert 25 <= int(slider.input_value()) <= 35
    expect(visit.page.locator("#zoom")).to_be_hidden()
    assert card.locator(".compare").evaluate("it => it.style.getPropertyValue('--at')") == f"{slider.input_value()}%"


def test_the_wheel_enlarges_what_is_under_the_pointer(visit: Visit) -> None:
    card = made(visit)
    card.get_by_role("button", name="Zoom").click()
    image = visit.page.locator("#zoom-image")
    x, y = 300, 200
    before = box_of(image)
    share = [(x - before["x"]) / before["width"], (y - before["y"]) / before["height"]]
    visit.page.mouse.move(x, y)
    visit.page.mouse.wheel(0, -400)
    until(lambda: level(visit) > 200)
    after = box_of(image)
    place = [(x - after["x"]) / after["width"], (y - after["y"]) / after["height"]]
    assert max(abs(one - other) for one, other in zip(share, place, strict=True)) < 0.01
    visit.page.mouse.wheel(0, 5000)
    until(lambda: level(visit) == 100)
    visit.page.mouse.dblclick(x, y)
    assert level(visit) == 250
    visit.page.mouse.dblclick(x, y)
    assert level(visit) == 100
    visit.page.get_by_role("button", name="Larger").click()
    assert level(visit) == 140
    visit.page.get_by_role("button", name="Fit").click()
    assert level(visit) == 100


def test_two_fingers_enlarge_and_one_moves(visitor: Visitor) -> None:
    visit = visitor(viewport=PHONE, has_touch=True, is_mobile=True)
    card = made(visit)
    card.locator(".compare input").tap(position={"x": 250, "y": 100})
    expect(visit.page.locator("#zoom")).to_be_visible()
    touch = visit.context.new_cdp_session(visit.page)

    def fingers(kind: str, *points: tuple[float, float]) -> None:
        touch.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]},
        )

    fingers("touchStart", (150, 400), (240, 400))
    for n in range(1, 10):
        fingers("touchMove", (150 - 10 * n, 400), (240 + 10 * n, 400))
    fingers("touchEnd")
    until(lambda: level(visit) > 220)
    image = visit.page.locator("#zoom-image")
    before = box_of(image)
    fingers("touchStart", (200, 400))
    for n in range(1, 6):
        fingers("touchMove", (200 + 10 * n, 400))
    fingers("touchEnd")
    until(lambda: 30 < box_of(image)["x"] - before["x"] < 60)
    assert visit.page.evaluate("visualViewport.scale") == 1  # the page itself is not enlarged


def test_the_chosen_one_of_several_is_enlarged(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.page.get_by_text("More", exact=True).click()
    visit.slide("Images", 2)
    card = visit.make("two")
    card.get_by_role("group", name="Choose an image").get_by_role("button").nth(1).click()
    card.get_by_role("button", name="Zoom").click()
    expect(visit.page.locator("#zoom")).to_be_visible()
    visit.page.keyboard.press("Escape")
    expect(card.get_by_role("button", name="Zoom")).to_be_focused()
