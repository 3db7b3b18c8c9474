"""Which pages may use the service, and under which host names: what other pages make a browser send is refused."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.service.raw import answers, connect, head, read
from tests.service.running import Service, good_request, png

EVIL = "https://evil.example"
FRIEND = "https://friend.example"
# Each is sent by a page of another origin without asking first: no preflight stands between.
SENT_WITHOUT_ASKING: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "json": ("POST", "/generation/", {"json": good_request()}),
    "form": ("POST", "/generation", {"data": {"text": "x"}, "files": {"input_image": png(64, 64)}}),
    "image": ("POST", "/generation/?text=x", {"content": png(64, 64), "headers": {"Content-Type": "image/png"}}),
    "edges": ("POST", "/edges", {"content": png(64, 64), "headers": {"Content-Type": "image/png"}}),
    "edit": ("POST", "/v1/images/edits", {"data": {"prompt": "x"}, "files": {"image": png(64, 64)}}),
    "interrupt": ("POST", "/sdapi/v1/interrupt", {}),
    "progress": ("GET", "/sdapi/v1/progress", {}),
    "settings": ("GET", "/settings.json", {}),
    "unknown": ("GET", "/nothing", {}),
}
FOREIGN = {
    "foreign origin": {"Origin": EVIL},
    "null origin": {"Origin": "null"},
    "another port": {"Origin": "http://localhost:1"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "contradictory": {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    "typed, but with an origin": {"Origin": EVIL, "Sec-Fetch-Site": "none"},
}


@pytest.fixture(scope="module")
def opened() -> Iterator[Service]:
    """A service that one other origin may use, under a name of its own."""
    lists = {"SERVER__ALLOWED_ORIGINS": f'["{FRIEND}"]', "SERVER__ALLOWED_HOSTS": '["art.example", "*.lan.example"]'}
    with Service("echo", WORKERS__CPU_WORKERS=1, **lists) as service:
        yield service.wait_until_ready()


def send(service: Service, name: str, headers: Mapping[str, str]) -> httpx.Response:
    method, path, content = SENT_WITHOUT_ASKING[name]
    return service.client.request(method, path, **content | {"headers": {**content.get("headers", {}), **headers}})


@pytest.mark.parametrize("name", SENT_WITHOUT_ASKING)
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_page_is_refused(echo: Service, name: str, headers: Mapping[str, str]) -> None:
    refused = send(echo, name, headers)
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:contour:problem:foreign-origin")
    assert "server.allowed_origins" in refused.json()["detail"]
    assert "access-control-allow-origin" not in refused.headers
    assert echo.readiness()["running"] == echo.readiness()["queued"] == 0


@pytest.mark.parametrize("path", ["/", "/docs", "/page/main.js", "/openapi.json", "/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_anybody_may_link_to_a_page_or_probe_but_not_read_it(
    echo: Service, path: str, headers: Mapping[str, str]
) -> None:
    shown = echo.client.get(path, headers=headers)
    assert shown.status_code == 200
    assert "access-control-allow-origin" not in shown.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://art.example"},  # behind a proxy that changes Host
        {"Origin": "https://localhost:8000", "Host": "localhost:8000"},  # behind a proxy that speaks TLS
        {"Origin": "HTTP://LOCALHOST:8000", "Host": "localhost:8000"},
    ],
)
def test_programs_and_our_own_page_may_ask(echo: Service, headers: Mapping[str, str]) -> None:
    assert send(echo, "json", headers).status_code == 200


def test_an_allowed_origin_may_ask_and_read(opened: Service) -> None:
    preflight = opened.client.options(
        "/generation/",
        headers={
            "Origin": FRIEND,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,authorization,x-api-key,prefer",
            "Access-Control-Request-Private-Network": "true",
            "Sec-Fetch-Site": "cross-site",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == FRIEND
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert {"content-type", "authorization", "x-api-key", "prefer"} <= {
        each.strip().lower() for each in preflight.headers["access-control-allow-headers"].split(",")
    }
    assert preflight.headers["access-control-allow-private-network"] == "true"
    made = send(opened, "json", {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site"})
    assert (made.status_code, made.headers["access-control-allow-origin"]) == (200, FRIEND)
    readable = made.headers["access-control-expose-headers"].lower()
    assert "x-request-id" in readable
    assert "x-contour-warning" in readable
    wrong = opened.client.post("/generation/", json={}, headers={"Origin": FRIEND})
    assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (422, FRIEND)


def test_other_origins_are_refused_although_one_is_allowed(opened: Service) -> None:
    for origin in (EVIL, f"{FRIEND}:8443", FRIEND.replace("https", "http"), f"{FRIEND}.evil.example", "null"):
        refused = send(opened, "json", {"Origin": origin})
        assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (403, None)
    preflight = opened.client.options("/generation/", headers={"Origin": EVIL, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "evillocalhost",
        "user@localhost",
        "evil.example, localhost",
        "localhost..",
        "[::1].evil.example",
        "[::1%evil]",
        "",
        "[::2]:80",
    ],
)
@pytest.mark.parametrize("path", ["/", "/sdapi/v1/progress", "/readyz", "/nothing"])
def test_an_unknown_host_is_refused(echo: Service, host: str, path: str) -> None:
    refused = echo.client.get(path, headers={"Host": host, "Sec-Fetch-Site": "same-origin"})
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:contour:problem:unknown-host")
    assert "server.allowed_hosts" in refused.json()["detail"]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1",
        "127.1.2.3:80",
        "[::1]:8000",
        "0.0.0.0:8000",
        "[::]:8000",
        "a.localhost",
    ],
)
def test_names_and_addresses_of_this_machine_are_known(echo: Service, host: str) -> None:
    assert echo.client.get("/sdapi/v1/progress", headers={"Host": host}).status_code == 200


def test_allowed_hosts_are_known(opened: Service) -> None:
    known = ("art.example", "Art.Example:443", "art.example.", "gpu1.lan.example", "localhost", "127.0.0.1:8000")
    assert {opened.client.get("/settings.json", headers={"Host": host}).status_code for host in known} == {200}
    unknown = ("lan.example", "evil.example", "xart.example", "art.example.evil.example")
    assert {opened.client.get("/settings.json", headers={"Host": host}).status_code for host in unknown} == {403}


@pytest.mark.parametrize("name", ["Origin", "Sec-Fetch-Site"])
def test_two_of_a_header_are_refused(echo: Service, name: str) -> None:
    ours = {"Origin": echo.url, "Sec-Fetch-Site": "same-origin"}[name]
    for values in ((ours, EVIL), (EVIL, ours), (ours, ours)):
        headers = [(name, value) for value in values]
        assert echo.client.get("/settings.json", headers=headers).status_code == 403


def test_two_hosts_are_refused_if_one_is_unknown(echo: Service) -> None:
    with connect(echo) as connection:
        connection.sendall(head("Host: evil.example", method="GET", path="/settings.json"))
        (answer,) = answers(read(connection))
    assert answer.status == 403


def test_beyond_loopback_any_host_is_taken_until_some_are_named() -> None:
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__HOST="0.0.0.0") as service:
        log = "".join(service.log)
        assert "any Host header is accepted; server.allowed_hosts limits it" in log
        assert "without API keys: anyone who can reach it can use it" in log
        assert service.client.get("/settings.json", headers={"Host": "any.example"}).status_code == 200
        assert service.client.get("/settings.json", headers={"Origin": EVIL}).status_code == 403
    named = {"SERVER__HOST": "0.0.0.0", "SERVER__ALLOWED_HOSTS": '["art.example"]'}
    with Service("echo", WORKERS__CPU_WORKERS=1, **named) as service:
        assert "any Host header is accepted" not in "".join(service.log)
        statuses = {
            host: service.client.get("/settings.json", headers={"Host": host}).status_code
            for host in ("any.example", "art.example", "127.0.0.1")
        }
    assert statuses == {"any.example": 403, "art.example": 200, "127.0.0.1": 200}


def test_json_needs_its_content_type(echo: Service) -> None:
    body = json.dumps(good_request()).encode()
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        for path in ("/generation/", "/edges", "/sdapi/v1/txt2img", "/sdapi/v1/options"):
            refused = echo.client.post(path, content=body, headers=headers)
            assert refused.status_code == 415, (path, headers)


def test_every_answer_is_kept_by_no_cache_and_taken_for_no_other_type(echo: Service) -> None:
    asked = [
        echo.generate(),
        echo.generate(steps=0),
        send(echo, "json", {"Accept": "text/event-stream"}),
        send(echo, "edges", {}),
        send(echo, "edit", {}),
        send(echo, "progress", {}),
        send(echo, "json", {"Origin": EVIL}),
        echo.client.get("/nothing"),
        echo.client.get("/readyz"),
    ]
    for answer in asked:
        assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
    page = echo.client.get("/")
    assert (page.headers["cache-control"], page.headers["x-content-type-options"]) == ("no-cache", "nosniff")
