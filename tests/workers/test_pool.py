"""The shell with real worker processes, from inside its event loop."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from scheduler import messages as m
from scheduler.core import Scheduler
from scheduler.limits import Limits
from tests.service.running import png
from tests.workers import telling
from workers import process
from workers.channel import Device
from workers.devices import DeviceSpec
from workers.engine.config import Echo, EngineConfig
from workers.engine.contract import EngineOptions, Task
from workers.jobs import JobResult
from workers.pool import NothingServedError, Observer, Pool
from workers.process import Child
from workers.shared_memory import SlotLayout
from workers.worker_main import WorkerSetup

PATIENCE = 120.0
ECHO = EngineConfig(kind="echo", slots=2, echo=Echo(steps=10, step_seconds=0.02, reencode=False))
BROKEN = EngineConfig(kind="diffusion", slots=2)
TASK = Task(png(64, 64), "a square", 1)
ENDLESS = replace(TASK, options=EngineOptions(steps=10_000))


class Seen:
    """Everything that was told to the scheduler, and everything it said."""

    def __init__(self) -> None:
        self.events: list[m.Event] = []
        self.commands: list[m.Command] = []

    def __call__(self, event: m.Event, commands: Sequence[m.Command]) -> None:
        self.events.append(event)
        self.commands.extend(commands)


@asynccontextmanager
async def running(
    seen: Observer | None = None, workers: int = 1, engine: EngineConfig = ECHO, room: int = 2**20
) -> AsyncIterator[Pool]:
    names = [f"cpu{number}" for number in range(workers)]
    core = Scheduler(names, Limits(restart_backoff=0.05))
    setups = [WorkerSetup(DeviceSpec(name, "cpu", None), engine, threads=1) for name in names]
    pool = Pool(setups, core, SlotLayout(engine.slots, room, room), seen or Seen())
    task = asyncio.create_task(pool.run())
    yield pool
    pool.drain(PATIENCE)
    await asyncio.wait_for(task, PATIENCE)
    assert not pool.processes


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def make(pool: Pool) -> JobResult:
    return await asyncio.wait_for(pool.generate(TASK, m.Job(0, time.monotonic() + PATIENCE)), PATIENCE)


async def test_images_come_back_as_they_went() -> None:
    async with running(workers=2) as pool:
        answers = await asyncio.gather(*(make(pool) for _ in range(6)))
    assert [answer.image for answer in answers] == [TASK.image] * 6
    assert all(isinstance(answer.outcome, m.Done) for answer in answers)


async def test_a_cancelled_call_cancels_the_job() -> None:
    seen = Seen()
    async with running(seen) as pool:
        await make(pool)
        waiting = asyncio.create_task(pool.generate(ENDLESS, m.Job(0, time.monotonic() + 3600)))
        await until(lambda: pool.core.running == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await make(pool)
    assert m.Reply(2, m.Abandoned()) in seen.commands
    assert any(isinstance(event, m.Released) for event in seen.events)


async def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = iter([True, True, False])

    def scarce(*arguments: object) -> Child:
        if next(refusals):
            raise OSError(11, "Resource temporarily unavailable")
        return Child(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "Child", scarce)

    seen = Seen()
    async with running(seen) as pool:
        assert (await make(pool)).image == TASK.image
    lost = [event.reason for event in seen.events if isinstance(event, m.WorkerExited)]
    assert lost == ["cannot be started: [Errno 11] Resource temporarily unavailable"] * 2


async def test_how_a_workers_engine_runs_is_known_until_the_worker_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker_main.main", telling.main)

    seen, at_the_loss = Seen(), []

    def observe(event: m.Event, commands: Sequence[m.Command]) -> None:
        seen(event, commands)
        if isinstance(event, m.WorkerExited):
            at_the_loss.append(dict(pool.statuses))

    async with running(observe) as pool:
        assert pool.statuses == {}
        await until(lambda: pool.statuses == {"cpu0": telling.status(graphs=1, fallbacks=0)})
        os.kill(pool.processes["cpu0"], signal.SIGKILL)
        await until(lambda: at_the_loss == [{}])
        await until(lambda: pool.statuses == {"cpu0": telling.status(graphs=0, fallbacks=0)})


async def test_a_worker_whose_socket_ends_is_replaced_and_its_image_made_again() -> None:
    seen = Seen()
    async with running(seen) as pool:
        await make(pool)
        waiting = asyncio.create_task(make(pool))
        await until(lambda: pool.core.running == 1)
        pool._processes["cpu0"].channel.shutdown(socket.SHUT_RD)
        assert (await waiting).image == TASK.image
    lost = [event.reason for event in seen.events if isinstance(event, m.WorkerExited)]
    assert lost == ["killed by SIGKILL"]


async def test_a_faulty_gpu_quarantines_its_workers() -> None:
    async with running(workers=2) as pool:
        await until(lambda: all(view.state is m.WorkerState.READY for view in pool.core.workers()))
        pool.devices["cpu0"] = Device("a GPU", "GPU-1")  # as NVML would know it
        pool.fault({"GPU-2"}, "GPU-2 reports XID 79")
        assert all(view.state is m.WorkerState.READY for view in pool.core.workers())
        pool.fault({"GPU-1", "MIG-1"}, "GPU-1 reports XID 79")
        await until(lambda: pool.core.workers()[0].state is m.WorkerState.QUARANTINED)
        assert pool.core.workers()[0].reason == "GPU-1 reports XID 79"
        assert isinstance((await make(pool)).outcome, m.Done)
        assert pool.core.workers()[1].state is m.WorkerState.READY


async def test_a_pool_whose_workers_are_all_quarantined_ends_and_says_why() -> None:
    core = Scheduler(["cpu0"], Limits(quarantine_after=1))
    pool = Pool([WorkerSetup(DeviceSpec("cpu0", "cpu", None), BROKEN, threads=1)], core, SlotLayout(2, 2**20, 2**20))
    task = asyncio.create_task(pool.run())
    answer = await make(pool)
    assert isinstance(answer.outcome, m.Draining)
    with pytest.raises(NothingServedError, match=r"cpu0 is quarantined: .*engine\.model is missing"):
        await asyncio.wait_for(task, PATIENCE)


async def test_a_model_that_cannot_be_used_is_not_tried_again() -> None:
    seen = Seen()
    setup = WorkerSetup(DeviceSpec("cpu0", "cpu", None), BROKEN, threads=1)
    pool = Pool([setup], Scheduler(["cpu0"], Limits()), SlotLayout(2, 2**20, 2**20), seen)
    with pytest.raises(NothingServedError, match=r"cpu0 is quarantined: .*engine\.model is missing"):
        await asyncio.wait_for(pool.run(), PATIENCE)
    assert seen.commands.count(m.Spawn("cpu0")) == 1


async def test_large_files_are_copied_in_several_turns_and_one_that_is_cancelled_meanwhile_frees_its_slot() -> None:
    echo = Echo(steps=2, step_seconds=0.02, reencode=False)
    large = replace(TASK, image=bytes(TASK.image) + bytes(3 * 2**20))  # PNG ignores what follows its end

    async with running(engine=EngineConfig(kind="echo", slots=8, echo=echo), room=2**22) as pool:
        await make(pool)
        for cancelled in range(8):
            terms = m.Job(0, time.monotonic() + PATIENCE)
            jobs = [asyncio.create_task(pool.generate(large, terms)) for _ in range(8)]
            await asyncio.sleep(0)  # all are submitted now, and some are still to be copied
            jobs.pop(cancelled).cancel()
            answers = await asyncio.wait_for(asyncio.gather(*jobs), PATIENCE)
            assert [answer.image for answer in answers] == [large.image] * 7
        await until(lambda: pool.core.running == 0)
        assert [view.restarts for view in pool.core.workers()] == [0]
