"""The draft survives a reload, and the page warns before a reload while requests run."""

import base64

from playwright.sync_api import Dialog, expect

from tests.page.conftest import Visitor
from tests.page.visiting import DESKTOP, Visit, downloaded, facts
from tests.service.running import Service, pixels_of, png, until

# Ids of the records in the database of drafts.
DRAFTS = """() => new Promise(resolve => {
  indexedDB.open('contour-draft', 1).onsuccess = ({target}) => {
    const all = target.result.transaction('drafts').objectStore('drafts').getAllKeys();
    all.onsuccess = () => resolve(all.result);
  };
})"""


def reload(visit: Visit, *, warned: bool = False) -> None:
    """Reload the page, as someone who says yes if asked; fail if that is not as expected."""
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    visit.page.on("dialog", answer)
    visit.page.reload()
    visit.page.remove_listener("dialog", answer)
    assert asked == ["beforeunload"] * warned
    expect(visit.page.locator("#compose")).not_to_have_attribute("inert", "")


def kept(visit: Visit, ending: str) -> bool:
    """Whether the draft has a record whose name ends so."""
    names: list[str] = visit.page.evaluate(DRAFTS)
    return any(ending in name.partition("/")[2] for name in names)


def jobs(visit: Visit) -> int:
    """How many requests the draft has."""
    return sum("job-" in name for name in visit.page.evaluate(DRAFTS))


def test_words_settings_and_image_are_kept(visit: Visit) -> None:
    page = visit.page
    visit.upload(png(96, 64))
    until(lambda: kept(visit, "image"))
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Prompt", exact=True).fill("a draft, half written")
    page.get_by_label("Negative prompt").fill("rain")
    page.get_by_label("Seed", exact=True).fill("77")
    visit.slide("Steps", 11)
    visit.slide("Control", 0.4)
    visit.slide("Strong edges from", 321)
    page.get_by_label("Use as edges").check()
    reload(visit)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a draft, half written")
    expect(page.get_by_label("Negative prompt")).to_have_value("rain")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("77")
    expect(page.get_by_label("New seed each time")).not_to_be_checked()
    expect(page.get_by_label("Steps", exact=True)).to_have_value("11")
    expect(page.get_by_label("Control", exact=True)).to_have_value("0.4")
    expect(page.get_by_label("Use as edges")).to_be_checked()
    page.get_by_label("Use as edges").uncheck()
    expect(page.get_by_label("Strong edges from", exact=True)).to_have_value("321")
    expect(page.locator("#edges-image")).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    card = visit.cards.filter(has_text="a draft, half written")
    expect(card.locator(".compare")).to_be_visible()
    assert facts(card) == facts(card) | {"Seed": "77", "Steps": "11", "Control": "0.4", "Negative prompt": "rain"}
    assert pixels_of(downloaded(visit, card)).shape == (64, 96, 3)


def test_an_image_that_was_removed_stays_away(visit: Visit) -> None:
    visit.upload(png(64, 64))
    until(lambda: kept(visit, "image"))
    visit.page.get_by_role("button", name="Remove").click()
    until(lambda: not kept(visit, "image"))
    reload(visit)
    expect(visit.page.get_by_role("button", name="Choose")).to_be_visible()


