"""How commands are named in messages, and what is said of a wrong one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__
from tests.cli.command import ECHO, run
from tests.service.running import ROOT, surroundings

BIN = Path(sys.executable).parent
HINT = "from workers.console import command; print(command('-m', 'workers.fetch', 'my model.yaml'))"


def hint(folder: Path, path: str, python: str = sys.executable) -> str:
    """What is printed of a command by a Python that runs in a folder, with a PATH."""
    environment = surroundings() | {"PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [python, "-c", HINT], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_command_names_the_interpreter_as_it_is_typed_there(tmp_path: Path) -> None:
    rest = "-m workers.fetch 'my model.yaml'"
    assert hint(BIN.parents[1], os.defpath) == f"{BIN.parent.name}/bin/python {rest}"  # not activated
    assert hint(tmp_path, os.defpath) == f"{BIN}/python {rest}"
    assert hint(tmp_path, f"{BIN}:{os.defpath}") == f"python {rest}"  # activated, or in a container
    assert hint(BIN, os.defpath) == f"./python {rest}"


def test_another_python_of_that_name_is_not_taken_for_ours(tmp_path: Path) -> None:
    """A virtual environment's python is a link to the system's: the file is the same, and the packages are not."""
    (tmp_path / "python").symlink_to(Path(sys.executable).resolve())
    assert hint(tmp_path, str(tmp_path)).startswith(f"{BIN}/python ")


def test_hints_are_commands_that_run_here(tmp_path: Path) -> None:
    done = run("--config", "configs/sd15-canny.yaml", WORKERS__MODELS=tmp_path)
    assert done.returncode == 2
    command = next(line for line in done.stderr.splitlines() if "workers.fetch" in line).partition(": ")[2]
    helped = subprocess.run(f"{command} --help", shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage:" in helped.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["-V"], ["serve", "--version"]])
def test_the_version_is_told(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Contour {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["genrate", "a.png", "x"], "There is no command 'genrate'; did you mean generate? Commands: serve, "),
        (["xyz"], "There is no command 'xyz'. Commands: serve, generate, doctor, config."),
        (["--prot", "80"], "Unknown option '--prot'; did you mean --port?"),
        (["--config", "a.yaml", "--prot", "80"], "Unknown option '--prot'; did you mean --port?"),
        (["--config", ""], "The configuration's name is empty; give a file, see configs/."),
        (["doctor", "--jsn"], "Unknown option '--jsn'; did you mean --json?"),
        (["generate", "a.png", "x", "--stpes", "3"], "Unknown option '--stpes'; did you mean --steps?"),
        (["generate", "a.png", "x", "--steps", "1.5"], "argument --steps: '1.5' is not a whole number"),
        (["generate", "a.png", "x", "--temperature", "hot"], "argument --temperature: 'hot' is not a number"),
        (["doctor", "a.yaml", "b.yaml"], "'b.yaml' is an unexpected argument."),
        (["doctor", "a.yaml", "--config", "b.yaml"], "Two configurations were given (a.yaml and b.yaml); give one."),
    ],
)
def test_a_wrong_command_is_told_in_one_screen(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "usage: " in done.stderr
    assert len(done.stderr.splitlines()) <= 24


def test_a_path_is_taken_for_a_configuration() -> None:
    done = run("configs/demo")
    assert done.stderr == "configs/demo: cannot be read: Is a directory; did you mean demo.yaml?\n"


@pytest.mark.parametrize("arguments", [["configs/echo.yaml"], ["--config", "configs/echo.yaml"], ECHO])
def test_doctor_takes_a_configuration_with_and_without_the_flag(arguments: list[str]) -> None:
    done = run("doctor", *arguments, SERVER__PORT=0)
    assert done.returncode == 0
    assert done.stdout.endswith("\nconfigs/echo.yaml can be served here.\n")


def test_without_one_doctor_looks_at_the_small_model() -> None:
    assert run("doctor", SERVER__PORT=0).stdout.endswith("\nconfigs/demo.yaml can be served here.\n")
