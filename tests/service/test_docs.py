"""`/docs`, as files: their versions, their forms, and where they come from."""

import gzip
import json
from hashlib import sha256

import pytest

from tests.service.running import ROOT, Service

SWAGGER_UI = ROOT / "app" / "docs" / "swagger-ui"
SOURCE = json.loads((SWAGGER_UI / "source.json").read_text())
BUNDLE = "/docs/swagger-ui-bundle.js"


@pytest.mark.parametrize("name", sorted(SOURCE["sha256"]))
def test_vendored_files_are_those_that_were_fetched(name: str) -> None:
    plain, compressed = SWAGGER_UI / name, SWAGGER_UI / f"{name}.gz"
    body = gzip.decompress(compressed.read_bytes()) if compressed.exists() else plain.read_bytes()
    assert sha256(body).hexdigest() == SOURCE["sha256"][name]


def test_nothing_is_loaded_from_elsewhere(echo: Service) -> None:
    page = echo.client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "://" not in page.text
    policy = dict(each.split(" ", 1) for each in page.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")


@pytest.mark.parametrize("coding", ["gzip", "br, GZIP ; q=0.5", "*"])
def test_clients_that_accept_gzip_get_it(echo: Service, coding: str) -> None:
    with echo.client.stream("GET", BUNDLE, headers={"accept-encoding": coding}) as response:
        sent = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == "gzip"
    assert len(sent) < 600_000
    assert sha256(gzip.decompress(sent)).hexdigest() == SOURCE["sha256"]["swagger-ui-bundle.js"]


@pytest.mark.parametrize("coding", ["identity", "gzip;q=0", "gzip; q=0.000, br", ""])
def test_clients_that_do_not_accept_gzip_do_not_get_it(echo: Service, coding: str) -> None:
    response = echo.client.get(BUNDLE, headers={"accept-encoding": coding})
    assert "content-encoding" not in response.headers
    assert sha256(response.content).hexdigest() == SOURCE["sha256"]["swagger-ui-bundle.js"]


@pytest.mark.parametrize("path", ["/docs", BUNDLE])
def test_a_cached_file_is_not_sent_again(echo: Service, path: str) -> None:
    first = echo.client.get(path)
    again = echo.client.get(path, headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert again.headers["cache-control"] == "no-cache"
    assert echo.client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_each_form_of_a_file_has_a_version_of_its_own(echo: Service) -> None:
    tags = {
        echo.client.get(BUNDLE, headers={"accept-encoding": coding}).headers["etag"] for coding in ("gzip", "identity")
    }
    assert len(tags) == 2


@pytest.mark.parametrize("path", ["/docs", BUNDLE])
def test_head_is_get_without_a_body(echo: Service, path: str) -> None:
    head, get = echo.client.head(path), echo.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    same = ("content-type", "etag", "content-length")
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]


@pytest.mark.parametrize("name", ["source.json", "LICENSE", "%2e%2e%2fserver.py", "swagger-ui-bundle.js.gz"])
def test_nothing_else_is_served(echo: Service, name: str) -> None:
    assert echo.client.get(f"/docs/{name}").status_code == 404
