"""The service as nobody in particular, on a file system that it can only read, but for its cache folder."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.running import ROOT, Service, result_pixels, surroundings

USER = 64999  # has no entry among the users, no home, and owns nothing but the folder it is given
# The interpreter may lie where only root looks: this capability opens that for reading, and for nothing else.
READ = "dac_read_search"
SURROUNDINGS = f"""
mount --bind "$0" "$0"
awk '{{print $5}}' /proc/self/mountinfo | while read -r at; do
    case "$at" in /proc | "$0") ;; *) mount -o remount,bind,ro "$at" || exit 1 ;; esac
done || exit 1
exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs \\
    --inh-caps=-all,+{READ} --ambient-caps=+{READ} env -u HOME -u TMPDIR "$@"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone can be written to by the interpreter that tests start."""
    folder, python = tmp_path / "cache", tmp_path / "python"
    folder.mkdir()
    os.chown(folder, USER, USER)
    command = shlex.join(["unshare", "--mount", "sh", "-c", SURROUNDINGS, str(folder), sys.executable])
    python.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    python.chmod(0o755)
    tried = subprocess.run([python, "-c", "pass"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a file system cannot be made read-only here: {tried.stderr}")
    monkeypatch.setattr(sys, "executable", str(python))
    return folder


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_it_makes_images_and_writes_nowhere_else(cache: Path) -> None:
    quick = {"ENGINE__SAMPLER__STEPS": 2, "ENGINE__SIZE__SHORT_SIDE": 64, "WORKERS__THREADS": 1}
    with Service("demo", WORKERS__CACHE=cache, **quick) as service:
        service.wait_until_ready()
        for process in {service.process.pid, *service.descendants()}:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            assert status["Uid"].split() == [str(USER)] * 4
        assert result_pixels(service.generate()).shape == (64, 64, 3)
        assert service.stop(signal.SIGTERM) == 0
    assert "Traceback" not in "".join(service.log)
    assert written(cache) <= {"inductor", "triton", "tensorrt", "openvino", "tmp"}
    assert not list((cache / "tmp").iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_cache_that_cannot_be_written_to_stops_the_start_and_is_named(cache: Path) -> None:
    command = [sys.executable, "-m", "app", "--config", "configs/echo.yaml"]
    environment = os.environ | {"CONTOUR_WORKERS__CACHE": "/no/such/folder"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 2
    assert done.stderr.startswith("workers.cache is /no/such/folder, which cannot be used: ")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_doctor_tells_a_cache_that_is_read_only_from_one_that_is_not(cache: Path) -> None:
    for folder, code, text in ((cache, 0, "is writable"), (cache.parent, 1, "Read-only file system")):
        done = subprocess.run(
            [sys.executable, "-m", "app", "doctor", "--config", "configs/echo.yaml"],
            cwd=ROOT,
            env=surroundings(WORKERS__CACHE=folder, SERVER__PORT=0),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, "")
        assert text in " ".join(done.stdout.split())
