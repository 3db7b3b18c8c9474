"""A page of another origin in a real browser: it can send what it likes, and the service takes none of it."""

import base64
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.page.visiting import REBOUND
from tests.service.running import Service, png

IMAGE = base64.b64encode(png(64, 64)).decode()
# Sends a request in each way that a browser sends without asking, and in the one that it asks for first.
SEND = """async ([url, image]) => {
  const bytes = Uint8Array.from(atob(image), (each) => each.charCodeAt(0));
  const form = new FormData();
  form.append("text", "x");
  form.append("input_image", new Blob([bytes], { type: "image/png" }));
  const json = JSON.stringify({ request_id: 1, text: "x", random_seed: 1, input_image_base64: image });
  const told = async (path, options) => {
    try {
      const answer = await fetch(url + path, { method: "POST", ...options });
      return answer.type === "opaque" ? "opaque" : String(answer.status);
    } catch {
      return "refused";
    }
  };
  return {
    untyped: await told("/generation/", { mode: "no-cors", body: new Blob([json]) }),
    text: await told("/generation/", { mode: "no-cors", body: json }),
    form: await told("/generation/", { mode: "no-cors", body: form }),
    interrupt: await told("/sdapi/v1/interrupt", { mode: "no-cors" }),
    json: await told("/generation/", { headers: { "Content-Type": "application/json" }, body: json }),
    read: await told("/sdapi/v1/progress", { method: "GET" }),
  };
}"""


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of another origin on this machine, with an empty page."""
    folder: Path = tmp_path_factory.mktemp("other")
    (folder / "index.html").write_text("<!doctype html><title>Another origin</title>")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser: Browser, other: str) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.goto(other)
    yield page
    context.close()


def outcomes(service: Service) -> dict[str, float]:
    names = ("done", "foreign-origin")
    return {name: service.sample("contour_requests_total", outcome=name) for name in names}


def test_a_page_of_another_origin_makes_nothing(page: Page, echo: Service) -> None:
    before = outcomes(echo)
    told = page.evaluate(SEND, [echo.url, IMAGE])
    # A browser tells a page nothing of what it may not read: the service's own figures do.
    assert told == dict.fromkeys(("untyped", "text", "form", "interrupt"), "opaque") | dict.fromkeys(
        ("json", "read"), "refused"
    )
    after = outcomes(echo)
    assert after["done"] == before["done"]
    assert after["foreign-origin"] == before["foreign-origin"] + 6
    assert echo.readiness()["running"] == echo.readiness()["queued"] == 0


def test_a_page_of_an_allowed_origin_is_served(page: Page, other: str) -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__ALLOWED_ORIGINS=f'["{other}"]') as service:
        service.wait_until_ready()
        told = page.evaluate(SEND, [service.url, IMAGE])
    assert told["json"] == told["read"] == "200"


def test_a_name_that_leads_here_reads_nothing(page: Page, echo: Service) -> None:
    """DNS rebinding: to the browser, the page of that name and the service are of one origin."""
    refused = page.goto(echo.url.replace("127.0.0.1", REBOUND))
    assert refused is not None
    assert (refused.status, refused.json()["type"]) == (403, "urn:contour:problem:unknown-host")
    told = page.evaluate(SEND, ["", IMAGE])
    assert set(told.values()) == {"403"}
