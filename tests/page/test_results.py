"""Results: what made them, back into the form; one card each; deleted; saved together."""

import io
import zipfile
from pathlib import Path

from playwright.sync_api import expect

from tests.page.test_for_everybody import faults
from tests.page.visiting import Visit, facts
from tests.service.running import pixels_of, png

TILES = "#recent-list li"


def test_a_result_says_all_that_made_it(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.page.get_by_text("More", exact=True).click()
    visit.slide("Guidance", 4.5)
    visit.slide("Temperature", 0.5)
    visit.slide("Strong edges from", 300)
    visit.page.get_by_label("Negative prompt").fill("ضباب")
    said = facts(visit.make("all of it", seed=12))
    assert said.pop("Time").endswith(" s")
    assert said == {
        "Seed": "12",
        "Steps": "8",
        "Guidance": "4.5",
        "Control": "1",
        "Temperature": "0.5",
        "Edges": "100 to 300",
        "Negative prompt": "ضباب",
    }


def test_a_tile_puts_back_all_that_made_its_result_and_undo_what_was_there(visit: Visit) -> None:
    page = visit.page
    visit.upload(png(96, 64))
    page.get_by_text("More", exact=True).click()
    visit.slide("Guidance", 4.5)
    visit.slide("Faint edges from", 42)
    page.get_by_label("Negative prompt").fill("fog")
    visit.make("the first", seed=12)
    page.reload()
    expect(page.locator(TILES)).to_have_count(1)
    page.get_by_role("button", name="Reset to defaults").click()
    page.get_by_role("button", name="Remove").click()
    page.get_by_label("Prompt", exact=True).fill("half a new idea")
    page.get_by_role("button", name="Show again: the first").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("the first")
    expect(page.get_by_label("Negative prompt")).to_have_value("fog")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("12")
    expect(page.get_by_label("Guidance", exact=True)).to_have_value("4.5")
    expect(page.get_by_label("Faint edges from", exact=True)).to_have_value("42")
    expect(page.locator("#edges-image")).to_be_visible()
    assert page.locator("#input-image").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [96, 64]
    assert faults(visit) == []
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("half a new idea")
    expect(page.get_by_label("Guidance", exact=True)).not_to_have_value("4.5")
    expect(page.get_by_role("button", name="Choose")).to_be_visible()


def test_of_several_images_the_chosen_ones_seed_goes_into_the_form(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.page.get_by_text("More", exact=True).click()
    visit.slide("Images", 3)
    card = visit.make("three", seed=100)
    card.get_by_role("group", name="Choose an image").get_by_role("button").nth(2).click()
    card.get_by_role("button", name="Use settings").click()
    expect(visit.page.get_by_label("Seed", exact=True)).to_have_value("102")
    expect(visit.page.get_by_label("Images", exact=True)).to_have_value("3")


def test_a_tile_opens_once(visit: Visit) -> None:
    visit.upload(png(64, 64))
    card = visit.make("only once")
    tile = visit.page.get_by_role("button", name="Show again: only once")
    tile.dblclick()
    expect(visit.cards).to_have_count(1)
    tile.click()
    expect(card).to_be_focused()
    card.get_by_role("button", name="Close").click()
    tile.click()
    tile.press("Enter")
    expect(visit.cards).to_have_count(1)
    expect(visit.cards).to_be_focused()


def test_a_result_is_deleted_from_the_browser_too_unless_it_is_undone(visit: Visit) -> None:
    page = visit.page
    visit.upload(png(64, 64))
    for prompt in ("the first", "the second", "the third"):
        visit.make(prompt)
    expect(page.locator(TILES)).to_have_count(3)
    page.get_by_role("button", name="Delete: the second").press("Enter")
    expect(page.locator(TILES)).to_have_count(2)
    expect(visit.cards.filter(has_text="the second")).to_have_count(0)
    expect(page.get_by_role("button", name="Show again: the first")).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(TILES)).to_have_count(3)
    names = page.locator(f"{TILES} img").evaluate_all("all => all.map(each => each.alt)")
    assert names == [f"Show again: the {each}" for each in ("third", "second", "first")]
    visit.cards.filter(has_text="the third").get_by_role("button", name="Delete").click()
    expect(page.locator(TILES)).to_have_count(2)
    page.reload()
    expect(page.locator(TILES)).to_have_count(2)
    expect(page.get_by_role("button", name="Show again: the third")).to_have_count(0)


def test_all_results_are_saved_as_one_zip(visit: Visit) -> None:
    visit.upload(png(96, 64))
    visit.page.get_by_text("More", exact=True).click()
    visit.slide("Images", 2)
    card = visit.make("größer: two", seed=1)
    visit.slide("Images", 1)
    for _ in range(2):  # the same request twice has the same name twice
        visit.generate("same", seed=9)
    expect(visit.page.locator(TILES)).to_have_count(3)
    with visit.page.expect_download() as saving:
        visit.page.locator("#recent-save").click()
    names = ["same-9.png", "same-9-2.png", "größer-two-1.png", "größer-two-2.png"]
    assert saving.value.suggested_filename == "contour-4-images.zip"
    assert zip_names(Path(saving.value.path()).read_bytes()) == names
    with visit.page.expect_download() as saving:
        card.get_by_role("button", name="Download all").click()
    assert zip_names(Path(saving.value.path()).read_bytes()) == names[2:]


def zip_names(file: bytes) -> list[str]:
    """The names in a ZIP whose sums are right and whose files are images of the size that was sent."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert pixels_of(archive.read(entry)).shape == (64, 96, 3)
        return archive.namelist()


def test_a_seed_is_new_each_time_or_stays(visit: Visit) -> None:
    page = visit.page
    seed = page.get_by_label("Seed", exact=True)
    visit.upload(png(64, 64))
    first = seed.input_value()
    page.get_by_label("Prompt", exact=True).fill("again")
    expect(page.get_by_label("New seed each time")).to_be_checked()
    for count in (1, 2):
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(TILES)).to_have_count(count)
    newer, older = [facts(card)["Seed"] for card in visit.cards.all()]
    assert older == first != newer
    assert seed.input_value() == newer  # what was used last can be kept
    page.get_by_label("New seed each time").uncheck()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(TILES)).to_have_count(3)
    assert facts(visit.cards.first)["Seed"] == newer
    page.get_by_label("New seed each time").check()
    seed.fill("31")  # whoever types one wants it
    expect(page.get_by_label("New seed each time")).not_to_be_checked()


def test_results_of_an_earlier_version_are_shown_and_restored(visit: Visit) -> None:
    visit.page.evaluate(
        """async bytes => {
          const {Store} = await import('/page/store.js');
          const store = new Store();
          await store.open();
          const image = new Blob([new Uint8Array(bytes)], {type: 'image/png'});
          const fields = {text: 'an old one', random_seed: '5', steps: 4, negative_prompt: 'rain'};
          await store.add({id: 1, fields, image, edges: image, images: [image], seconds: 1});
        }""",
        list(png(64, 64)),
    )
    visit.page.reload()
    visit.page.get_by_role("button", name="Show again: an old one").click()
    assert facts(visit.cards) == {"Seed": "5", "Steps": "4", "Negative prompt": "rain", "Time": "1.0 s"}
    expect(visit.page.get_by_label("Prompt", exact=True)).to_have_value("an old one")
    expect(visit.page.get_by_label("Seed", exact=True)).to_have_value("5")
    expect(visit.page.locator("#field-steps")).to_have_value("4")
    expect(visit.page.locator("#field-guidance_scale")).to_have_value("7.5")


def test_a_double_click_makes_one_request(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.page.get_by_label("Prompt", exact=True).fill("just one")
    visit.page.get_by_role("button", name="Generate").dblclick()
    expect(visit.page.locator(".compare")).to_have_count(1)
    expect(visit.cards).to_have_count(1)
    visit.cards.get_by_role("button", name="Another seed").dblclick()
    expect(visit.page.locator(".compare")).to_have_count(2)
    expect(visit.cards).to_have_count(2)
