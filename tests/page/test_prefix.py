"""The page and /docs behind a path of a proxy, in a real browser: whatever the service knows of the proxy."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.test_docs import IMAGE
from tests.page.visiting import DESKTOP, PATIENCE_MS
from tests.service.proxy import proxied
from tests.service.running import Service

PREFIX = "/our/contour"
WAYS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "by configuration": ({"SERVER__ROOT_PATH": PREFIX}, {"strips": False}),
    "by the proxy's word": ({"SERVER__TRUSTED_PROXIES": '["127.0.0.1"]'}, {"headers": {"X-Forwarded-Prefix": PREFIX}}),
    "unknown to the service": ({}, {"strips": True}),
}


@pytest.fixture(scope="module", params=list(WAYS))
def behind(request: pytest.FixtureRequest, browser: Browser) -> Iterator[str]:
    """The address of a service at a proxy."""
    settings, manner = WAYS[request.param]
    with ExitStack() as stack:
        service = Service("echo", WORKERS__CPU_WORKERS=1, ENGINE__OUTPUT__FORMAT="png", **settings)
        stack.enter_context(service).wait_until_ready()
        yield stack.enter_context(proxied(service.url, PREFIX, **manner))


@pytest.fixture
def page(browser: Browser, behind: str) -> Iterator[Page]:
    context = browser.new_context(viewport=DESKTOP)
    context.set_default_timeout(PATIENCE_MS)
    page, asked, complaints = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    context.close()
    assert complaints == []
    origin = behind.removesuffix(PREFIX)
    assert [url for url in asked if url.startswith(origin) and not url.startswith(f"{behind}/")] == []


def test_an_image_is_made_on_the_page(page: Page, behind: str) -> None:
    page.goto(f"{behind}/")
    expect(page.locator("#model")).to_contain_text("echo")
    page.locator("input[type=file]").first.set_input_files(IMAGE)
    page.locator("#prompt").fill("a circle")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("link", name="Download").first).to_be_visible()


def test_the_api_is_tried_on_docs(page: Page, behind: str) -> None:
    page.goto(f"{behind}/docs")
    operation = page.locator("[id$='-health'].opblock")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    row = operation.locator(".live-responses-table tr.response")
    expect(row.locator(".response-col_status").first).to_contain_text("200")
    expect(operation.locator(".request-url")).to_contain_text(f"{behind}/healthz")


def test_the_page_leads_to_docs_and_docs_are_there_with_a_slash(page: Page, behind: str) -> None:
    page.goto(f"{behind}/")
    page.get_by_role("link", name="API").click()
    expect(page.locator(".opblock").first).to_be_visible()
    assert page.url == f"{behind}/docs"
    page.goto(f"{behind}/docs/")
    expect(page.locator(".opblock").first).to_be_visible()
