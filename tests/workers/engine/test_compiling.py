"""The compiler's thread, with something else to do than to compile."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.running import ROOT
from workers.engine import compiling, kernel_probe
from workers.engine.compiling import Compiler, Target
from workers.engine.graphs import Fallbacks

FIRST, SECOND = ((64, 64), 1), ((64, 64), 2)
PATIENCE = 120.0


@pytest.mark.slow
def test_what_one_process_has_compiled_the_next_reads(tmp_path: Path) -> None:
    """The small model, by torch's compiler."""
    caches = {kernel_probe.CACHE: str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}

    def counted(kernels: str = "as they are") -> dict[str, int]:
        line = [sys.executable, "-m", "tests.workers.engine.caching", kernels]
        done = subprocess.run(line, cwd=ROOT, env=os.environ | caches, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, int] = json.loads(done.stdout)
        return found

    first, second = counted(), counted()
    assert first["miss"] > 0
    assert second == {"hit": first["miss"], "miss": 0, "bypass": 0}
    assert counted("changed")["hit"] == 0


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_ready(compiler: Compiler, n: int) -> list[Target]:
    taken: list[Target] = []

    def enough() -> bool:
        taken.extend(compiler.ready())
        return len(taken) == n

    wait_for(enough)
    return taken


def test_targets_are_compiled_one_by_one_each_when_the_last_was_taken_over() -> None:
    compiled: list[Target] = []
    compiler = Compiler(compiled.append, threading.Lock(), Fallbacks())
    assert compiler.idle()
    for target in (FIRST, SECOND, FIRST):
        compiler.ask(target)
    wait_for(lambda: compiled)
    time.sleep(0.05)
    assert compiled == [FIRST]
    taken = wait_for_ready(compiler, 2)
    assert taken == compiled == [FIRST, SECOND]
    wait_for(compiler.idle)


def test_the_turn_is_held_while_compiling_and_free_while_it_is_taken_over() -> None:
    lock, seen = threading.Lock(), list[bool]()
    compiler = Compiler(lambda target: seen.append(lock.locked()), lock, Fallbacks())
    compiler.ask(FIRST)
    ready = list[Target]()

    def taken() -> bool:
        for target in compiler.ready():
            assert not lock.locked()
            ready.append(target)
        return bool(ready)

    wait_for(taken)
    assert seen == [True]


def test_a_compilation_that_does_not_end_is_counted_once_and_no_longer_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "HANG_S", -1.0)
    fallbacks, began, gate = Fallbacks(), threading.Event(), threading.Event()

    def compile_one(target: Target) -> None:
        began.set()
        assert gate.wait(PATIENCE)

    compiler = Compiler(compile_one, threading.Lock(), fallbacks)
    compiler.ask(FIRST)
    assert began.wait(PATIENCE)
    assert not compiler.idle()
    for _ in range(2):
        assert list(compiler.ready()) == []
    assert compiler.idle()
    assert fallbacks.counts() == (("compile: hangs", 1),)
    assert "latents of 64x64, batch of 1: compiling does not end" in caplog.text
    monkeypatch.setattr(compiling, "HANG_S", PATIENCE)
    gate.set()  # it ends after all
    assert wait_for_ready(compiler, 1) == [FIRST]
    wait_for(compiler.idle)


def test_a_failed_compilation_is_reported_and_the_next_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    def compile_one(target: Target) -> None:
        if target == FIRST:
            raise RuntimeError("no C compiler")

    fallbacks = Fallbacks()
    compiler = Compiler(compile_one, threading.Lock(), fallbacks)
    compiler.ask(FIRST)
    compiler.ask(SECOND)
    assert wait_for_ready(compiler, 1) == [SECOND]
    assert fallbacks.counts() == (("compile: failed", 1),)
    assert "latents of 64x64, batch of 1: RuntimeError: no C compiler" in caplog.text
