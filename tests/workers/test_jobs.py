"""Progress callbacks of jobs: in the table alone, and in a pool with a real worker."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from scheduler import messages as m
from tests.workers.test_pool import PATIENCE, TASK, running, until
from workers.channel import Preview
from workers.engine.config import Echo, EngineConfig
from workers.engine.contract import EngineOptions, Task
from workers.jobs import Advanced, JobResult, JobTable, Previewed, ProgressEvent, Started
from workers.pool import Pool

STEPS = 6
ENGINE = EngineConfig(kind="echo", slots=1, echo=Echo(steps=STEPS, step_seconds=0.1))
WATCHED = replace(TASK, options=EngineOptions(previews=True))
FIRST, SECOND = (m.Start(job, "gpu0", 0, generation) for job, generation in ((1, 11), (2, 12)))


def preview(generation: int) -> Preview:
    return Preview(0, generation, b"an image")


def heard(*reports: Callable[[JobTable], object], followed: int = 1) -> list[ProgressEvent]:
    """What is told to whoever follows one of two jobs."""

    async def scenario() -> list[ProgressEvent]:
        jobs, events = JobTable(2**20), list[ProgressEvent]()
        for job in (1, 2):
            jobs.add(job, TASK, events.append if job == followed else None)
        for report in reports:
            report(jobs)
        return events

    return asyncio.run(scenario())


def test_a_callback_gets_the_progress_of_its_job_only() -> None:
    events = heard(
        lambda jobs: jobs.started(FIRST),
        lambda jobs: jobs.stepped(m.Stepped("gpu0", ((0, 1), (1, 3)), (4, 4))),
        lambda jobs: jobs.stepped(m.Stepped("gpu1", ((0, 2),), (4,))),
        lambda jobs: jobs.previewed("gpu0", preview(11)),
    )
    assert events == [Started(), Advanced(1, 4), Previewed(b"an image")]


def test_a_late_preview_is_not_taken_for_one_of_the_slots_next_image() -> None:
    events = heard(
        lambda jobs: jobs.started(FIRST),
        lambda jobs: jobs.started(SECOND),
        lambda jobs: jobs.previewed("gpu0", preview(11)),
        followed=2,
    )
    assert events == [Started()]


def test_an_answered_job_publishes_no_progress() -> None:
    events = heard(
        lambda jobs: jobs.started(FIRST),
        lambda jobs: jobs.resolve(1, m.Expired()),
        lambda jobs: jobs.previewed("gpu0", preview(11)),
        lambda jobs: jobs.stepped(m.Stepped("gpu0", ((0, 4),), (4,))),
    )
    assert events == [Started()]


def test_a_later_job_in_the_slot_publishes_to_no_earlier_callback() -> None:
    events = heard(
        lambda jobs: jobs.started(FIRST),
        lambda jobs: jobs.started(SECOND),
        lambda jobs: jobs.stepped(m.Stepped("gpu0", ((0, 1),), (4,))),
    )
    assert events == [Started()]


# ---------------------------------------------------------------------------------------------------------------- pool


async def make(pool: Pool, task: Task, news: list[ProgressEvent]) -> JobResult:
    return await asyncio.wait_for(pool.generate(task, m.Job(0, time.monotonic() + PATIENCE), news.append), PATIENCE)


def of(news: list[ProgressEvent], kind: type[ProgressEvent]) -> list[ProgressEvent]:
    return [each for each in news if isinstance(each, kind)]


def assert_whole(news: list[ProgressEvent]) -> None:
    """It begins, and takes its steps in order; what it looks like is told in between."""
    assert news[0] == Started()
    assert of(news, Advanced) == [Advanced(done, STEPS) for done in range(1, STEPS + 1)]
    shown = [each for each in news if isinstance(each, Previewed)]
    assert shown
    assert news.index(shown[0]) > news.index(Advanced(1, STEPS))
    for each in shown:
        with Image.open(BytesIO(each.jpeg)) as image:
            assert (image.format, image.size) == ("JPEG", (64, 64))


async def test_a_watched_image_is_followed_from_its_start_to_its_end() -> None:
    async with running(engine=ENGINE) as pool:
        await until(lambda: pool.core.ready)
        watched, unshown = list[ProgressEvent](), list[ProgressEvent]()
        assert isinstance((await make(pool, WATCHED, watched)).outcome, m.Done)
        assert isinstance((await make(pool, TASK, unshown)).outcome, m.Done)
    assert_whole(watched)
    assert of(unshown, Previewed) == []
    assert len(of(unshown, Advanced)) == STEPS


async def test_one_that_is_made_again_elsewhere_starts_again() -> None:
    async with running(engine=ENGINE, workers=2) as pool:
        await until(lambda: all(view.state is m.WorkerState.READY for view in pool.core.workers()))
        news = list[ProgressEvent]()

        def kill_on_the_way(each: ProgressEvent) -> None:
            news.append(each)
            if news.count(Started()) == 1 and each == Advanced(2, STEPS):
                busy = next(view.id for view in pool.core.workers() if view.running)
                os.kill(pool.processes[busy], signal.SIGKILL)

        answer = await pool.generate(WATCHED, m.Job(0, time.monotonic() + PATIENCE), kill_on_the_way)
        assert isinstance(answer.outcome, m.Done)
    again = len(news) - news[::-1].index(Started()) - 1
    assert again > 0
    assert_whole(news[again:])


def test_a_watch_that_fails_harms_neither_image_nor_worker(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        told = list[ProgressEvent]()

        def fail(news: ProgressEvent) -> None:
            told.append(news)
            raise RuntimeError("nobody is at home")

        async with running(engine=ENGINE) as pool:
            await until(lambda: pool.core.ready)
            answer = await asyncio.wait_for(
                pool.generate(WATCHED, m.Job(0, time.monotonic() + PATIENCE), fail), PATIENCE
            )
            assert isinstance(answer.outcome, m.Done)
            assert "nobody is at home" in caplog.text
            caplog.clear()  # its traceback holds on to the pool's memory
        assert told == [Started()]

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
