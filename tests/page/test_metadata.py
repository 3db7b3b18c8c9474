"""A browser shows an image file that tells what made it as it shows one that does not."""

import base64

import numpy as np
import pytest
from playwright.sync_api import Browser

from workers.engine import codec
from workers.engine.config import Output
from workers.engine.contract import Format
from workers.engine.metadata import embed

NOISE = np.random.default_rng(1).integers(0, 256, (63, 97, 3), np.uint8)
# The pixels of an image, or why there are none.
SHOWN = """async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [canvas.width, canvas.height, ...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_a_browser_shows_the_same_with_metadata(browser: Browser, file_format: Format) -> None:
    plain = codec.encode(NOISE, Output(), file_format)
    page = browser.new_page()
    shown = [
        page.evaluate(SHOWN, f"data:image/{file_format};base64,{base64.b64encode(file).decode()}")
        for file in (plain, embed(plain, None), embed(plain, "a \N{HEAVY BLACK HEART}\nSteps: 1, Seed: 2, Size: 97x63"))
    ]
    page.close()
    assert shown[0][:2] == [97, 63]
    assert shown[1] == shown[0]
    assert shown[2] == shown[0]