def test_an_unfinished_drawing_is_kept(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Draw", exact=True).click()
    for key in ("Space", "Shift+ArrowRight", "Shift+ArrowRight", "Space"):
        page.keyboard.press(key)
    until(lambda: kept(visit, "sketch"))
    reload(visit)
    expect(page.locator("#sketch")).to_be_visible()
    drawn = page.locator("#canvas").evaluate("canvas => canvas.toDataURL()")
    page.get_by_role("button", name="Undo").click()
    assert page.locator("#canvas").evaluate("canvas => canvas.toDataURL()") != drawn


def test_another_tab_has_a_draft_of_its_own(visit: Visit, echo: Service) -> None:
    visit.upload(png(64, 64))
    visit.page.get_by_label("Prompt", exact=True).fill("of the first tab")
    other = visit.context.new_page()
    other.goto(echo.url)
    expect(other.locator("#seed")).not_to_have_value("")
    expect(other.get_by_label("Prompt", exact=True)).to_have_value("")
    expect(other.get_by_role("button", name="Choose")).to_be_visible()


def test_drafts_of_other_tabs_do_not_pile_up(visit: Visit) -> None:
    names = visit.page.evaluate(
        """async bytes => {
          const {Draft} = await import('/page/draft.js');
          for (let tab = 0; tab < 40; tab++) {
            sessionStorage.removeItem('contour-tab');
            const draft = new Draft();
            await draft.load();
            await draft.keepImage(new Blob([new Uint8Array(bytes)]));
          }
          const last = new Draft();
          await last.load();
          await last.keepImage({size: 31e6});  // larger than is kept: the one before is not shown in its place
          return new Promise(resolve => {
            indexedDB.open('contour-draft', 1).onsuccess = ({target}) => {
              const all = target.result.transaction('drafts').objectStore('drafts').getAllKeys();
              all.onsuccess = () => resolve(all.result);
            };
          });
        }""",
        list(png(8, 8)),
    )
    assert 0 < len(names) <= 13


def test_leaving_is_asked_about_while_work_goes_on_and_what_it_ended_can_be_tried_again(visit: Visit) -> None:
    visit.upload(png(96, 64))
    reload(visit)
    visit.upload(png(96, 64))
    visit.ask_for(steps=20)
    card = visit.generate("ended by the reload", seed=5)
    expect(card).to_contain_text("Step ")
    until(lambda: kept(visit, "job-"))
    reload(visit, warned=True)
    expect(visit.page.locator("#recent")).to_be_hidden()
    alert = visit.cards.get_by_role("alert")
    expect(alert).to_contain_text("Stopped.")
    expect(alert).to_contain_text("The page was reloaded or left before this was done")
    alert.get_by_role("button", name="Try again").click()
    card = visit.cards.filter(has_text="ended by the reload")
    expect(card.locator(".compare")).to_be_visible()
    assert facts(card)["Seed"] == "5"
    assert pixels_of(downloaded(visit, card)).shape == (64, 96, 3)
    until(lambda: not kept(visit, "job-"))
    reload(visit)
    expect(visit.page.locator("#recent")).to_be_visible()
    expect(visit.cards).to_have_count(0)


def test_all_that_a_reload_ended_are_offered_again_until_they_are_closed(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.ask_for(steps=60)
    prompts = [f"request {n}" for n in range(7)]
    for prompt in prompts:
        visit.generate(prompt)
    expect(visit.cards.filter(has_text="ahead").first).to_be_visible()
    until(lambda: jobs(visit) >= 6)
    reload(visit, warned=True)
    stopped = visit.cards.filter(has_text="Stopped.")
    until(lambda: 5 <= stopped.count() == jobs(visit))  # the first may have been done before
    unfinished = jobs(visit)
    visit.cards.first.get_by_role("button", name="Close").click()
    until(lambda: jobs(visit) == unfinished - 1)  # a reload breaks off what the page is about to delete
    reload(visit)
    expect(stopped).to_have_count(unfinished - 1)


def test_staying_on_the_page_loses_nothing(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.ask_for(steps=20)
    card = visit.generate("stays")
    expect(card).to_contain_text("Step ")
    visit.page.once("dialog", lambda dialog: dialog.dismiss())
    visit.page.evaluate("setTimeout(() => location.reload())")
    expect(card.locator(".compare")).to_be_visible()


def test_without_a_database_the_words_are_kept(visitor: Visitor) -> None:
    visit = visitor(viewport=DESKTOP)
    visit.page.add_init_script("indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); }")
    reload(visit)
    visit.upload(png(64, 64))
    visit.page.get_by_label("Prompt", exact=True).fill("kept")
    reload(visit)
    expect(visit.page.get_by_label("Prompt", exact=True)).to_have_value("kept")
    expect(visit.page.get_by_role("button", name="Choose")).to_be_visible()


def test_the_page_works_without_room_for_its_draft(visitor: Visitor) -> None:
    visit = visitor()
    visit.page.add_init_script(
        "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }"
    )
    reload(visit)
    visit.upload(png(64, 64))
    card = visit.make("no room")
    assert base64.b64encode(downloaded(visit, card))
