"""Settings by variables and flags, in a service that runs."""

import os
import subprocess
import sys

import pytest

from tests.service.running import ROOT, Service

NAME = "dreamshaper #8: ünïcode"


def test_text_in_variables_arrives_as_it_is_and_ipv6_is_listened_to() -> None:
    with Service(
        "echo", SERVER__HOST="::", SERVER__MODEL_NAME=NAME, ENGINE__PROMPT__SUFFIX=", best quality"
    ) as service:
        assert service.url.startswith("http://[::")
        assert service.wait_until_ready().generate().status_code == 200
        models = service.client.get("/v1/models").json()
        assert NAME in {model["id"] for model in models["data"]} | {model.get("owned_by") for model in models["data"]}


def test_the_host_of_the_flag_is_listened_to() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "--config", "configs/echo.yaml", "--host", "::1", "--port", "0"],
        cwd=ROOT,
        env=os.environ | {"CONTOUR_SERVER__LOG_FORMAT": "human", "CONTOUR_SERVER__HOST": "127.0.0.1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            assert any("Listening on http://[::1]:" in line for line in process.stderr)
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CONTOUR_SERVER__MODEL_NAME", "\udcff", "is not UTF-8 text"),
        ("CONTOUR_SEVER__PORT", "1", "did you mean server?"),
    ],
)
def test_a_variable_that_cannot_be_used_stops_the_start(name: str, value: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "--config", "configs/echo.yaml", "--port", "0"],
        cwd=ROOT,
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"environment variable {name}: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
