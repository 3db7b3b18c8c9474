"""python -m tests.page.screenshots: the two screenshots in docs/interfaces.md, made with the small model.

python -m tests.page.screenshots --to example
"""

import argparse
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from tests.page.visiting import CHROMIUM, DESKTOP, PHONE, Options, Visit, chromium
from tests.service.running import ROOT, Service

COLOURS = 256  # of the palette: the page has few, and a file without loss would be four times as large
SEED = 11
SCREENS: dict[str, Options] = {
    "page-desktop.png": {"viewport": DESKTOP, "color_scheme": "light"},
    "page-phone.png": {"viewport": PHONE, "color_scheme": "dark", "has_touch": True, "is_mobile": True},
}


def main(arguments: Sequence[str]) -> int:
    """Take them; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.page.screenshots", description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "example", help="a folder")
    folder = parser.parse_args(arguments).to
    if CHROMIUM is None:
        print("Chromium is needed: apt-get install chromium", file=sys.stderr)
        return 1
    with Service("demo") as service, chromium() as browser:
        service.wait_until_ready()
        for name, screen in SCREENS.items():
            image = small(taken(Visit(browser, service, **screen)))
            (folder / name).write_bytes(image)
            print(f"{folder / name}: {len(image)} bytes")
    return 0


def taken(visit: Visit) -> bytes:
    """A finished image, half of it still as it came."""
    visit.page.locator("#examples button").first.click()
    expect(visit.page.locator("#edges-image")).to_be_visible()
    card = visit.make("a red heart, a yellow star and a white ring on a green background", SEED)
    card.get_by_label("How much of before is shown").fill("42")
    if visit.page.viewport_size == PHONE:
        card.evaluate("card => card.scrollIntoView()")
    else:
        visit.page.evaluate(
            "[document.documentElement, document.querySelector('#compose')].forEach(it => it.scrollTo(0, 0))"
        )
    visit.page.mouse.move(0, 0)
    return visit.page.screenshot(animations="disabled")


def small(screenshot: bytes) -> bytes:
    """The same in fewer colours."""
    out = BytesIO()
    with Image.open(BytesIO(screenshot)) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
