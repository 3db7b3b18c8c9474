"""By keyboard, on small screens, in dark and light, at rest, and for who listens."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.page.conftest import Visitor
from tests.page.visiting import PHONE, Options, Visit
from tests.service.running import png

SMALL: Options = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
TELEPHONE: Options = {"viewport": PHONE, "has_touch": True, "is_mobile": True}

# Where something fades in, colours are not yet what they will be.
SETTLED = """() => {
  const ending = document.getAnimations().filter(each => each.effect.getTiming().iterations === 1);
  return Promise.allSettled(ending.map(each => each.finished));
}"""


def faults(visit: Visit) -> list[tuple[str, str, str]]:
    """What axe finds, of any weight; where nothing moves any more."""
    visit.page.evaluate(SETTLED)
    found: dict[str, Any] = Axe().run(visit.page).response
    return [
        (fault["id"], fault["impact"], node["html"][:200]) for fault in found["violations"] for node in fault["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [{}, TELEPHONE], ids=["desk", "telephone"])
def test_axe_finds_nothing_in_any_state(visitor: Visitor, scheme: str, screen: Options) -> None:
    visit = visitor(color_scheme=scheme, **screen)
    assert faults(visit) == []
    visit.page.get_by_role("button", name="Generate").click()
    assert faults(visit) == []
    visit.page.get_by_role("button", name="Draw", exact=True).click()
    assert faults(visit) == []
    visit.page.get_by_role("button", name="Cancel").click()
    visit.upload(png(64, 64))
    visit.page.get_by_text("More", exact=True).click()
    visit.ask_for(steps=16)
    card = visit.generate("running")
    expect(card).to_contain_text("Step ")
    assert faults(visit) == []
    expect(card.locator(".compare")).to_be_visible()
    assert faults(visit) == []
    visit.page.route("**/generation/", lambda route: route.abort())
    expect(visit.generate("failing").get_by_role("alert")).to_be_visible()
    assert faults(visit) == []
    visit.complaints = [each for each in visit.complaints if "net::ERR_FAILED" not in each]


def test_from_the_first_key_to_the_result_without_a_mouse(visit: Visit) -> None:
    def tab_to(name: str) -> None:
        for _ in range(30):
            visit.page.keyboard.press("Tab")
            if name in visit.page.evaluate(FOCUSED):
                return
        raise AssertionError(f"Tab does not come to {name}")

    tab_to("To the prompt")
    tab_to("Example: ")
    visit.page.keyboard.press("Enter")
    prompt = visit.page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_focused()
    expect(prompt).not_to_have_value("")
    visit.page.keyboard.press("Control+A")
    visit.page.keyboard.type("typed by hand")
    tab_to("Generate")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".compare")).to_be_visible()
    expect(visit.page.locator("#status")).to_have_text("Done: typed by hand")
    tab_to("How much of before is shown")
    for _ in range(3):
        visit.page.keyboard.press("ArrowRight")
    slider = visit.page.get_by_label("How much of before is shown")
    expect(slider).to_have_attribute("aria-valuetext", "Yours: 3 percent, from the left")
    tab_to("Yours")
    visit.page.keyboard.press("ArrowDown")
    expect(slider).to_have_attribute("aria-valuetext", "Edges: 3 percent, from the left")
    tab_to("Download")


FOCUSED = """() => {
  const it = document.activeElement;
  const names = [it.getAttribute('aria-label'), it.closest('label')?.textContent, it.textContent];
  return [...names, it.querySelector('img')?.alt].join(' ');
}"""


def test_before_and_after_are_uncovered_by_the_slider(visit: Visit) -> None:
    visit.upload(png(64, 64))
    card = visit.make()
    before = card.locator(".before")
    assert before.evaluate(UNCOVERED) == 0
    card.get_by_label("How much of before is shown").fill("25")
    assert before.evaluate(UNCOVERED) == pytest.approx(0.25)
    card.get_by_role("radio", name="Edges").check(force=True)
    shown = before.get_attribute("src")
    card.get_by_role("radio", name="Yours").check(force=True)
    expect(before).not_to_have_attribute("src", shown or "")


# How much of an image its clip-path leaves.
UNCOVERED = """image => {
  const right = getComputedStyle(image).clipPath.match(/inset\\(0px (.+?) 0px 0px\\)/)[1];
  const probe = document.createElement('div');
  image.parentElement.append(probe);
  Object.assign(probe.style, {position: 'absolute', width: right});
  const covered = probe.getBoundingClientRect().width / image.getBoundingClientRect().width;
  probe.remove();
  return 1 - covered;
}"""


@pytest.mark.parametrize("screen", [SMALL, TELEPHONE], ids=["320", "390"])
def test_a_small_screen_is_never_scrolled_sideways(visitor: Visitor, screen: Options) -> None:
    visit = visitor(**screen)
    assert not visit.widens()
    visit.page.get_by_role("button", name="Draw", exact=True).tap()
    canvas = visit.page.locator("#canvas")
    box = canvas.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= screen["viewport"]["width"]
    assert not visit.widens()
    visit.page.touchscreen.tap(box["x"] + 50, box["y"] + 50)
    assert canvas.evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v < 40)")
    visit.page.get_by_role("button", name="Use it").tap()
    expect(visit.page.locator("#edges-image")).to_be_visible()
    visit.page.get_by_text("More", exact=True).tap()
    visit.ask_for(steps=16)
    card = visit.generate("a very long word: " + "ha" * 60)
    expect(card).to_contain_text("Step ")
    assert not visit.widens()
    expect(card.locator(".compare")).to_be_visible()
    assert not visit.widens()
    expect(visit.page.get_by_role("button", name="Camera")).to_be_hidden()  # there is an image already
    visit.page.get_by_role("button", name="Remove").tap()
    expect(visit.page.get_by_role("button", name="Camera")).to_be_visible()


def test_dark_is_dark_and_light_is_light(visitor: Visitor) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        page = visitor(color_scheme=scheme).page
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        brightness[scheme] = sum(colour) / 3
    assert brightness["light"] > 200
    assert brightness["dark"] < 60


def test_nothing_moves_for_who_wants_rest(visitor: Visitor) -> None:
    visit = visitor(reduced_motion="reduce")
    visit.upload(png(64, 64))
    visit.ask_for(steps=60)
    card = visit.generate("at rest")
    expect(card).to_contain_text("Step ")
    assert visit.page.evaluate("document.getAnimations().length") == 0
