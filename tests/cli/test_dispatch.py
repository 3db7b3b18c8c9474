"""Which command is meant."""

import pytest

from app.cli.dispatch import COMMANDS, dispatch
from tests.cli.command import run
from tests.workers.test_lazy import HEAVY, loaded


def test_without_a_command_it_lists_them_and_serves() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "generate" in done.stdout
    assert "doctor" in done.stdout
    assert run("serve", "--help").stdout == done.stdout


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_tells_how_it_is_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dispatch([name, "--help"])
    assert ended.value.code == 0
    assert "--config" in capsys.readouterr().out


def test_a_command_that_is_misspelt_is_not_taken_for_another() -> None:
    done = run("genrate", "image.png", "a prompt")
    assert done.returncode == 2
    assert "did you mean generate?" in done.stderr


def test_the_server_does_not_wait_for_what_other_commands_import() -> None:
    others = ("app.cli.generate", "app.cli.doctor", "tqdm")
    assert loaded("import app.cli.dispatch, app.cli.serve", others) == set()
    assert loaded("import app.cli.dispatch, app.cli.generate", others) == {"app.cli.generate", "tqdm"}


def test_no_command_imports_a_model() -> None:
    checks = "from app.cli.doctor import CHECKS\nfor name in CHECKS.values(): __import__(f'app.checks.{name}')"
    assert loaded(f"import app.cli.generate\n{checks}", HEAVY) == set()
