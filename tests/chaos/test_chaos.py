"""Two minutes of what `make chaos` does for an hour."""

import json
import subprocess
import sys
from pathlib import Path

from tests.service.running import ROOT

STORM_SECONDS = 60  # what comes before, between and after takes as long
LIMIT_SECONDS = 600
SEED = 7


def test_two_minutes_of_faults_break_no_promise(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    options = ["--seconds", str(STORM_SECONDS), "--seed", str(SEED), "--out", str(out)]
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
    assert result["requests"] >= 300
    assert result["faults"] >= 20
