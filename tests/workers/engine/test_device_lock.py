"""The lock of device and compiler, with real threads, and real processes that share a cache."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from torch._inductor.runtime import benchmarking

from tests.workers.engine import demo
from tests.workers.engine.demo import CONFIG
from workers.engine.compiling import DeviceLock, hold_while_timing, one_worker_at_a_time
from workers.engine.kernel_probe import CACHE

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from workers.engine.compiling import one_worker_at_a_time
with one_worker_at_a_time():
    print("held", flush=True)
    time.sleep(600)
"""


def waits(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    return thread


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for() -> None:
    lock, order = DeviceLock(), list[int]()

    def ask(number: int) -> None:
        with lock.hold():
            order.append(number)

    with lock.hold():
        threads = [waits(lambda number=number: ask(number)) for number in range(3)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2]


def test_the_lock_is_reentrant_and_released_by_an_error() -> None:
    lock = DeviceLock()
    with pytest.raises(KeyError), lock.hold(), lock.hold():
        raise KeyError
    thread = threading.Thread(target=lambda: lock.hold().__enter__())
    thread.start()
    thread.join(120)
    assert not thread.is_alive()


def test_no_step_is_taken_while_the_compiler_times_a_kernel() -> None:
    engine = demo.engine(replace(CONFIG, slots=1))
    engine.admit(0, engine.prepare(demo.task(0)))
    with engine.hold_device():  # as the compiler's thread does
        thread = waits(engine.step)
    thread.join()
    assert [progress.done for progress in engine.step()] == [2]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is entered and left while torch's compiler times; what it times is not a kernel."""
    seen: list[str] = []

    @contextmanager
    def hold() -> Iterator[None]:
        seen.append("hold")
        yield
        seen.append("release")

    def bench(work: Callable[[], object], return_mode: str) -> float:
        seen.append("time")
        return 1.0

    monkeypatch.setattr(benchmarking.TritonBenchmarker, "triton_do_bench", staticmethod(bench))
    timer = benchmarking.TritonBenchmarker()
    monkeypatch.setattr(benchmarking, "benchmarker", timer)
    hold_while_timing(hold)
    yield seen
    if hasattr(benchmarking, "set_gpu_benchmark_lock_context"):
        benchmarking.set_gpu_benchmark_lock_context(None)


@pytest.mark.skipif(
    not hasattr(benchmarking, "set_gpu_benchmark_lock_context"), reason="this torch has no lock for timings"
)
def test_torchs_compiler_holds_the_lock_while_it_times(held: list[str]) -> None:
    assert benchmarking.benchmarker.benchmark_gpu(lambda: None) == 1.0
    assert held == ["hold", "time", "release"]


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch before 2.13."""
    monkeypatch.delattr(benchmarking, "set_gpu_benchmark_lock_context", raising=False)


def test_so_does_an_older_one(older: None, held: list[str]) -> None:
    assert benchmarking.benchmarker.benchmark_gpu(lambda: None) == 1.0
    assert held == ["hold", "time", "release"]


# ------------------------------------------------------------------------------------------- one cache, many workers


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "inductor"))
    return tmp_path / "inductor"


@contextmanager
def another() -> Iterator["subprocess.Popen[str]"]:
    """Another process that compiles."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def enter(patience: float = 600) -> None:
    with one_worker_at_a_time(patience):
        pass


def test_a_worker_waits_for_another_that_compiles_until_that_ends_however(cache: Path) -> None:
    with another() as process:
        thread = waits(enter)
        os.kill(process.pid, signal.SIGKILL)
        thread.join(120)
        assert not thread.is_alive()


def test_it_does_not_wait_forever(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with another():
        enter(0.1)
    assert "this one no longer waits" in caplog.text


def test_one_that_has_held_it_for_too_long_is_not_waited_for_again(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with another():
        os.utime(cache / "contour.lock", (1, 1))
        enter()
    assert "this one no longer waits" in caplog.text


def test_the_file_says_since_when_it_is_held(cache: Path) -> None:
    enter()
    os.utime(cache / "contour.lock", (1, 1))
    enter()
    assert (cache / "contour.lock").stat().st_mtime > 1


def test_an_error_releases_the_lock(cache: Path) -> None:
    with pytest.raises(KeyError), one_worker_at_a_time():
        raise KeyError
    enter(0)


@pytest.mark.parametrize("kind", ["none", "file", "link"])
def test_without_a_cache_that_can_be_locked_nothing_is_waited_for(
    kind: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "none":
        monkeypatch.delenv(CACHE)
    elif kind == "file":
        cache.touch()
    else:
        cache.mkdir()
        (cache / "contour.lock").symlink_to("/dev/full")
    began = time.monotonic()
    enter()
    assert time.monotonic() - began < 300
