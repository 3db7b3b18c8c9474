"""The service as the first process of a container, which is sent no signal that it has no handler for."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.running import PATIENCE, ROOT, until

UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def only_child(pid: int) -> int | None:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[0]) if found else None


def catches_sigterm(pid: int | None) -> bool:
    """Whether a process has a handler of its own."""
    status = Path(f"/proc/{pid}/status").read_text() if pid else ""
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not can_unshare(), reason="no process may be the first of a namespace here")
def test_a_sigterm_while_modules_are_still_imported_ends_it() -> None:
    command = [*UNSHARE, sys.executable, "-m", "app", "--config", "configs/echo.yaml", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as unshare:
        until(lambda: catches_sigterm(only_child(unshare.pid)))
        server = only_child(unshare.pid)
        assert server is not None
        subprocess.run(["kill", "-TERM", str(server)], check=True)
        _, log = unshare.communicate(timeout=PATIENCE)
    assert (unshare.returncode, log) == (0, "")  # it had not come to say anything
