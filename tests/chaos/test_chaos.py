"""Some seconds, or two minutes, of what `make chaos` does for an hour."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.running import ROOT

LIMIT_SECONDS = 600
SEED = 7


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_faults_break_no_promise(tmp_path: Path, seconds: int) -> None:
    out = tmp_path / "chaos.json"
    options = ["--seconds", str(seconds), "--seed", str(SEED), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["broken promises"] == []
    assert result["requests"] >= 5 * seconds
    assert result["faults"] >= seconds / 3
