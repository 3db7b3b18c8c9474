"""/openapi.json tells the truth: schemathesis holds the running service to it, and its examples work."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.service.running import ROOT, Service

EXAMPLES = 40  # of each operation and phase


@pytest.fixture(scope="module")
def document(echo: Service) -> dict[str, Any]:
    found: dict[str, Any] = echo.client.get("/openapi.json").json()
    return found


@pytest.mark.slow
def test_schemathesis_finds_nothing_that_is_not_as_described(
    echo: Service, document: dict[str, Any], tmp_path: Path
) -> None:
    options = ["--phases=examples,coverage,fuzzing", f"--max-examples={EXAMPLES}", "--seed=1", "--no-color"]
    config = ["--config-file", str(Path(__file__).with_name("schemathesis.toml"))]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *config, "run", f"{echo.url}/openapi.json", *options],
        cwd=tmp_path,  # it leaves a record there
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.service.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(map(len, document["paths"].values())) - 1  # it leaves out /openapi.json itself
    assert f"{count} selected / {count} total" in done.stdout, done.stdout
    assert [worker["restarts"] for worker in echo.readiness()["workers"]] == [0, 0]
    assert "Traceback" not in "".join(echo.log)


def test_examples_of_requests_make_images(echo: Service, document: dict[str, Any]) -> None:
    content = document["paths"]["/generation/"]["post"]["requestBody"]["content"]
    for example in content["application/json"]["examples"].values():
        assert echo.client.post("/generation/", json=example["value"]).status_code == 200
    kinds = [kind for kind in content if kind.startswith("image/")]
    assert len(kinds) == 4
    for kind in kinds:
        file = echo.client.get("/" + content[kind]["examples"]["image"]["externalValue"])
        answer = echo.client.post(
            "/generation/", content=file.content, params={"text": "a circle"}, headers={"content-type": kind}
        )
        assert (file.status_code, answer.status_code) == (200, 200), kind


def test_defaults_are_what_is_left_out(echo: Service, document: dict[str, Any]) -> None:
    """Whoever sends them all, as the page for trying does, sends nothing that is refused."""
    fields = document["components"]["schemas"]["GenerationRequest"]["properties"]
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
    assert len(defaults) == 11
    assert echo.generate(**defaults).json() == echo.generate().json()
