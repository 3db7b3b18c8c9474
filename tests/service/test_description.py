"""/openapi.json tells the truth: schemathesis holds the running service to it."""

import os
import subprocess
import sys
from http import HTTPStatus
from pathlib import Path

import pytest

from app.errors import Error
from app.metrics import OF_EDGES
from app.openapi import describe
from app.settings import ServerConfig, Settings
from tests.service.running import ROOT, Service

EXAMPLES = 40  # of each operation and phase; thousands were run while this was written


def test_schemathesis_finds_nothing_that_is_not_as_described(echo: Service, tmp_path: Path) -> None:
    options = [
        "--checks=all",
        "--phases=examples,coverage,fuzzing",
        f"--max-examples={EXAMPLES}",
        "--seed=1",
        "--no-color",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{echo.url}/openapi.json", *options],
        cwd=tmp_path,  # it leaves a record there
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.service.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 selected / 7 total" in done.stdout, done.stdout  # it leaves out /openapi.json itself
    assert [worker["restarts"] for worker in echo.readiness()["workers"]] == [0, 0]
    assert "Traceback" not in "".join(echo.log)


def test_every_path_that_is_described_is_there(echo: Service) -> None:
    for path, operations in echo.client.get("/openapi.json").json()["paths"].items():
        for method in operations:
            assert echo.client.request(method, path).status_code not in {404, 405}


@pytest.mark.parametrize(
    "error", [error for error in Error if error is not Error.NOT_FOUND], ids=lambda error: error.slug
)
def test_every_error_is_described(error: Error) -> None:
    responses = describe(Settings())["paths"]["/generation/"]["post"]["responses"]
    schema = responses[str(int(error.status))]["content"]["application/problem+json"]["schema"]
    assert error.type in schema["allOf"][1]["properties"]["type"]["enum"]


@pytest.mark.parametrize("error", OF_EDGES, ids=lambda error: error.slug)
def test_every_error_of_edges_is_described(error: Error) -> None:
    responses = describe(Settings())["paths"]["/edges"]["post"]["responses"]
    schema = responses[str(int(error.status))]["content"]["application/problem+json"]["schema"]
    assert error.type in schema["allOf"][1]["properties"]["type"]["enum"]


def test_limits_are_those_of_the_configuration() -> None:
    fields = describe(Settings(server=ServerConfig(max_text_chars=77)))["components"]["schemas"]["GenerationRequest"][
        "properties"
    ]
    assert fields["text"]["maxLength"] == 77


def test_problems_are_only_described_where_they_can_happen() -> None:
    for path, operations in describe(Settings())["paths"].items():
        for operation in operations.values():
            codes = {HTTPStatus(int(code)) for code in operation["responses"]}
            assert (HTTPStatus.UNPROCESSABLE_ENTITY in codes) == path.startswith(("/generation", "/edges"))
