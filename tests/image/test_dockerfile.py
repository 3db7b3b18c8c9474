"""What the Dockerfile says, which no build is needed to see."""

import re

from tests.service.running import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_every_stage_stands_on_one_base_image_named_by_its_digest() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", DOCKERFILE, re.MULTILINE)
    named = {name for _, name in stages}
    assert {base for base, _ in stages} - named == {"${PYTHON}"}
    (base,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11[\w.-]*@sha256:[0-9a-f]{64}", base)


def test_what_is_compiled_lies_in_a_folder_that_the_service_itself_makes_in_the_volume() -> None:
    (volume,) = re.findall(r"^VOLUME (\S+)$", DOCKERFILE, re.MULTILINE)
    (cache,) = re.findall(r"CONTOUR_WORKERS__CACHE=(\S+)", DOCKERFILE)
    assert cache.startswith(f"{volume}/")
