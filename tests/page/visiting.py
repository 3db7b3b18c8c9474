"""The page in a real browser, used as a person uses it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, ViewportSize, expect, sync_playwright

from tests.service.running import Service

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REBOUND = "rebound.example"  # a name that leads to this machine, as a page's owner can arrange by DNS
FLAGS = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
]
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
PATIENCE_MS = 120_000
# A browser says of each answer that is an error that it could not be loaded.
EXPECTED = "Failed to load resource: the server responded with a status of"
Options: TypeAlias = dict[str, Any]

expect.set_options(timeout=PATIENCE_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. As root it has to do without a sandbox."""
    assert CHROMIUM is not None
    with sync_playwright() as playwright:
        flags = FLAGS + ["--no-sandbox"] * (os.geteuid() == 0)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Visit:
    """One person's visit. `complaints` is what the browser's console says that it should not."""

    def __init__(self, browser: Browser, service: Service, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": DESKTOP} | options))
        self.context.set_default_timeout(PATIENCE_MS)
        self.complaints: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(service.url)
        expect(self.page.locator("#seed")).not_to_have_value("")

    @property
    def cards(self) -> Locator:
        """Requests and results, the newest first."""
        return self.page.locator(".card")

    def upload(self, image: bytes) -> None:
        """Choose a file, and wait for its edges."""
        self.page.locator("#file").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": image})
        expect(self.page.locator("#edges-image")).to_be_visible()

    def generate(self, prompt: str, seed: int = 7) -> Locator:
        """Ask for an image; its card."""
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.page.get_by_label("Seed", exact=True).fill(str(seed))
        self.page.get_by_role("button", name="Generate").click()
        return self.cards.filter(has_text=prompt).first

    def make(self, prompt: str = "a red circle", seed: int = 7) -> Locator:
        """Ask for an image and wait for it; its card."""
        card = self.generate(prompt, seed)
        expect(card.locator(".compare")).to_be_visible()
        return card

    def slide(self, label: str, value: float) -> None:
        """Set a slider."""
        self.page.get_by_label(label, exact=True).fill(str(value))

    def ask_for(self, steps: int) -> None:
        """Have images take longer from now on, so that what is seen on the way is there for long enough."""
        change = (
            "(slider, steps) => { slider.value = steps; slider.dispatchEvent(new Event('input', {bubbles: true})) }"
        )
        self.page.get_by_label("Steps", exact=True).evaluate(change, steps)

    def widens(self) -> bool:
        """Whether the page must be scrolled sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(EXPECTED):
            self.complaints.append(message.text)


def downloaded(visit: Visit, card: Locator) -> bytes:
    """The file that a card's button saves."""
    with visit.page.expect_download() as saving:
        card.get_by_role("link", name="Download").click()
    return Path(saving.value.path()).read_bytes()


def facts(card: Locator) -> dict[str, str]:
    """What a card says made its image, by name."""
    return dict(
        card.locator(".facts div").evaluate_all("all => all.map(each => [...each.children].map(it => it.textContent))")
    )
