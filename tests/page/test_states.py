"""States with words and a way on, in place of black boxes."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from playwright.sync_api import Locator, expect

from tests.page.conftest import Visitor
from tests.page.test_errors import KEY
from tests.page.test_for_everybody import faults
from tests.page.visiting import Visit
from tests.service.running import Service, file_of, named, png, until


@pytest.fixture(scope="module")
def guarded() -> Iterator[Service]:
    with Service("echo", SERVER__API_KEY=KEY, WORKERS__CPU_WORKERS=1) as service:
        yield service.wait_until_ready()


def state(visit: Visit) -> Locator:
    """What is said where the edges would be."""
    return visit.page.locator("#edges-state")


def choose(visit: Visit, image: bytes) -> None:
    visit.page.locator("#file").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": image})


def online(visit: Visit, yes: bool) -> None:
    """Take the browser off the network, or put it back; it may complain of what it cannot load."""
    visit.context.set_offline(not yes)
    visit.complaints = [each for each in visit.complaints if "net::ERR_" not in each]


def test_no_edges_are_said_to_be_none_and_lower_thresholds_find_some(visit: Visit) -> None:
    faint = np.full((64, 64, 3), 128, np.uint8)
    faint[:, 32:] = 148
    choose(visit, file_of(faint))
    expect(state(visit)).to_contain_text("No edges: lower the thresholds")
    assert faults(visit) == []
    high = visit.page.get_by_label("Strong edges from", exact=True)
    expect(high).to_have_value("200")
    state(visit).get_by_role("button", name="Lower them").click()
    expect(high).to_have_value("100")
    expect(visit.page.get_by_label("Faint edges from", exact=True)).to_have_value("50")
    while state(visit).is_visible():
        before = high.input_value()
        state(visit).get_by_role("button").click()
        expect(high).not_to_have_value(before)
        expect(visit.page.locator("#edges-frame")).to_have_attribute("aria-busy", "false")
    assert int(high.input_value()) > 1


def test_an_image_without_any_edge_is_said_to_have_none(visit: Visit) -> None:
    choose(visit, file_of(np.full((64, 64, 3), 128, np.uint8)))
    for _ in range(8):
        expect(state(visit).get_by_role("button", name="Lower them")).to_be_visible()
        high = visit.page.get_by_label("Strong edges from", exact=True).input_value()
        if high == "1":
            break
        state(visit).get_by_role("button", name="Lower them").click()
        expect(visit.page.get_by_label("Strong edges from", exact=True)).not_to_have_value(high)
        if high in {"2", "3"}:
            break
    expect(state(visit)).to_contain_text("No edges in this image. Choose another one.")


def test_a_server_that_does_not_answer_is_asked_again(visit: Visit) -> None:
    visit.upload(png(64, 64))
    online(visit, False)
    choose(visit, png(96, 64))
    expect(state(visit)).to_contain_text("No answer from the server")
    banner = visit.page.locator("#server")
    expect(banner).to_contain_text("Check that you are online and that the server is running")
    assert faults(visit) == []
    state(visit).get_by_role("button", name="Try again").click()
    expect(state(visit)).to_contain_text("No answer from the server")
    card = visit.generate("to nobody")
    expect(card.get_by_role("alert")).to_contain_text("No answer from the server")
    online(visit, True)
    banner.get_by_role("button", name="Try again").click()
    expect(banner).to_be_hidden()
    expect(state(visit)).to_be_hidden()  # the edges came by themselves
    expect(visit.page.locator("#edges-image")).to_be_visible()
    card.get_by_role("button", name="Try again").click()
    expect(visit.cards.first.locator(".compare")).to_be_visible()
    online(visit, True)


@pytest.fixture(scope="module")
def stopped() -> Iterator[Service]:
    """A service whose processes may be stopped, and told to go on."""
    with Service("echo", WORKERS__CPU_WORKERS=1) as service:
        yield service.wait_until_ready()


def test_a_server_that_hangs_is_given_up(visitor: Visitor, stopped: Service) -> None:
    visit = visitor(stopped)
    visit.page.clock.install()
    visit.upload(png(64, 64))
    stopped.process.send_signal(signal.SIGSTOP)
    choose(visit, png(96, 64))
    expect(visit.page.locator("#edges-frame")).to_have_attribute("aria-busy", "true")
    visit.page.clock.fast_forward(1_000)
    with visit.page.expect_request("**/readyz"):  # it is asked whether it is there at all
        visit.page.clock.fast_forward(31_000)
    expect(state(visit)).to_contain_text("No answer from the server")
    visit.page.clock.fast_forward(31_000)
    expect(visit.page.locator("#server")).to_contain_text("No answer from the server")
    stopped.process.send_signal(signal.SIGCONT)
    visit.page.clock.fast_forward(5_000)
    expect(visit.page.locator("#server")).to_be_hidden()
    visit.page.clock.fast_forward(1_000)
    expect(visit.page.locator("#edges-image")).to_be_visible()


def test_the_page_says_so_when_it_gets_no_settings_and_tries_again(visitor: Visitor) -> None:
    visit = visitor()
    visit.page.route("**/settings.json", lambda route: route.abort())
    visit.page.reload()
    banner = visit.page.locator("#server")
    expect(banner).to_contain_text("No answer from the server")
    expect(visit.page.locator("#compose")).to_have_attribute("inert", "")
    visit.page.unroute("**/settings.json")
    banner.get_by_role("button", name="Try again").click()
    expect(banner).to_be_hidden()
    visit.upload(png(64, 64))
    visit.make()
    online(visit, True)


def test_where_a_key_is_needed_a_button_leads_to_its_field(visitor: Visitor, guarded: Service) -> None:
    visit = visitor(guarded)
    choose(visit, png(64, 64))
    field = visit.page.get_by_label("API key", exact=True)
    expect(state(visit)).to_contain_text("API key needed")
    visit.page.get_by_label("Prompt", exact=True).focus()
    state(visit).get_by_role("button", name="Enter the key").click()
    expect(field).to_be_focused()
    field.fill(KEY)
    field.press("Enter")
    expect(visit.page.locator("#edges-image")).to_be_visible()
    expect(state(visit)).to_be_hidden()


def test_a_server_whose_model_still_loads_says_so_and_takes_requests(visitor: Visitor) -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1) as service:
        until(lambda: bool(worker(service)))
        os.kill(worker(service), signal.SIGSTOP)
        if service.readiness()["ready"]:
            pytest.skip("the worker was ready before it could be stopped")
        visit = visitor(service)
        banner = visit.page.locator("#server")
        expect(banner).to_contain_text("The model is still loading.")
        visit.upload(png(64, 64))
        card = visit.generate("early")
        expect(card).to_contain_text("starts when the model has loaded")
        os.kill(worker(service), signal.SIGCONT)
        expect(card.locator(".compare")).to_be_visible()
        expect(banner).to_be_hidden()


def worker(service: Service) -> int:
    """The worker's process; 0 while there is none."""
    return named(service.descendants()).get("contour cpu0", 0)


def test_a_busy_server_says_so_and_is_asked_again(visitor: Visitor, stopped: Service) -> None:
    """The process that finds edges stands still, and other programs of this user wait for it: no more may."""
    with ThreadPoolExecutor(12) as programs:
        visit = visitor(stopped)
        visit.upload(png(64, 64))
        process = named(stopped.descendants())["contour edges"]
        os.kill(process, signal.SIGSTOP)
        headers = {"Content-Type": "image/png"}
        waiting = [
            programs.submit(stopped.client.post, "/edges", content=png(32, 32), headers=headers) for _ in range(12)
        ]
        until(lambda: any(each.done() for each in waiting))  # it was refused, as all places are taken
        choose(visit, png(96, 64))
        expect(state(visit)).to_contain_text("The server is busy")
        expect(visit.page.locator("#image-error")).to_contain_text("Try again in")
        os.kill(process, signal.SIGCONT)
        assert {each.result().status_code for each in waiting} == {200, 503}
        state(visit).get_by_role("button", name="Try again").click()
        expect(visit.page.locator("#edges-image")).to_be_visible()
        expect(state(visit)).to_be_hidden()
