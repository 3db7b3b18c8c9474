"""A scheduler that fails: no job is lost, no worker, and no wake-up."""

import asyncio
import os
import signal
import time

import pytest

from scheduler import messages as m
from scheduler.core import IllegalEvent, Scheduler
from scheduler.limits import Limits
from tests.workers.faulty import JOBS, LAYOUT, FailOnce, Fault, every_slot_works, kinds, two_workers
from tests.workers.test_pool import ECHO, PATIENCE, TASK, Seen, make, until
from workers import pool as pool_module
from workers.devices import DeviceSpec
from workers.pool import Pool
from workers.worker_main import WorkerSetup


@pytest.mark.parametrize("after", ["handle", "_place", "_exit_when_drained"])
async def test_a_submission_that_fails_leaves_nothing_behind(after: str, fail_once: FailOnce) -> None:
    async with two_workers() as pool:
        jobs = [asyncio.create_task(make(pool)) for _ in range(JOBS)]
        await until(lambda: pool.core.running == 4)
        fail_once(pool.core, after, Fault("of the scheduler"))
        with pytest.raises(Fault):
            await pool.generate(TASK, m.Job(0, time.monotonic() + PATIENCE), lambda news: None)
        assert kinds(await asyncio.gather(*jobs)) == ["Done"] * JOBS
        await every_slot_works(pool)


@pytest.mark.parametrize("kind", [m.Stepped, m.Finished])
@pytest.mark.parametrize("error", [IllegalEvent("cannot be"), Fault("of the scheduler")], ids=["illegal", "fault"])
async def test_a_report_that_the_scheduler_cannot_take_costs_its_worker_and_no_job(
    kind: type[m.Event], error: Exception, fail_once: FailOnce
) -> None:
    seen = Seen()
    async with two_workers(seen) as pool:
        jobs = [asyncio.create_task(make(pool)) for _ in range(JOBS)]
        fail_once(pool.core, "handle", error, lambda _, event: isinstance(event, kind))
        assert kinds(await asyncio.gather(*jobs)) == ["Done"] * JOBS
        await every_slot_works(pool)
    lost = [event.reason for event in seen.events if isinstance(event, m.WorkerExited)]
    assert lost == [f"its report was refused: {error}"]


async def test_the_death_of_a_worker_is_told_until_the_scheduler_takes_it(fail_once: FailOnce) -> None:
    async with two_workers() as pool:
        jobs = [asyncio.create_task(make(pool)) for _ in range(JOBS)]
        await until(lambda: pool.core.running == 4)
        raised = fail_once(
            pool.core, "handle", Fault("of the scheduler"), lambda _, event: isinstance(event, m.WorkerExited)
        )
        os.kill(pool.processes["cpu0"], signal.SIGKILL)
        assert kinds(await asyncio.gather(*jobs)) == ["Done"] * JOBS
        assert raised
        await every_slot_works(pool)


async def test_a_wake_up_that_keeps_failing_is_tried_again_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_workers() as pool:
        job = asyncio.create_task(pool.generate(TASK, m.Job(0, time.monotonic() + 1.0)))
        await asyncio.sleep(0)
        signal_all(pool, signal.SIGSTOP)
        expire, failures = pool.core._expire_deadlines, list[float]()

        def fail(now: float) -> None:
            failures.append(now)
            raise Fault("of the scheduler")

        monkeypatch.setattr(pool.core, "_expire_deadlines", fail)
        began = time.monotonic()
        await until(lambda: len(failures) > 5)
        assert time.monotonic() - began > 5 * pool_module.RETRY_SECONDS
        monkeypatch.setattr(pool.core, "_expire_deadlines", expire)
        assert kinds([await asyncio.wait_for(job, PATIENCE)]) == ["Expired"]
        signal_all(pool, signal.SIGCONT)
        await every_slot_works(pool)


def signal_all(pool: Pool, sig: signal.Signals) -> None:
    for process in pool.processes.values():
        os.kill(process, sig)


async def test_a_drain_ends_although_the_scheduler_fails_and_everybody_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "DRAIN_GRACE", 0.5)

    setup = WorkerSetup(DeviceSpec("cpu0", "cpu", None), ECHO, threads=1)
    pool = Pool([setup], Scheduler(["cpu0"], Limits()), LAYOUT)
    task = asyncio.create_task(pool.run())
    job = asyncio.create_task(make(pool))
    await until(lambda: pool.core.queue_depth == 1)

    def fail(now: float, event: m.Event) -> list[m.Command]:
        raise Fault("of the scheduler")

    monkeypatch.setattr(pool.core, "handle", fail)
    pool.drain(0.0)
    await asyncio.wait_for(task, PATIENCE)
    assert kinds([await job]) == ["Draining"]
    assert not pool.processes
