"""Images that begin on the device while they are still decoded, in real worker processes with one slot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scheduler import messages as m
from tests.service.running import file_of
from tests.workers import beginning
from tests.workers.beginning import BEGUN, FOLDER, GATE, Asks
from tests.workers.test_pool import ECHO, PATIENCE, Seen, running, until
from workers.engine.contract import Task
from workers.jobs import JobResult
from workers.pool import Pool

ONE_SLOT = replace(ECHO, slots=1)


@pytest.fixture(autouse=True)
def _beginning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("workers.worker_main.main", beginning.main)
    monkeypatch.setenv(FOLDER, str(tmp_path))


@asynccontextmanager
async def one_worker() -> AsyncIterator[Pool]:
    """A pool whose worker lives until the end, when its slot must be free."""
    seen = Seen()
    async with running(seen, engine=ONE_SLOT) as pool:
        yield pool
        assert isinstance((await make(pool, Asks.NOTHING)).outcome, m.Done)
    assert not any(isinstance(event, m.WorkerExited) for event in seen.events)


async def make(pool: Pool, asks: Asks) -> JobResult:
    task = Task(file_of(np.full((32, 32, 3), asks, np.uint8)), "", 1)
    job = m.Job(0, asyncio.get_running_loop().time() + PATIENCE)
    return await asyncio.wait_for(pool.generate(task, job), PATIENCE)


@pytest.mark.parametrize("asks", [Asks.WAIT_FOR_BEGIN, Asks.NO_MEMORY_TO_BEGIN, Asks.NO_MEMORY_TO_ADMIT])
async def test_an_image_begins_before_it_is_decoded_and_without_memory_for_that_it_is_made_all_the_same(
    asks: Asks,
) -> None:
    async with one_worker() as pool:
        assert isinstance((await make(pool, asks)).outcome, m.Done)


async def test_an_image_that_turns_out_to_be_bad_frees_what_has_begun() -> None:
    async with one_worker() as pool:
        assert (await make(pool, Asks.BAD)).outcome == m.Refused("The image is bad.", m.Blame.IMAGE)


async def test_an_image_that_is_cancelled_after_it_has_begun_frees_it(tmp_path: Path) -> None:
    async with one_worker() as pool:
        waiting = asyncio.create_task(make(pool, Asks.WAIT_FOR_GATE))
        await until((tmp_path / BEGUN).exists)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (tmp_path / GATE).touch()
