"""Real worker processes that die of compiled networks: no image is lost, and no process dies of it twice."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.metrics import EngineCollector
from scheduler import messages as m
from scheduler.core import Scheduler
from scheduler.limits import Limits
from tests.workers.engine import demo, dying
from workers.devices import DeviceSpec
from workers.engine.config import EngineConfig
from workers.engine.contract import Task
from workers.engine.kernel_probe import CACHE
from workers.engine.runtimes import openvino_files
from workers.engine.trials import COMPILING, GRAPHS, GROUP_NORM
from workers.jobs import JobResult
from workers.pool import Pool
from workers.shared_memory import SlotLayout
from workers.worker_main import WorkerSetup

TASK = Task(demo.image(), "a red circle", 1)
PATIENCE = 900.0  # seconds: a process with a model takes many to start on a busy machine
CRASHED = f"{COMPILING}: off after a crash"

pytestmark = pytest.mark.slow


@asynccontextmanager
async def serving(
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    main: Callable[..., None] = dying.main,
    engine: EngineConfig = dying.ENGINE,
) -> AsyncIterator[Pool]:
    """A pool with one worker that compiles as `dying.FAULTS[fault]` says, and waits for no other test's compiler."""
    monkeypatch.setenv(CACHE, str(tmp_path / "compiler"))
    monkeypatch.setattr("workers.worker_main.main", main)
    monkeypatch.setenv(dying.FAULT, fault)
    core = Scheduler(["cpu0"], Limits(restart_backoff=0.05))
    pool = Pool(
        [WorkerSetup(DeviceSpec("cpu0", "cpu", None), engine, threads=1)],
        core,
        SlotLayout(engine.slots, 2**20, 2**20),
    )
    task = asyncio.create_task(pool.run())
    yield pool
    pool.drain(0)
    await task


def fallbacks(pool: Pool) -> dict[str, int]:
    status = pool.statuses.get("cpu0")
    return {} if status is None else dict(status.fallbacks)


def compiled(pool: Pool) -> int:
    status = pool.statuses.get("cpu0")
    return 0 if status is None else sum(n for kind, n in status.graphs if kind.endswith("compiled"))


def restarts(pool: Pool) -> int:
    return pool.core.workers()[0].restarts


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def made(pool: Pool) -> JobResult:
    answer = await pool.generate(TASK, m.Job(0, time.monotonic() + PATIENCE))
    assert isinstance(answer.outcome, m.Done), answer.outcome
    return answer


@pytest.mark.parametrize(
    "fault",
    [
        "crashes while compiling",
        "exits while compiling",
        "crashes where it serves",
        "crashes at the first step of an image",
        "never ends where it serves",
    ],
)
def test_a_process_that_dies_of_it_is_followed_by_one_that_does_without_and_says_so(
    fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one that hangs, too: it is ended when it is silent for too long while it has an image."""
    monkeypatch.setenv(dying.GATE, str(tmp_path / "gate"))

    async def scenario() -> None:
        async with serving(fault, monkeypatch, tmp_path) as pool:
            assert len({(await made(pool)).image for _ in range(3)}) == 1
            await until(lambda: fallbacks(pool) == {CRASHED: 1})
            assert (restarts(pool), compiled(pool)) == (1, 0)
            registry = CollectorRegistry()
            registry.register(EngineCollector(pool))
            sample = f'contour_worker_fallbacks_total{{reason="{CRASHED}",worker="cpu0"}} 1.0'
            assert sample in generate_latest(registry).decode()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert any(COMPILING in message and "without" in message for message in caplog.messages)


async def test_one_that_is_killed_while_it_compiles_is_followed_by_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dying.GATE, str(tmp_path / "gate"))

    async with serving("never ends", monkeypatch, tmp_path) as pool:
        image = (await made(pool)).image  # while it compiles
        os.kill(pool.processes["cpu0"], signal.SIGKILL)
        await until(lambda: fallbacks(pool) == {CRASHED: 1})
        assert (await made(pool)).image == image


async def test_one_that_dies_of_graphs_and_then_of_compiled_networks_is_followed_by_one_without_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(dying.GRAPHS, "1")
    async with serving("crashes while compiling", monkeypatch, tmp_path) as pool:
        await until(lambda: fallbacks(pool) == {CRASHED: 1, f"{GRAPHS}: off after a crash": 1})
        await made(pool)
        assert restarts(pool) == 2


async def test_one_that_dies_of_kernels_of_ours_is_followed_by_one_with_torchs_and_all_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(dying.KERNELS, "1")
    async with serving("works", monkeypatch, tmp_path) as pool:
        await until(lambda: compiled(pool) == 2)
        await made(pool)
        assert (restarts(pool), fallbacks(pool)) == (1, {f"{GROUP_NORM}: off after a crash": 1})


async def test_compiled_networks_that_kill_two_processes_in_a_row_in_service_are_not_used_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each of them makes an image before it crashes, so the image that crashes one is made by the next."""
    async with serving("crashes after an image", monkeypatch, tmp_path) as pool:
        for process in range(2):
            await until(lambda: compiled(pool) == 2)
            while restarts(pool) == process:
                await made(pool)
        await until(lambda: fallbacks(pool) == {CRASHED: 1})
        await made(pool)
        assert (restarts(pool), compiled(pool)) == (2, 0)


async def test_one_that_dies_after_it_has_compiled_is_followed_by_one_that_compiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with serving("works", monkeypatch, tmp_path) as pool:
        await until(lambda: compiled(pool) == 2)
        await made(pool)
        os.kill(pool.processes["cpu0"], signal.SIGKILL)
        await until(lambda: restarts(pool) == 1)
        await until(lambda: compiled(pool) == 2)
        assert fallbacks(pool) == {}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The small model's networks, converted for OpenVINO."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(openvino_files.CACHE, str(tmp_path_factory.mktemp("openvino")))
        openvino_files.convert(dying.ALONE, openvino_files.folder_for(dying.ALONE))
        yield


@pytest.mark.parametrize("fault", dying.PLAIN_FAULTS)
async def test_where_openvino_alone_fails_torch_serves_in_the_next_process(
    fault: str, converted: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with serving(fault, monkeypatch, tmp_path, dying.main_alone, dying.ALONE) as pool:
        first = await made(pool)
        await until(lambda: fallbacks(pool) == {CRASHED: 1})
        assert restarts(pool) == 1
        assert (await made(pool)).image == first.image
        assert restarts(pool) == 1
