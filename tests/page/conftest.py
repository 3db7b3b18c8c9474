"""One browser and two services for all tests of the page; both end with the last of these tests.

Playwright keeps an event loop running in this thread, so it must not outlive its own tests.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from playwright.sync_api import Browser

from tests.page.visiting import CHROMIUM, Visit, chromium
from tests.service.running import Service

Visitor: TypeAlias = Callable[..., Visit]

STEPS = 8


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("the page is tried in Chromium, which is not installed: apt-get install chromium")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def echo() -> Iterator[Service]:
    """A service that gives images back as they are, one at a time, in about a second; six of one client may wait."""
    steps = {"ENGINE__ECHO__STEPS": STEPS, "ENGINE__ECHO__STEP_SECONDS": 0.12, "ENGINE__SLOTS": 1}
    overrides = {"WORKERS__CPU_WORKERS": 1, "SCHEDULER__MAX_QUEUE": 12, "ENGINE__OUTPUT__FORMAT": "png"}
    with Service("echo", **steps, **overrides) as service:
        yield service.wait_until_ready()


@pytest.fixture
def visitor(browser: Browser, echo: Service) -> Iterator[Visitor]:
    """Visit the echo service, or another; the browser must have had nothing to complain of."""
    visits: list[Visit] = []

    def visit(service: Service = echo, **options: Any) -> Visit:
        visits.append(Visit(browser, service, **options))
        return visits[-1]

    yield visit
    for each in visits:
        each.context.close()
    assert [complaint for each in visits for complaint in each.complaints] == []


@pytest.fixture
def visit(visitor: Visitor) -> Visit:
    """A visit at a desk."""
    return visitor()
