"""Errors on the page, and the advice about them."""

import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest
from playwright.sync_api import TimeoutError, expect  # noqa: A004

from tests.page.conftest import Visitor
from tests.page.visiting import Visit
from tests.service.running import Service, png, until

KEY = "a-key-2cf24dba5fb0a30e"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Service]:
    """A service that asks for a key, takes small files only, and has no queue to speak of."""
    limits = {"SERVER__MAX_IMAGE_BYTES": 20_000, "SCHEDULER__MAX_QUEUE": 1, "WORKERS__CPU_WORKERS": 1}
    steps = {"ENGINE__ECHO__STEPS": 60, "ENGINE__ECHO__STEP_SECONDS": 0.1, "ENGINE__SLOTS": 1}
    with Service("echo", SERVER__API_KEY=KEY, **limits, **steps) as service:
        yield service.wait_until_ready()


@pytest.fixture
def known(visitor: Visitor, guarded: Service) -> Visit:
    """A visit by who has the key."""
    visit = visitor(guarded)
    visit.page.get_by_label("API key", exact=True).fill(KEY)
    visit.page.get_by_role("button", name="Use it").first.click()
    return visit


def test_a_missing_field_is_named_and_focused(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Generate").click()
    expect(visit.page.get_by_text("First choose, draw or paste an image.")).to_be_visible()
    expect(visit.page.get_by_role("button", name="Choose")).to_be_focused()
    visit.upload(png(64, 64))
    visit.page.get_by_role("button", name="Generate").click()
    prompt = visit.page.get_by_label("Prompt", exact=True)
    expect(prompt).to_be_focused()
    expect(prompt).to_have_attribute("aria-invalid", "true")
    prompt.fill("a ring")
    seed = visit.page.get_by_label("Seed", exact=True)
    for wrong in ("1.5", str(2**64)):
        seed.fill(wrong)
        visit.page.get_by_role("button", name="Generate").click()
        expect(seed).to_be_focused()
    expect(visit.cards).to_have_count(0)
    visit.page.get_by_role("button", name="Random seed").click()
    visit.page.get_by_role("button", name="Generate").click()
    expect(visit.cards).to_have_count(1)
    expect(seed).to_have_attribute("aria-invalid", "false")


def test_a_file_that_is_no_image_is_called_that(visit: Visit) -> None:
    visit.page.locator("#file").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": b"no image"})
    expect(visit.page.get_by_role("alert").filter(has_text="That file isn't an image.")).to_be_visible()


def test_refusals_are_shown_in_the_services_words(known: Visit) -> None:
    known.page.locator("#file").set_input_files(
        {"name": "p.png", "mimeType": "image/png", "buffer": png(64, 64) + bytes(30_000)}
    )
    expect(known.page.locator("#edges-image")).to_be_visible()  # made anew, it is small enough
    spoiled = {"content-type": "text/x"}
    known.page.route("**/generation/", lambda route: route.continue_(headers=route.request.headers | spoiled))
    card = known.generate("refused")
    expect(card.get_by_role("alert")).to_contain_text("The body's type is not supported.")


def test_too_much_at_once_is_refused_until_later(known: Visit, guarded: Service) -> None:
    known.upload(png(64, 64))
    cards = [known.generate(f"image {n}") for n in range(4)]
    refused = known.page.get_by_role("alert").filter(has_text="share of the queue").first
    expect(refused).to_contain_text("Try again in")
    expect(refused.get_by_role("button", name="Try again")).to_contain_text(" s")
    for card in cards[:2]:
        with suppress(TimeoutError):  # on a busy machine it may be done by now, which makes room as well
            card.get_by_role("button", name="Cancel").click(timeout=5_000)
    until(lambda: guarded.sample("contour_jobs_running") == 0)  # else trying again is too early
    refused.get_by_role("button", name="Try again").click()
    expect(known.cards.first.locator(".compare")).to_be_visible()


def test_the_key_is_asked_for_and_kept_for_this_tab_only(visitor: Visitor, guarded: Service) -> None:
    visit = visitor(guarded)
    field = visit.page.get_by_label("API key", exact=True)
    expect(field).to_be_visible()
    field.fill("a wrong one")
    field.press("Enter")
    expect(field).to_be_hidden()
    visit.page.locator("#file").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": png(64, 64)})
    expect(field).to_be_focused()
    expect(visit.page.get_by_role("alert").filter(has_text="This API key is not valid.")).to_be_visible()
    field.fill(KEY)
    field.press("Enter")
    expect(visit.page.locator("#edges-image")).to_be_visible()
    visit.page.reload()
    expect(visit.page.locator("#seed")).not_to_have_value("")
    expect(field).to_be_hidden()
    visit.upload(png(64, 64))
    assert KEY in visit.page.evaluate("Object.values(sessionStorage)")
    assert visit.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_service_that_is_gone_is_said_to_be(visitor: Visitor) -> None:
    steps = {"ENGINE__ECHO__STEPS": 50, "ENGINE__ECHO__STEP_SECONDS": 0.1}
    with Service("echo", WORKERS__CPU_WORKERS=1, **steps) as service:
        visit = visitor(service.wait_until_ready())
        visit.upload(png(64, 64))
        card = visit.generate("lost")
        expect(card).to_contain_text("Step ")
        service.stop(signal.SIGKILL)
        alert = card.get_by_role("alert")
        expect(alert).to_contain_text("The connection to the server was lost.")
        alert.get_by_role("button", name="Try again").click()
        expect(visit.cards.first.get_by_role("alert")).to_contain_text(
            "No answer from the server. Check that you are online"
        )
        visit.complaints = [each for each in visit.complaints if "net::ERR_" not in each]
