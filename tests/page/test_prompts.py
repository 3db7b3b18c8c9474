"""Prompts in any script, and too long ones."""

import re

from playwright.sync_api import expect

from tests.page.visiting import Visit
from tests.service.running import png

ARABIC = "قلب أحمر ونجمة صفراء"


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


def test_another_model_has_nothing_of_the_kind(visit: Visit) -> None:
    expect(visit.page.locator("#about")).to_be_hidden()
