"""Line art used as the edges, inverted where its lines are dark."""

import numpy as np
from playwright.sync_api import expect

from tests.page.visiting import Visit, downloaded, facts
from tests.service.running import Pixels, file_of, pixels_of, png

# The fields of requests as they are sent.
RECORD = """() => {
  const [fetch, sent] = [window.fetch, window.sent = []];
  window.fetch = (path, options) => {
    if (options?.body instanceof FormData) {
      sent.push(Object.fromEntries([...options.body].filter(([, value]) => typeof value === 'string')));
    }
    return fetch(path, options);
  };
}"""

# An image's pixels, as text.
PIXELS = """image => {
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  canvas.getContext('2d').drawImage(image, 0, 0);
  return canvas.toDataURL();
}"""


def line_art() -> Pixels:
    """A black frame on white."""
    drawing = np.full((64, 96, 3), 255, np.uint8)
    drawing[20:44, 30:66] = 0
    drawing[24:40, 34:62] = 255
    return drawing


def test_line_art_is_sent_as_edges_white_on_black(visit: Visit) -> None:
    page = visit.page
    page.evaluate(RECORD)
    visit.upload(file_of(line_art()))
    expect(page.get_by_label("Faint edges from")).to_be_visible()
    visit.slide("Faint edges from", 42)
    page.get_by_label("Use as edges").check()
    expect(page.get_by_label("Faint edges from")).to_be_hidden()
    page.get_by_role("button", name="Invert it").click()
    expect(page.get_by_role("button", name="Invert it")).to_be_hidden()
    card = visit.make("a frame", seed=3)
    sent = page.evaluate("sent")[0]
    assert sent["control_image"] == "edges"
    assert not {"canny_low", "canny_high"} & sent.keys()
    assert (pixels_of(downloaded(visit, card)) == 255 - line_art()).all()
    assert facts(card)["Edges"] == "the image itself"
    page.get_by_label("Use as edges").uncheck()
    card.get_by_role("button", name="Use settings").click()
    expect(page.get_by_label("Use as edges")).to_be_checked()


def test_the_preview_is_the_image_itself_and_the_servers_edges_come_back(visit: Visit) -> None:
    page = visit.page
    visit.upload(file_of(255 - line_art()))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2].partition("?")[0]))
    page.get_by_label("Use as edges").check()
    expect(page.locator("#edges-image.as-they-are")).to_be_visible()
    shown, given = [page.locator(each).evaluate(PIXELS) for each in ("#edges-image", "#input-image")]
    assert shown == given
    expect(page.get_by_role("button", name="Invert it")).to_be_hidden()
    assert "edges" not in asked
    page.get_by_label("Use as edges").uncheck()
    expect(page.locator("#edges-image:not(.as-they-are)")).to_be_visible()
    assert "edges" in asked


def test_a_black_drawing_is_said_to_have_no_lines(visit: Visit) -> None:
    visit.upload(file_of(np.zeros((64, 64, 3), np.uint8)))
    visit.page.get_by_label("Use as edges").check()
    expect(visit.page.get_by_text("This image is all black: it has no lines.")).to_be_visible()
    visit.upload(png(64, 64))
    expect(visit.page.locator("#edges-state")).to_be_hidden()
