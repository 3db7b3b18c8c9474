"""What those who watch a picture are told: by themselves, and by a pool with a real worker."""

import asyncio
import logging
import os
import signal
import time
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from scheduler import messages as m
from tests.workers.test_pool import PATIENCE, TASK, running, until
from workers import wire
from workers.engine.config import Echo, EngineConfig
from workers.engine.contract import Options, Task
from workers.pool import Answer, Pool, Terms
from workers.watching import Advanced, News, Previewed, Started, Watching

STEPS = 6
ENGINE = EngineConfig(kind="echo", slots=1, echo=Echo(steps=STEPS, step_seconds=0.1))
WATCHED = replace(TASK, options=Options(previews=True))
FIRST, SECOND = (m.Start(job, "gpu0", 0, generation) for job, generation in ((1, 11), (2, 12)))


def preview(generation: int) -> wire.Preview:
    return wire.Preview(0, generation, b"a picture")


def test_who_watches_is_told_of_the_job_and_of_no_other() -> None:
    watching, news = Watching(), list[News]()
    watching.add(1, news.append)
    watching.started(FIRST)
    watching.stepped(m.Stepped("gpu0", ((0, 1), (1, 3)), (4, 4)))
    watching.stepped(m.Stepped("gpu1", ((0, 2),), (4,)))
    watching.previewed("gpu0", preview(11))
    assert news == [Started(), Advanced(1, 4), Previewed(b"a picture")]


def test_a_late_preview_is_not_taken_for_one_of_the_slots_next_picture() -> None:
    watching, news = Watching(), list[News]()
    watching.add(2, news.append)
    watching.started(FIRST)
    watching.started(SECOND)
    watching.previewed("gpu0", preview(11))
    assert news == [Started()]


def test_who_is_answered_is_told_no_more() -> None:
    watching, news = Watching(), list[News]()
    watching.add(1, news.append)
    watching.started(FIRST)
    watching.drop(1)
    watching.previewed("gpu0", preview(11))
    watching.stepped(m.Stepped("gpu0", ((0, 4),), (4,)))
    assert news == [Started()]


def test_what_follows_a_watched_picture_unwatched_is_told_to_nobody() -> None:
    watching, news = Watching(), list[News]()
    watching.add(1, news.append)
    watching.started(FIRST)
    watching.started(SECOND)
    watching.stepped(m.Stepped("gpu0", ((0, 1),), (4,)))
    assert news == [Started()]


# ---------------------------------------------------------------------------------------------------------------- pool


async def make(pool: Pool, task: Task, news: list[News]) -> Answer:
    return await asyncio.wait_for(pool.generate(task, Terms(time.monotonic() + PATIENCE), news.append), PATIENCE)


def of(news: list[News], kind: type[News]) -> list[News]:
    return [each for each in news if isinstance(each, kind)]


def assert_whole(news: list[News]) -> None:
    """It begins, and takes its steps in order; what it looks like is told in between."""
    assert news[0] == Started()
    assert of(news, Advanced) == [Advanced(done, STEPS) for done in range(1, STEPS + 1)]
    shown = [each for each in news if isinstance(each, Previewed)]
    assert shown
    assert news.index(shown[0]) > news.index(Advanced(1, STEPS))
    for each in shown:
        with Image.open(BytesIO(each.jpeg)) as image:
            assert (image.format, image.size) == ("JPEG", (64, 64))


def test_a_watched_picture_is_followed_from_its_start_to_its_end() -> None:
    async def scenario() -> None:
        async with running(engine=ENGINE) as pool:
            await until(lambda: bool(pool.devices))
            watched, unshown = list[News](), list[News]()
            assert isinstance((await make(pool, WATCHED, watched)).outcome, m.Done)
            assert isinstance((await make(pool, TASK, unshown)).outcome, m.Done)
        assert_whole(watched)
        assert of(unshown, Previewed) == []
        assert len(of(unshown, Advanced)) == STEPS

    asyncio.run(scenario())


def test_one_that_is_made_again_elsewhere_starts_again() -> None:
    async def scenario() -> None:
        async with running(engine=ENGINE, workers=2) as pool:
            await until(lambda: all(view.state is m.WorkerState.READY for view in pool.core.workers()))
            news = list[News]()

            def kill_on_the_way(each: News) -> None:
                news.append(each)
                if news.count(Started()) == 1 and each == Advanced(2, STEPS):
                    busy = next(view.id for view in pool.core.workers() if view.running)
                    os.kill(pool.processes[busy], signal.SIGKILL)

            answer = await pool.generate(WATCHED, Terms(time.monotonic() + PATIENCE), kill_on_the_way)
            assert isinstance(answer.outcome, m.Done)
        again = len(news) - news[::-1].index(Started()) - 1
        assert again > 0
        assert_whole(news[again:])

    asyncio.run(scenario())


def test_a_watch_that_fails_harms_neither_picture_nor_worker(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        told = list[News]()

        def fail(news: News) -> None:
            told.append(news)
            raise RuntimeError("nobody is at home")

        async with running(engine=ENGINE) as pool:
            await until(lambda: bool(pool.devices))
            answer = await asyncio.wait_for(pool.generate(WATCHED, Terms(time.monotonic() + PATIENCE), fail), PATIENCE)
            assert isinstance(answer.outcome, m.Done)
            assert "nobody is at home" in caplog.text
            caplog.clear()  # its traceback holds on to the pool's memory
        assert told == [Started()]

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
