"""The Docker image's inputs agree with the rest of the project; no image is built here."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from requirements.__main__ import ROOT, name, names

IMPORTED = "import sys, workers.fetch; print(*sys.modules)"


def blocks(path: str) -> dict[str, str]:
    """Requirements with their hashes, by name."""
    text = (ROOT / path).read_text()
    found = re.split(r"\n(?=[\w])", text)
    return {name(block): block for block in found if block[0].isalnum()}


def pins(text: str) -> dict[str, str]:
    return {
        name(line): line.partition("==")[2].split()[0] for line in text.splitlines() if re.match(r"[\w.-]+==", line)
    }


def test_every_package_that_runs_the_service_is_installed_by_hash() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = blocks("requirements/image.txt")
    assert names("\n".join(project["dependencies"])) <= installed.keys()
    assert all("--hash=sha256:" in block for block in installed.values())
    for path in ("requirements/cuda.txt", "requirements/gpu.txt"):
        assert all("--hash=sha256:" in block for block in blocks(path).values())


def test_an_image_has_the_versions_that_are_tested() -> None:
    tested = pins((ROOT / "constraints.txt").read_text())
    installed = pins((ROOT / "requirements/image.txt").read_text())
    assert len(installed) > 30
    assert pins((ROOT / "requirements.txt").read_text()) == installed
    assert {package: tested[package] for package in installed.keys() & tested.keys()} == {
        package: version for package, version in installed.items() if package in tested
    }
    assert installed.keys() <= tested.keys()


def test_the_stage_that_fetches_the_model_copies_just_the_code_that_this_needs() -> None:
    stage = (ROOT / "Dockerfile").read_text().partition(" AS models\n")[2].partition("\nFROM ")[0].replace("\\\n", " ")
    sources = [source for line in stage.splitlines() if line.startswith("COPY ") for source in line.split()[1:-1]]
    files = {
        file.relative_to(ROOT)
        for source in sources
        if not source.startswith("-") and (ROOT / source).exists()
        for file in ([ROOT / source] if (ROOT / source).is_file() else (ROOT / source).glob("*.py"))
    }
    modules = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    needed = {module for module in modules.split() if module.partition(".")[0] in {"workers", "scheduler", "app"}}
    assert {_module(file) for file in files} == needed


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def test_a_wheel_has_every_file_that_is_no_python() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("app", "workers", "scheduler"):
        kept = {file for pattern in patterns.get(package, []) for file in (ROOT / package).glob(pattern)}
        there = {file for file in (ROOT / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts}
        assert {file for file in there if file.suffix != ".py"} - kept == set()


def test_serving_installs_nothing_that_only_the_tests_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    serving, extras = names("\n".join(project["dependencies"])), project["optional-dependencies"]
    only_for_tests = names("\n".join(extras["dev"])) - serving
    assert {"mypy", "playwright", "schemathesis"} <= only_for_tests
    for path in ("requirements.txt", "requirements/image.txt", "requirements/gpu.txt"):
        assert not only_for_tests & pins((ROOT / path).read_text()).keys(), path


def test_make_serve_installs_what_serving_needs_and_make_test_the_rest() -> None:
    assert installs("serve") == ["."]
    assert installs("serve", "EXTRAS=gpu") == [".[gpu]"]
    assert installs("test") == [".[dev]"]
    assert installs("test", "EXTRAS=gpu") == [".[dev,gpu]"]


def installs(*arguments: str) -> list[str]:
    """What make would give to pip in a fresh folder. No GPU is looked for, unless EXTRAS says so."""
    command = ["make", "--dry-run", "--always-make", "EXTRAS=", *arguments]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.rpartition(" ")[2].strip("'") for line in lines if "pip install" in line]
