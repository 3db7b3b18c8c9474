"""Prompts in any script, too long ones, and what a model that knows little says of itself."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.page.conftest import Visitor
from tests.page.test_for_everybody import faults
from tests.page.visiting import Visit
from tests.service.running import Service, png

ARABIC = "قلب أحمر ونجمة صفراء"


@pytest.fixture(scope="module")
def demo() -> Iterator[Service]:
    with Service("demo") as service:
        yield service.wait_until_ready()


def test_a_prompt_runs_in_its_own_direction_wherever_it_is_shown(visit: Visit) -> None:
    visit.upload(png(64, 64))
    direction = "it => getComputedStyle(it).direction"
    prompt = visit.page.get_by_label("Prompt", exact=True)
    prompt.fill("left to right")
    assert prompt.evaluate(direction) == "ltr"
    card = visit.make(ARABIC)
    assert prompt.evaluate(direction) == "rtl"
    assert card.get_by_role("heading").evaluate(direction) == "rtl"
    visit.page.get_by_text("More", exact=True).click()
    negative = visit.page.get_by_label("Negative prompt")
    negative.fill(ARABIC)
    assert negative.evaluate(direction) == "rtl"


def test_a_prompt_that_is_too_long_is_hinted_at_while_it_is_typed(visit: Visit) -> None:
    prompt, hint = visit.page.get_by_label("Prompt", exact=True), visit.page.locator("#prompt-hint")
    prompt.fill("a red heart and a yellow star " * 9)  # 63 tokens by CLIP's own tokenizer
    expect(hint).to_have_text("")
    prompt.fill("a red heart and a yellow star " * 12)  # 84
    expect(hint).to_have_text(re.compile(r"About 8\d tokens: too long. The model reads about the first 75."))
    prompt.fill("красное сердце и жёлтая звезда " * 4)  # other scripts take more
    expect(hint).to_contain_text("too long")
    prompt.fill("short")
    expect(hint).to_have_text("")


def test_a_model_that_knows_little_says_so_and_offers_prompts(visitor: Visitor, demo: Service) -> None:
    visit = visitor(demo)
    expect(visit.page.get_by_text("Demo model: it knows circles, squares")).to_be_visible()
    assert faults(visit) == []
    chips = visit.page.get_by_role("list", name="Prompts to try").get_by_role("button")
    words = chips.nth(1).inner_text()
    chips.nth(1).click()
    prompt = visit.page.get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value(words)
    expect(prompt).to_be_focused()


def test_what_the_service_warns_of_stands_at_the_result(visitor: Visitor, demo: Service) -> None:
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


def test_another_model_has_nothing_of_the_kind(visit: Visit) -> None:
    expect(visit.page.locator("#about")).to_be_hidden()
