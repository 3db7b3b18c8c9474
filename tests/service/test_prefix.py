"""A service behind a path of a proxy: every address in its answers is one that its clients can use."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from app.http.prefix import is_prefix
from app.settings import SettingsError, load
from tests.service.automatic import body as txt2img
from tests.service.proxy import proxied
from tests.service.running import ROOT, Service, good_request, png, until

PREFIX = "/our/contour"
# How a proxy and a configuration may go together: the service, and what the proxy does.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "stripped, by configuration": ("configured", {"strips": True}),
    "not stripped, by configuration": ("configured", {"strips": False}),
    "stripped, by the proxy's word": ("trusting", {"headers": {"X-Forwarded-Prefix": PREFIX}}),
    "not stripped, by the proxy's word": (
        "trusting",
        {"strips": False, "headers": {"X-Forwarded-Prefix": f"{PREFIX}/"}},
    ),
    "two proxies": ("trusting", {"headers": {"X-Forwarded-Prefix": "/our, /contour"}}),
}


@pytest.fixture(scope="module")
def configured() -> Iterator[Service]:
    """A service that knows its prefix."""
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__ROOT_PATH=PREFIX) as service:
        yield service.wait_until_ready()


@pytest.fixture(scope="module")
def trusting() -> Iterator[Service]:
    """A service that takes its prefix from a proxy on this machine."""
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__TRUSTED_PROXIES='["127.0.0.1"]') as service:
        yield service.wait_until_ready()


@pytest.fixture(scope="module", params=list(WAYS))
def behind(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a service at a proxy."""
    name, manner = WAYS[request.param]
    service: Service = request.getfixturevalue(name)
    with proxied(service.url, PREFIX, **manner) as address:
        yield address


def test_the_description_names_the_prefix(behind: str) -> None:
    answer = httpx.get(f"{behind}/openapi.json")
    assert answer.json()["servers"] == [{"url": PREFIX}]
    assert "no-store" in answer.headers["cache-control"]


def test_every_interface_works_by_its_usual_client(behind: str) -> None:
    assert httpx.post(f"{behind}/generation/", json=good_request(), timeout=180).status_code == 200
    assert httpx.post(f"{behind}/generation", json=good_request(), timeout=180).status_code == 200
    image = {"content": png(64, 64), "headers": {"Content-Type": "image/png"}}
    assert httpx.post(f"{behind}/edges", timeout=180, **image).status_code == 200  # type: ignore[arg-type]
    assert httpx.post(f"{behind}/sdapi/v1/txt2img", json=txt2img(), timeout=180).status_code == 200
    assert httpx.get(f"{behind}/sdapi/v1/sd-models").json()[0]["model_name"] == "echo"
    with OpenAI(base_url=f"{behind}/v1", api_key="any", max_retries=0) as client:
        assert [each.id for each in client.models.list()] == ["echo"]
        made = client.images.edit(image=png(64, 64), prompt="x").data or []
        assert base64.b64decode(made[0].b64_json or "").startswith(b"\x89PNG")


def test_events_come_through(behind: str) -> None:
    headers = {"Accept": "text/event-stream"}
    with httpx.stream("POST", f"{behind}/generation/", json=good_request(), headers=headers, timeout=180) as stream:
        assert "event: done" in "".join(stream.iter_text())


def test_the_pages_are_there_and_their_links_are_relative(behind: str) -> None:
    for path in ("/", "/docs"):
        page = httpx.get(f"{behind}{path}")
        assert page.headers["content-type"].startswith("text/html")
        for quote in ('href="/', 'src="/'):
            assert quote not in page.text
    assert httpx.get(f"{behind}/settings.json").json()["model"] == "echo"


def test_redirects_stay_behind_the_prefix(behind: str) -> None:
    docs = httpx.get(f"{behind}/docs/", follow_redirects=True)
    assert (docs.status_code, str(docs.url)) == (200, f"{behind}/docs")


def test_unknown_paths_get_404_behind_a_prefix(behind: str) -> None:
    assert httpx.get(f"{behind}/nothing").json()["type"] == "urn:contour:problem:not-found"
    assert httpx.get(f"{behind}/generation/").headers["allow"] == "POST"


def test_the_prefix_without_its_slash_leads_to_the_page(configured: Service) -> None:
    with proxied(configured.url, PREFIX, strips=False) as behind:
        page = httpx.get(f"{behind}?a=b", follow_redirects=True)
        assert (page.status_code, str(page.url)) == (200, f"{behind}/?a=b")
        # Both styles at once: probes of the same machine know nothing of the proxy.
        assert configured.client.get("/healthz").status_code == 200
        assert configured.client.get(f"{PREFIX}/healthz").status_code == 200
        assert configured.client.get("/other/healthz").status_code == 404
        assert configured.client.get(f"{PREFIX}x/healthz").status_code == 404


HOSTILE = [
    "//evil.example",
    "/a//b",
    "https://evil.example",
    "evil",
    "/<script>alert(1)</script>",
    '/"onload="x',
    "/a\\b",
    "/a b",
    "/..",
    "/a/../b",
    "/é",
    "/" + "a" * 300,
    "/docs",
    "/v1",
]


@pytest.mark.parametrize("prefix", HOSTILE)
def test_a_prefix_that_is_none_is_ignored(prefix: str) -> None:
    assert not is_prefix(prefix)


def test_a_hostile_prefix_changes_nothing_and_a_strangers_prefix_is_not_heard(trusting: Service) -> None:
    def servers(service: Service, prefix: str) -> object:
        answer = service.client.get("/openapi.json", headers={b"X-Forwarded-Prefix": prefix.encode("latin-1")})
        assert answer.status_code == 200
        return answer.json().get("servers")

    assert [servers(trusting, prefix) for prefix in HOSTILE] == [None] * len(HOSTILE)
    assert servers(trusting, "/ours") == [{"url": "/ours"}]
    assert trusting.client.get("/openapi.json").headers["vary"] == "X-Forwarded-Prefix"
    with Service("echo", WORKERS__CPU_WORKERS=1, SERVER__TRUSTED_PROXIES='["10.0.0.0/8"]') as service:
        assert servers(service, "/ours") is None


def test_a_trusted_proxys_client_and_prefix_are_both_believed(trusting: Service) -> None:
    """One connection's client is another than the next one's: the shares of a queue tell them apart."""
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Prefix": "/ours"}
    assert trusting.client.post("/generation/", json=good_request(), headers=headers).status_code == 200
    until(lambda: any("203.0.113.7" in line for line in trusting.log))


@pytest.mark.parametrize("prefix", ["contour", "/contour/", "/", "//x", "/a b", "/docs", "/<b>"])
def test_a_prefix_that_cannot_be_one_stops_the_start(prefix: str) -> None:
    with pytest.raises(SettingsError, match=r"server\.root_path is .*must begin with a slash and end without one"):
        load(ROOT / "configs" / "echo.yaml", {"CONTOUR_SERVER__ROOT_PATH": prefix})
