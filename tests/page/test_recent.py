"""Recent results: in this browser, as many as are worth it, until they are cleared."""

from playwright.sync_api import Locator, expect

from tests.page.visiting import Visit, downloaded
from tests.service.running import pixels_of, png


def thumbs(visit: Visit) -> Locator:
    return visit.page.locator("#recent-list li")


def test_results_outlive_the_page_and_are_shown_again(visit: Visit) -> None:
    visit.upload(png(64, 64))
    made = downloaded(visit, visit.make("the older"))
    visit.make("the newer")
    expect(thumbs(visit)).to_have_count(2)
    visit.page.reload()
    expect(thumbs(visit)).to_have_count(2)
    expect(visit.cards).to_have_count(0)
    visit.page.get_by_role("button", name="Show again: the older").click()
    card = visit.cards.filter(has_text="the older")
    expect(card).to_be_focused()
    assert (pixels_of(downloaded(visit, card)) == pixels_of(made)).all()
    card.get_by_role("button", name="Use as image").click()
    expect(visit.page.locator("#edges-image")).to_be_visible()


def test_they_are_cleared_when_asked_twice(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.make()
    visit.page.get_by_role("button", name="Clear").click()
    expect(thumbs(visit)).to_have_count(1)
    visit.page.get_by_role("button", name="Remove all 1?").click()
    expect(visit.page.locator("#recent")).to_be_hidden()
    visit.page.reload()
    expect(visit.page.locator("#seed")).not_to_have_value("")
    assert visit.page.evaluate(STORED) == 0


def test_the_oldest_make_room(visit: Visit) -> None:
    kept = visit.page.evaluate("""async () => {
      const {Store} = await import('/page/store.js');
      const store = new Store();
      await store.open();
      for (let id = 1; id <= 40; id++) {
        await store.add({id, fields: {text: `${id}`}, images: [new Blob(['x'])], seconds: 1});
      }
      const again = new Store();
      return (await again.open()).map(({id}) => id);
    }""")
    assert kept == list(range(40, 10, -1))


def test_without_a_database_they_are_kept_until_the_page_is_left(visit: Visit) -> None:
    visit.page.add_init_script("indexedDB.open = () => { throw new DOMException('no', 'SecurityError'); }")
    visit.page.reload()
    visit.upload(png(64, 64))
    visit.make()
    expect(thumbs(visit)).to_have_count(1)
    visit.page.reload()
    expect(visit.page.locator("#recent")).to_be_hidden()


STORED = """() => new Promise(resolve => {
  indexedDB.open('contour', 1).onsuccess = ({target}) => {
    const counting = target.result.transaction('results').objectStore('results').count();
    counting.onsuccess = () => resolve(counting.result);
  };
})"""
