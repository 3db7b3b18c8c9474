"""A pool with real workers in which something fails, and what must hold afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from scheduler import messages as m
from scheduler.core import Scheduler
from scheduler.limits import Limits
from tests.workers.test_pool import ECHO, PATIENCE, TASK, Seen, make, until
from workers.devices import DeviceSpec
from workers.jobs import JobResult
from workers.pool import Pool
from workers.shared_memory import SlotLayout
from workers.worker_main import WorkerSetup

JOBS = 6
FailOnce: TypeAlias = Callable[..., list[str]]
LAYOUT = SlotLayout(ECHO.slots, 2**16, 2**16)


class Fault(Exception):
    """What no part of the service expects."""


@asynccontextmanager
async def two_workers(seen: Seen | None = None) -> AsyncIterator[Pool]:
    """A pool with two real workers; afterwards nothing of any job may be left, and there may be no process."""
    setups = [WorkerSetup(DeviceSpec(name, "cpu", None), ECHO, threads=1) for name in ("cpu0", "cpu1")]
    core = Scheduler(["cpu0", "cpu1"], Limits(restart_backoff=0.05, quarantine_pause=0.05))
    pool = Pool(setups, core, LAYOUT, seen or Seen())
    task = asyncio.create_task(pool.run())
    await until(lambda: all_are_ready(pool))
    yield pool
    pool.drain(PATIENCE)
    await asyncio.wait_for(task, PATIENCE)
    assert_nothing_is_left(pool)
    assert not pool.processes


def assert_nothing_is_left(pool: Pool) -> None:
    pool.core.check()
    assert (pool.core.running, pool.core.queue_depth) == (0, 0)
    assert list(pool._jobs) == []


def all_are_ready(pool: Pool) -> bool:
    return all(view.state is m.WorkerState.READY for view in pool.core.workers())


async def every_slot_works(pool: Pool) -> None:
    """As many jobs as there are slots, at the same time, each with its image."""
    await until(lambda: all_are_ready(pool))
    assert [answer.image for answer in await asyncio.gather(*(make(pool) for _ in range(4)))] == [TASK.image] * 4


def kinds(answers: Sequence[JobResult]) -> list[str]:
    return sorted(type(answer.outcome).__name__ for answer in answers)
