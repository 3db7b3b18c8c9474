"""From an image and a prompt to a new image, and what is seen on the way."""

import base64

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from tests.page.visiting import Visit, downloaded, facts
from tests.service.running import Service, file_of, pixels_of, png, result_pixels, until

# What becomes of a card while it is watched.
WATCH = """card => {
  const seen = window.seen = {shares: [], previews: [], phases: []};
  const look = () => {
    const [bar, now] = [card.querySelector('progress'), card.querySelector('[data-part=phase]').textContent];
    if (bar.hasAttribute('value') && seen.shares.at(-1) !== bar.value) seen.shares.push(bar.value);
    if (seen.phases.at(-1) !== now) seen.phases.push(now);
    const preview = card.querySelector('.preview')?.getAttribute('src');
    if (preview && seen.previews.at(-1) !== preview) seen.previews.push(preview);
  };
  new MutationObserver(look).observe(card, {subtree: true, attributes: true, childList: true, characterData: true});
  look();
}"""


def test_an_uploaded_image_becomes_what_the_api_makes_of_it(visit: Visit, echo: Service) -> None:
    visit.upload(png(96, 64))
    card = visit.make("a red circle", seed=1234)
    fields = {"input_image_base64": base64.b64encode(png(96, 64)).decode()}
    assert (pixels_of(downloaded(visit, card)) == result_pixels(echo.generate(**fields))).all()
    assert facts(card)["Seed"] == "1234"
    expect(card.get_by_role("img", name="Result: a red circle")).to_be_visible()


def test_the_edges_are_the_servers_and_follow_the_thresholds(visit: Visit) -> None:
    visit.upload(png(64, 64))
    edges = visit.page.locator("#edges-image")
    before = edges.get_attribute("src")
    wanted = {"canny_low": "590", "canny_high": "600"}
    with visit.page.expect_response(lambda response: asks_for_edges(response.url, wanted)):
        visit.slide("Strong edges from", 600)
        visit.slide("Faint edges from", 590)
    expect(edges).not_to_have_attribute("src", before or "")
    visit.slide("Strong edges from", 80)
    expect(visit.page.get_by_label("Faint edges from")).to_have_value("80")


def asks_for_edges(url: str, thresholds: dict[str, str]) -> bool:
    """Whether a request is for the edges by these thresholds. An earlier one, for only one of them, may come before."""
    return httpx.URL(url).path == "/edges" and dict(httpx.URL(url).params) == thresholds


