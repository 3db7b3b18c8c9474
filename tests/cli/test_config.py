"""The output of `python -m app config`, and the page that is generated from the schema."""

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from app.cli.config import effective, reference
from app.settings import Settings, load, read
from tests.cli.command import run, running
from tests.service.running import ROOT
from workers.schema import about, meanings

KEY = "a-key-of-more-than-16"
FILE = """\
server:
  port: 9000
  allowed_hosts: [a.example]
engine:
  kind: echo
  canny: {low: 7}
  sampler:
    options: {use_karras_sigmas: true}
  prompt: {suffix: ', "best" # quality', negative: "two\\nlines"}
"""


def printed(path: Path, flags: dict[str, str] | None = None, **environ: str) -> str:
    return "\n".join(effective(*read(path, environ, flags)))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(FILE)
    return tmp_path / "mine.yaml"


def test_each_value_says_where_it_comes_from(mine: Path) -> None:
    variables = {"CONTOUR_ENGINE__CANNY": "{high: 900}", "CONTOUR_ENGINE__CANNY__LOW": "9", "CONTOUR_SERVER__PORT": "1"}
    lines = printed(mine, {"server.host": "::"}, **variables).splitlines()
    assert "  host: '::'  # --host" in lines
    assert "  port: 1  # environment variable CONTOUR_SERVER__PORT" in lines
    assert f"  allowed_hosts: [a.example]  # {mine}:3" in lines
    assert "    low: 9  # environment variable CONTOUR_ENGINE__CANNY__LOW" in lines
    assert "    high: 900  # environment variable CONTOUR_ENGINE__CANNY" in lines
    assert f"    options: {{use_karras_sigmas: true}}  # {mine}:8" in lines
    assert "  slots: 4  # default" in lines


def test_keys_missing_in_a_sections_variable_have_their_defaults(mine: Path) -> None:
    lines = printed(mine, CONTOUR_ENGINE__CANNY="{high: 900}").splitlines()
    assert "    low: 100  # default" in lines


@pytest.mark.parametrize("config", ["demo", "echo", "sd15-canny", "sd15-canny-lcm"])
def test_it_is_a_configuration_again_from_any_folder(config: str, tmp_path: Path) -> None:
    path = ROOT / f"configs/{config}.yaml"
    (tmp_path / "again.yaml").write_text(printed(path))
    again = load(tmp_path / "again.yaml", {})
    if config == "echo":  # a name that nobody gave is that of the kind
        assert again.server.model_name == "echo"
    assert again == load(path, {})


def test_text_comes_back_as_it_was(mine: Path) -> None:
    mine.with_name("again.yaml").write_text(printed(mine, CONTOUR_SERVER__MODEL_NAME="1e3"))
    again, once = load(mine.with_name("again.yaml"), {}), load(mine, {"CONTOUR_SERVER__MODEL_NAME": "1e3"})
    assert again == once
    assert again.engine.prompt.suffix == ', "best" # quality'
    assert again.server.model_name == "1e3"


def test_secrets_are_not_shown(mine: Path) -> None:
    with mine.open("a") as file:
        file.write(f"scheduler: {{attempts: 3}} # {KEY}\n")
    text = printed(mine, CONTOUR_SERVER__API_KEY=KEY)
    assert KEY not in text
    assert "  api_key: null  # not shown; environment variable CONTOUR_SERVER__API_KEY" in text.splitlines()
    assert text.splitlines()[1].startswith("# server.api_key is not shown: set it again")


def test_the_command_prints_it_and_names_what_is_wrong(mine: Path) -> None:
    done = run("config", mine, "--port", 7, SERVER__LOG_LEVEL="debug")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  port: 7  # --port" in done.stdout.splitlines()
    assert "  log_level: debug  # environment variable CONTOUR_SERVER__LOG_LEVEL" in done.stdout.splitlines()
    assert run("config", "--config", mine, "--port", 7, SERVER__LOG_LEVEL="debug").stdout == done.stdout
    wrong = run("config", mine, "--port", "http")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "--port: server.port is 'http', but must be a whole number from 0 up to 65535\n"


def test_a_reader_that_leaves_is_no_traceback(mine: Path) -> None:
    with running("config", mine) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before anything was written to it
        assert process.stderr.read() == ""
        assert process.wait() != 0


def test_the_page_is_what_the_schema_says() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == reference(), "make it anew: python -m app config --reference"


def test_every_setting_has_a_meaning() -> None:
    def sections(kind: type) -> list[type]:
        inner = [type(getattr(kind(), field.name)) for field in fields(kind)]
        return [kind, *(each for section in inner if is_dataclass(section) for each in sections(section))]

    found = sections(Settings)
    assert len(found) > 10
    for section in found:
        assert about(section).endswith(".")
        leaves = [field.name for field in fields(section) if not is_dataclass(getattr(section(), field.name))]
        assert [name for name in leaves if not meanings(section).get(name, "").endswith(".")] == []
