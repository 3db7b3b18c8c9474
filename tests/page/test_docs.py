"""`/docs` in a real browser: all is shown, can be tried, and comes from here."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.page.visiting import DESKTOP, PATIENCE_MS
from tests.service.running import ROOT, Service

IMAGE = ROOT / "app" / "docs" / "example.png"


@dataclass
class Reader:
    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, name: str) -> Locator:
        """Unfold an operation and make it ready to be tried."""
        operation = self.page.locator(f"[id$='-{name}'].opblock")
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        return operation

    def execute(self, operation: Locator) -> Locator:
        """Try an operation; the row of what came back."""
        operation.get_by_role("button", name="Execute").click()
        return operation.locator(".live-responses-table tr.response")


@pytest.fixture
def reader(browser: Browser, echo: Service) -> Iterator[Reader]:
    context = browser.new_context(viewport=DESKTOP)
    context.set_default_timeout(PATIENCE_MS)
    reader = Reader(context.new_page())
    reader.page.on("console", lambda message: reader.complaints.append(message.text))
    reader.page.on("pageerror", lambda error: reader.complaints.append(str(error)))
    reader.page.on("request", lambda request: reader.asked.append(request.url.removeprefix("blob:")))
    reader.page.goto(f"{echo.url}/docs")
    expect(reader.page.locator(".opblock").first).to_be_visible()
    yield reader
    context.close()
    assert reader.complaints == []  # the policy's, above all
    assert [url for url in reader.asked if not url.startswith(f"{echo.url}/")] == []


def test_every_operation_is_shown(reader: Reader, echo: Service) -> None:
    paths = echo.client.get("/openapi.json").json()["paths"]
    described = {(method.upper(), path) for path, node in paths.items() for method in node}
    blocks = reader.page.locator(".opblock")
    expect(blocks).to_have_count(len(described))
    shown = {
        (
            each.locator(".opblock-summary-method").inner_text(),
            str(each.locator("[data-path]").get_attribute("data-path")),
        )
        for each in blocks.all()
    }
    assert shown == described
    assert f"{echo.url}/docs/swagger-ui-bundle.js" in reader.asked


def test_the_service_can_be_asked_whether_it_is_there(reader: Reader) -> None:
    row = reader.execute(reader.open("health"))
    expect(row.locator(".response-col_status").first).to_contain_text("200")
    expect(row).to_contain_text('"status": "ok"')


def test_an_image_can_be_made(reader: Reader) -> None:
    operation = reader.open("generate")
    operation.locator(".opblock-section-request-body select.content-type").select_option("image/png")
    operation.locator("tr[data-param-name=text] input").fill("a circle")
    operation.locator("input[type=file]").set_input_files(IMAGE)
    operation.locator("tr.response[data-code='200'] select.content-type").select_option("image/webp")
    row = reader.execute(operation)
    expect(row.locator(".response-col_status").first).to_contain_text("200")
    expect(row.locator("img")).to_have_js_property("naturalWidth", 64)


def test_the_example_makes_an_image_as_it_stands(reader: Reader) -> None:
    row = reader.execute(reader.open("generate"))
    expect(row.locator(".response-col_status").first).to_contain_text("200")
    expect(row).to_contain_text("output_image_base64")