def test_a_drawn_image_has_what_the_hand_drew(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Draw", exact=True).click()
    canvas = visit.page.locator("#canvas")
    box = canvas.bounding_box()
    assert box is not None

    def stroke(colour: str | None, x: float, y: float) -> None:
        if colour is not None:
            visit.page.get_by_role("radio", name=colour).check(force=True)
        visit.page.mouse.move(box["x"] + (x - 0.1) * box["width"], box["y"] + y * box["height"])
        visit.page.mouse.down()
        visit.page.mouse.move(box["x"] + (x + 0.1) * box["width"], box["y"] + y * box["height"], steps=4)
        visit.page.mouse.up()

    visit.slide("Width", 80)
    stroke("Red", 0.3, 0.25)
    stroke("Blue", 0.7, 0.25)
    stroke("Green", 0.3, 0.75)
    visit.page.get_by_role("button", name="Undo").click()
    visit.page.get_by_role("button", name="Eraser").click()
    stroke(None, 0.7, 0.25)
    visit.page.get_by_role("button", name="Use it").click()
    expect(visit.page.locator("#edges-image")).to_be_visible()
    drawn = pixels_of(downloaded(visit, visit.make("a drawing")))
    height, width = drawn.shape[:2]
    places = {"red": (0.25, 0.3), "erased": (0.25, 0.7), "undone": (0.75, 0.3)}
    colours = {name: drawn[int(y * height), int(x * width)].tolist() for name, (y, x) in places.items()}
    assert colours == {"red": [220, 35, 40], "erased": [255] * 3, "undone": [255] * 3}


def test_keys_draw_as_well(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Draw", exact=True).press("Enter")
    expect(visit.page.locator("#canvas")).to_be_focused()
    for key in ("Space", "Shift+ArrowRight", "Shift+ArrowRight", "Space", "Shift+ArrowDown"):
        visit.page.keyboard.press(key)
    visit.page.get_by_role("button", name="Use it").press("Enter")
    expect(visit.page.locator("#edges-image")).to_be_visible()
    drawn = pixels_of(downloaded(visit, visit.make("a line")))
    middle = drawn.shape[0] // 2
    assert (drawn[middle, middle + 20 : middle + 80] < 40).all()
    assert (drawn[middle + 30 :] > 200).all()


def test_progress_moves_and_the_image_is_seen_forming(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.ask_for(steps=24)
    card = visit.generate("watched")
    card.evaluate(WATCH)
    expect(card.locator(".compare")).to_be_visible()
    seen = visit.page.evaluate("seen")
    assert seen["shares"] == sorted(seen["shares"])
    assert len(seen["shares"]) >= 4
    assert seen["shares"][-1] == 1
    assert seen["previews"]
    assert seen["previews"][0].startswith("data:image/jpeg;base64,")
    assert any(phase.startswith("Step ") and "left" in phase for phase in seen["phases"])


def test_cancelling_stops_the_work_and_leaves_no_card(visit: Visit, echo: Service) -> None:
    before = echo.sample("contour_requests_total", outcome="abandoned")
    visit.upload(png(64, 64))
    visit.ask_for(steps=60)
    card = visit.generate("given up")
    expect(card).to_contain_text("Step ")
    card.get_by_role("button", name="Cancel").click()
    expect(visit.cards).to_have_count(0)
    expect(visit.page.get_by_role("button", name="Generate")).to_be_focused()
    until(lambda: echo.sample("contour_requests_total", outcome="abandoned") == before + 1)
    assert echo.readiness()["running"] == 0


def test_two_at_once_have_progress_and_cancel_of_their_own(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.ask_for(steps=30)
    cards = [visit.generate(prompt) for prompt in ("the first", "the second", "the third")]
    expect(cards[2]).to_contain_text("ahead")
    expect(cards[0]).to_contain_text("Step ")
    cards[1].get_by_role("button", name="Cancel").click()
    expect(visit.cards).to_have_count(2)
    for card in (cards[0], cards[2]):
        expect(card.locator(".compare")).to_be_visible()


def test_several_images_are_chosen_from(visit: Visit) -> None:
    visit.upload(png(64, 64))
    visit.page.get_by_text("More", exact=True).click()
    visit.slide("Images", 3)
    card = visit.make("three of them", seed=2**64 - 2)
    choices = card.get_by_role("group", name="Choose an image").get_by_role("button")
    expect(choices).to_have_count(3)
    assert facts(card)["Seed"] == str(2**64 - 2)
    assert card.locator(".compare").evaluate("compare => compare.clientWidth > 0.9 * compare.parentElement.clientWidth")
    choices.nth(2).click()
    expect(choices.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(card.locator(".facts")).to_contain_text(str(-(2**63)))
    assert facts(card)["Seed"] == str(-(2**63))


def test_the_same_again_has_another_seed_and_a_result_can_be_the_next_image(visit: Visit) -> None:
    visit.upload(png(64, 64))
    card = visit.make("once more", seed=5)
    card.get_by_role("button", name="Another seed").click()
    expect(visit.page.locator(".compare")).to_have_count(2)
    seeds = [facts(each)["Seed"] for each in visit.cards.all()]
    assert len(seeds) == 2
    assert seeds[1] == "5" != seeds[0]
    before = visit.page.locator("#input-image").get_attribute("src")
    card.get_by_role("button", name="Use as image").click()
    expect(visit.page.locator("#input-image")).not_to_have_attribute("src", before or "")


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_an_image_is_pasted_or_dropped(visit: Visit, event: str) -> None:
    visit.page.evaluate(
        """([kind, bytes]) => {
          const carried = new DataTransfer();
          carried.items.add(new File([new Uint8Array(bytes)], 'p.png', {type: 'image/png'}));
          const event = kind === 'paste'
            ? new ClipboardEvent(kind, {clipboardData: carried, bubbles: true, cancelable: true})
            : new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true});
          document.body.dispatchEvent(event);
        }""",
        [event, list(png(64, 64))],
    )
    expect(visit.page.locator("#edges-image")).to_be_visible()


def test_a_photograph_is_made_smaller_before_it_is_sent(visit: Visit) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    large = np.kron(noise, np.ones((100, 100, 1), np.uint8)).astype(np.uint8)
    visit.upload(file_of(large))
    assert pixels_of(downloaded(visit, visit.make())).shape == (1536, 2048, 3)


def test_configured_values_are_not_sent(visit: Visit) -> None:
    visit.page.evaluate("""() => {
      const [fetch, sent] = [window.fetch, window.sent = []];
      window.fetch = (path, options) => {
        if (options.body instanceof FormData) sent.push([...options.body.keys()]);
        return fetch(path, options);
      };
    }""")
    visit.upload(png(64, 64))
    visit.make("plain")
    visit.page.get_by_text("More", exact=True).click()
    visit.slide("Steps", 9)
    visit.slide("Temperature", 0.5)
    visit.page.get_by_label("Negative prompt").fill("rain")
    visit.make("with more")
    assert visit.page.evaluate("sent") == [
        ["text", "random_seed", "embed_metadata", "input_image"],
        ["text", "random_seed", "steps", "temperature", "negative_prompt", "embed_metadata", "input_image"],
    ]
