import sys
from collections.abc import Iterator
from itertools import count
from types import ModuleType

import pytest
import torch

from tests.service.running import ROOT
from tests.workers.engine.clock import Clock
from tests.workers.engine.rivals import xformers_ops
from workers.engine import compiling, measure
from workers.engine.kernel_probe import CACHE
from workers.folders import COMPILER_CACHES


def pytest_configure(config: pytest.Config) -> None:
    # diffusers 0.42 hands tensors to NumPy when it sets timesteps; torch 2.13 lacks two of NumPy 2's new arguments.
    config.addinivalue_line("filterwarnings", "ignore:__array_(_ implementation|wrap__):DeprecationWarning")


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """More gain nothing with images this small, and on a busy machine they lose minutes waiting for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def _compiled_networks_as_fast_as_plain_ones() -> Iterator[None]:
    """By the clock that compares them: whether they take over depends on no machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "perf_counter", count().__next__)
        yield


@pytest.fixture(autouse=True)
def _nothing_traced() -> None:
    """torch traces a function a few times in a process and no more, however many tests have it compiled."""
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()


@pytest.fixture(scope="module")
def compilers_caches() -> Iterator[None]:
    """Those of the benchmark, whose service has tried the same kernels: a trial is a process, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in COMPILER_CACHES.items():
            patch.setenv(name, str(ROOT / "build" / "latency" / "cache" / kind))
        yield


@pytest.fixture(scope="package", autouse=True)
def _compiler_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch's compiler sets the variable of a common folder, and then waits for whoever compiles on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("compiler")))
        yield


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """xformers.ops, played by torch."""
    ops = xformers_ops()
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    return ops


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock
