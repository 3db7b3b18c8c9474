"""Elements that must be in view: progress and Cancel after Generate, and Generate itself; progress in the title."""

from functools import partial

import pytest
from playwright.sync_api import Locator, expect

from tests.page.conftest import Visitor
from tests.page.visiting import PHONE, Options, Visit
from tests.service.running import png, until

TELEPHONE: Options = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
LOW: Options = {"viewport": {"width": 1280, "height": 600}}
SCREENS = {"telephone": TELEPHONE, "low": LOW, "desk": {}}
# The share of an element that is in view and not covered by another.
IN_VIEW = """element => {
  const {left, top, width, height} = element.getBoundingClientRect();
  let seen = 0;
  for (const x of [0.1, 0.5, 0.9]) for (const y of [0.2, 0.5, 0.8]) {
    const there = document.elementFromPoint(left + x * width, top + y * height);
    seen += Boolean(there && (element.contains(there) || there.contains(element) && there === element.parentElement));
  }
  return seen / 9;
}"""


def in_view(part: Locator) -> bool:
    return bool(part.evaluate(IN_VIEW) == 1)


@pytest.mark.parametrize("screen", list(SCREENS))
def test_progress_and_cancel_are_in_view_after_generate(visitor: Visitor, screen: str) -> None:
    visit = visitor(**SCREENS[screen])
    visit.upload(png(64, 96))
    visit.page.get_by_text("More", exact=True).click()
    visit.ask_for(steps=16)
    card = visit.generate("in view")
    expect(card).to_contain_text("Step ")
    for part in (card.get_by_role("progressbar"), card.get_by_role("button", name="Cancel")):
        until(partial(in_view, part))
    expect(card.locator(".compare")).to_be_visible()
    assert card.locator(".compare").evaluate("it => it.getBoundingClientRect().top < innerHeight / 2")


@pytest.mark.parametrize("screen", list(SCREENS))
def test_generate_is_in_view_wherever_the_form_is(visitor: Visitor, screen: str) -> None:
    visit = visitor(**SCREENS[screen])
    button = visit.page.locator("#generate")
    assert button.evaluate(IN_VIEW) == 1
    visit.upload(png(64, 64))
    visit.page.get_by_text("More", exact=True).click()
    for label in ("Prompt", "Negative prompt", "Temperature"):
        field = visit.page.get_by_label(label, exact=True)
        field.focus()  # as the Tab key does; it scrolls there
        assert button.evaluate(IN_VIEW) == 1, label
        assert field.evaluate(IN_VIEW) > 0.3, label


@pytest.mark.parametrize("screen", list(SCREENS))
def test_a_long_word_makes_nothing_wider_than_the_screen(visitor: Visitor, screen: str) -> None:
    visit = visitor(**SCREENS[screen])
    visit.upload(png(64, 64))
    visit.make("https://example.com/" + "a" * 300)
    assert not visit.widens()


def test_the_form_stays_while_results_are_scrolled(visit: Visit) -> None:
    visit.upload(png(64, 200))
    for n in range(3):
        visit.make(f"result {n}")
    visit.page.mouse.move(900, 400)
    visit.page.mouse.wheel(0, 2000)
    until(lambda: visit.page.evaluate("scrollY") > 300)
    assert visit.page.locator("#generate").evaluate(IN_VIEW) == 1


def test_the_title_tells_how_far_it_is(visit: Visit) -> None:
    visit.page.evaluate("""() => {
      window.titles = [document.title];
      const look = () => titles.push(document.title);
      new MutationObserver(look).observe(document.querySelector('title'), {childList: true});
    }""")
    visit.upload(png(64, 64))
    visit.make("told in the title")
    titles = visit.page.evaluate("titles")
    assert (titles[0], titles[1], titles[-1]) == ("Contour", "Waiting · Contour", "Contour")
    shares = [int(title.partition("%")[0]) for title in titles if "%" in title]
    assert shares == sorted(shares)
    assert len(set(shares)) >= 4


def test_a_tab_that_is_not_looked_at_says_when_it_is_done(visit: Visit) -> None:
    hide = """hidden => {
      Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    visit.upload(png(64, 64))
    visit.ask_for(steps=16)
    card = visit.generate("behind")
    expect(card).to_contain_text("Step ")
    visit.page.evaluate(hide, True)
    expect(visit.page).to_have_title("Done · Contour")
    visit.page.evaluate(hide, False)
    expect(visit.page).to_have_title("Contour")
