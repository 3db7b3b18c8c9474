"""The page as files: how they are sent, and that nothing of them comes from elsewhere."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from app.api.page import About, page_settings
from app.http.static_files import PAGE
from app.settings import load
from example.demo_model import about
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS
from example.demo_model.prompts import COLOURED, STYLES
from tests.service.running import ROOT, Service
from workers.engine.config import Weights

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "form-action": "'none'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
FILES = sorted(path.name for path in PAGE.iterdir())


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/base.css", "/page/mark.svg"])
def test_a_file_is_guarded_and_is_not_sent_again_to_who_has_it(echo: Service, path: str) -> None:
    answer = echo.client.get(path)
    assert answer.status_code == 200
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    for known in (answer.headers["etag"], f'"other", W/{answer.headers["etag"]}', "*"):
        again = echo.client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]
    assert echo.client.get(path, headers={"If-None-Match": '"other"'}).content == answer.content
    head = echo.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_other_methods_and_names_are_refused_in_words(echo: Service) -> None:
    answer = echo.client.post("/page/main.js")
    assert answer.status_code == 405
    assert answer.headers["allow"] in {"GET, HEAD", "HEAD, GET"}
    for path in ("/page/none.js", "/page/", "/page/..%2fpage.py", "/page/%2e%2e/page.py", "/page/page.py"):
        answer = echo.client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_sent_as_what_it_is(echo: Service, name: str) -> None:
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    answer = echo.client.get(f"/page/{name}")
    assert answer.content == (PAGE / name).read_bytes()
    assert answer.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_fetched_from_elsewhere_and_nothing_is_inline(name: str) -> None:
    text = (PAGE / name).read_text()
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
    if name.endswith(".html"):
        assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", text) == []


def test_every_module_that_is_imported_is_there() -> None:
    named = {name for path in PAGE.glob("*.js") for name in re.findall(r'from "\./(.+?)"', path.read_text())}
    assert named <= set(FILES)
    assert {path.name for path in PAGE.glob("*.js")} - named == {"main.js"}


def test_the_settings_are_those_of_the_service(echo: Service) -> None:
    answer = echo.client.get("/settings.json")
    assert answer.status_code == 200
    fields = answer.json()["fields"]
    assert fields["steps"] == {"default": 8, "minimum": 1, "maximum": 50}
    for name, field in fields.items():
        high = echo.generate(**{name: field["maximum"] + 1})
        assert high.status_code == 422, name
        assert high.json()["errors"][0]["field"] == name


@pytest.mark.parametrize(
    ("config", "model", "guidance"), [("demo", "demo", 50), ("sd15-canny-lcm", "stable-diffusion-v1-5", 1)]
)
def test_the_page_is_told_of_the_model(tmp_path: Path, config: str, model: str, guidance: float) -> None:
    told = page_settings(load(ROOT / "configs" / f"{config}.yaml", {"CONTOUR_SERVER__API_KEY": "of-16-characters"}))
    assert (told.model, told.needs_key) == (model, True)
    assert told.fields["guidance_scale"].maximum == guidance
    assert "of-16-characters" not in repr(told)


def test_a_models_folder_says_what_it_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def told(content: str | None) -> About | None:
        (tmp_path / "about.json").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "about.json").write_text(content)
        settings = load(ROOT / "configs" / "demo.yaml", {})
        model = Weights(path=str(tmp_path))
        return page_settings(replace(settings, engine=replace(settings.engine, model=model))).about

    assert told('{"text": "Cats.", "prompts": ["a cat"]}') == About("Cats.", ["a cat"])
    assert told(None) is None
    assert caplog.records == []
    for wrong in (
        "",
        "{",
        "[]",
        '{"text": "x"}',
        '{"text": "x", "prompts": [1]}',
        '{"text": "%s", "prompts": []}' % ("x" * 501),
    ):
        caplog.clear()
        assert told(wrong) is None
        assert "about.json" in caplog.text


def test_the_small_models_about_text_is_that_of_its_trainer(tmp_path: Path) -> None:
    about.write(tmp_path)
    shipped = ROOT / "configs" / "demo" / about.FILE
    assert shipped.read_bytes() == (tmp_path / about.FILE).read_bytes()
    told = page_settings(load(ROOT / "configs" / "demo.yaml", {})).about
    assert told is not None
    assert told.prompts == list(about.PROMPTS)
    known = {*COLOURS, *SHAPES, *COLOURED, *STYLES}
    for prompt in told.prompts:
        assert known & set(re.findall(r"\w+", prompt)), prompt


def test_the_page_has_no_absolute_address_of_its_own() -> None:
    for path in [*PAGE.glob("*.js"), *PAGE.glob("*.html"), *PAGE.glob("*.css")]:
        found = re.findall(
            r"""(?:src|href)="(/[^"]*)|(?:fetch|call)\(["'`](/[^"'`]*)|url\((/[^)]*)""", path.read_text()
        )
        assert found == [], path.name
