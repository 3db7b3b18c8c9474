"""Checks of the Dockerfile that need no build."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.service.running import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
# An editable install would find in the repository what is missing in the folder.
RUN_ALONE = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
runpy.run_module("workers.fetch", run_name="__main__", alter_sys=True)
"""


def test_every_stage_stands_on_one_base_image_named_by_its_digest() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", DOCKERFILE, re.MULTILINE)
    named = {name for _, name in stages}
    assert {base for base, _ in stages} - named == {"${PYTHON}"}
    (base,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11[\w.-]*@sha256:[0-9a-f]{64}", base)


def test_compiled_code_lies_in_a_folder_that_the_service_makes_in_the_volume() -> None:
    (volume,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    (cache,) = re.findall(r"CONTOUR_WORKERS__CACHE=(\S+)", DOCKERFILE)
    assert cache.startswith(f"{volume}/")


def test_networks_that_are_built_in_are_made_of_the_paths_that_the_service_sees_and_found_where_they_are() -> None:
    """A folder of converted networks is named after the paths of the weights, too."""
    stage = DOCKERFILE.partition(" AS converted\n")[2].partition("\nFROM")[0]
    served = DOCKERFILE.rpartition("\nFROM")[2]
    (place,) = re.findall(r"OPENVINO_BUILT_IN_PATH=(\S+)", served)
    assert f"COPY --from=converted {place} {place}\n" in served
    for text in (stage, served):
        assert "WORKDIR /opt/contour\n" in text
        assert "COPY --from=chosen /chosen configs\n" in text
        assert "CONTOUR_WORKERS__MODELS=/opt/contour/models" in text


def test_the_fetching_stage_has_all_the_files_that_it_imports(tmp_path: Path) -> None:
    """Its stage takes few files, so that a change of the others fetches nothing again."""
    stage = DOCKERFILE.partition(" AS models\n")[2].partition("\nFROM")[0].replace("\\\n", " ")
    for line in re.findall(r"^COPY (?!--from)(.+)$", stage, re.MULTILINE):
        *sources, folder = line.split()
        for source in sources:
            copy(ROOT / source, tmp_path / folder)
    command = [sys.executable, "-c", RUN_ALONE, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def copy(source: Path, folder: Path) -> None:
    """As COPY does: a file into a folder, and what is in a folder into another."""
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder)
