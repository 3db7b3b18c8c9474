"""A minute of what `make chaos` does for an hour."""

import json
import subprocess
import sys
from pathlib import Path

from tests.service.running import ROOT

SECONDS, LIMIT_SECONDS = 60, 600
SEED = 7


def test_faults_break_no_promise(tmp_path: Path) -> None:
    out = tmp_path / "chaos.json"
    options = ["--seconds", str(SECONDS), "--seed", str(SEED), "--out", str(out)]
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
    assert result["requests"] >= 5 * SECONDS
    assert result["faults"] >= SECONDS / 3
