"""`python -m workers.compile CONFIG`: what it makes, what it says, and its exit code."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pytest

from tests.service.running import ROOT, surroundings
from workers import compile as command
from workers.channel import StatusChanged, Trying, send
from workers.compile import CompilerSetup
from workers.engine.contract import EngineStatus
from workers.engine.runtimes import openvino_files as files
from workers.engine.trials import COMPILING, attention
from workers.shared_memory import SlotMemory

DEMO = ROOT / "configs/demo.yaml"
KERNEL = attention("cudnn")


def compiled(config: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    line = [sys.executable, "-m", "workers.compile", str(config)]
    return subprocess.run(line, cwd=ROOT, env=surroundings(**settings), capture_output=True, text=True, check=False)


def times(folder: Path) -> dict[str, int]:
    """When each file was made, but for plans: those are touched when they are used."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.suffix != ".npz"}


@pytest.mark.slow
def test_all_that_a_worker_would_convert_and_compile_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (files.CACHE, files.BUILT_IN):
        monkeypatch.delenv(variable, raising=False)
    cache = tmp_path / "cache"
    settings = {"WORKERS__CACHE": cache, "ENGINE__RUNTIME": "openvino", "ENGINE__DTYPE": "float32", "ENGINE__SLOTS": 2}
    done = compiled(DEMO, **settings)
    assert done.returncode == 0, done.stderr
    assert "Networks converted for OpenVINO" in done.stderr
    decided = re.findall(r"(\d) (steps|VAE) (?:kept un)?compiled", done.stdout)  # whichever is faster, on this machine
    assert [sum(int(n) for n, each in decided if each == part) for part in ("steps", "VAE")] == [2, 1]
    assert f"no fallback; in {cache}" in done.stdout
    made = times(cache / "openvino")
    assert sum(name.endswith(".blob") for name in made) == 3 + 5  # for the next start, those for any shape
    assert compiled(DEMO, **settings).returncode == 0  # and makes nothing anew
    assert times(cache / "openvino") == made


@pytest.mark.slow
def test_where_compiling_fails_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    settings = {"ENGINE__RUNTIME": "torch", "ENGINE__SPEED__COMPILE": "true", "ENGINE__SLOTS": 1}
    done = compiled(DEMO, WORKERS__CACHE=tmp_path, **settings)
    assert done.returncode == 1
    assert "compile: failed: latents of 64x64, batch of 1: " in done.stderr
    assert "\ncpu0: not all went well, see above: compile: failed (2)\n" in done.stderr


def test_without_the_weights_it_says_what_is_missing(tmp_path: Path) -> None:
    done = compiled(ROOT / "configs/sd15-canny.yaml", WORKERS__CACHE=tmp_path, WORKERS__MODELS=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "workers.fetch" in done.stderr


def test_a_model_without_networks_has_nothing_to_compile(tmp_path: Path) -> None:
    done = compiled(ROOT / "configs/echo.yaml", WORKERS__CACHE=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "engine.kind is echo, which has no networks to compile" in done.stderr


def crash(setup: CompilerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    send(channel, Trying((COMPILING,)))
    os.kill(os.getpid(), signal.SIGSEGV)


def crash_of_a_kernel(setup: CompilerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    if KERNEL in setup.without:
        say(setup, channel, memory)
    send(channel, Trying((KERNEL,)))
    os.kill(os.getpid(), signal.SIGSEGV)


def crash_of_a_kernel_for_ever(setup: CompilerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    send(channel, Trying((KERNEL,)))
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(setup: CompilerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    send(channel, Trying((COMPILING,)))
    time.sleep(3600)


def say(setup: CompilerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    send(channel, StatusChanged(EngineStatus(graphs=(("steps compiled", 4),))))
    os._exit(0)


@dataclass(frozen=True, kw_only=True)
class Played(CompilerSetup):
    """A process that does something else."""

    part: Callable[..., None]

    @property
    def main(self) -> Any:
        return self.part


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command with a process for each part, for a device each; its exit code."""
    monkeypatch.setenv("CONTOUR_WORKERS__CACHE", str(tmp_path))
    setups = command._setups

    def run(*parts: Callable[..., None]) -> int:
        def of_each_part(*arguments: Any) -> list[CompilerSetup]:
            (real,) = setups(*arguments)
            values = {field.name: getattr(real, field.name) for field in fields(real)}
            return [Played(**values, part=part) for part in parts]

        monkeypatch.setattr(command, "_setups", of_each_part)
        return command.main([str(DEMO)])

    return run


def test_one_device_whose_compiler_crashes_does_not_keep_the_others_from_theirs(
    played: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert played(crash, say) == 1
    printed = capsys.readouterr()
    assert printed.err == f"cpu0: not compiled: killed by SIGSEGV, while it tried {COMPILING}\n"
    assert printed.out.startswith("cpu0: 4 steps compiled, no fallback; in ")


def test_what_a_worker_would_do_without_after_a_crash_it_does_without(
    played: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert played(crash_of_a_kernel) == 0
    printed = capsys.readouterr()
    assert printed.err == f"cpu0: killed by SIGSEGV, while it tried {KERNEL}; without it\n"
    assert printed.out.startswith("cpu0: 4 steps compiled, ")


def test_a_crash_that_comes_without_it_too_is_the_last(
    played: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert played(crash_of_a_kernel_for_ever) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"cpu0: killed by SIGSEGV, while it tried {KERNEL}; without it",
        f"cpu0: not compiled: killed by SIGSEGV, while it tried {KERNEL}",
    ]


def test_a_process_that_hangs_is_ended(
    played: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = list[Any]()

    def wait(objects: Any, timeout: float) -> list[Any]:
        assert timeout == command.SILENCE_S
        ready = connection.wait(objects, 0.1 if heard else timeout)
        heard.extend(ready)
        return ready

    monkeypatch.setattr(command, "wait", wait)
    assert played(hang) == 1
    assert capsys.readouterr().err == f"cpu0: not compiled: killed by SIGKILL, while it tried {COMPILING}\n"
