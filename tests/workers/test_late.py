"""Reports that come late, about a slot that has another tenant by then."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from scheduler import messages as m
from tests.chaos import late
from tests.service.running import file_of
from tests.workers.test_pool import Seen, running
from workers.engine.contract import Task

IMAGES = 12
ALWAYS = "1"


class Generations(Seen):
    """What was told and said, and which reports named an old generation of their slot."""

    def __init__(self) -> None:
        super().__init__()
        self.old: list[m.Finished] = []
        self._newest: dict[int, int] = {}

    def __call__(self, event: m.Event, commands: Sequence[m.Command]) -> None:
        super().__call__(event, commands)
        if isinstance(event, m.Finished) and event.generation < self._newest[event.slot]:
            self.old.append(event)
        self._newest |= {command.slot: command.generation for command in commands if isinstance(command, m.Start)}


def task(number: int) -> Task:
    return Task(file_of(np.full((32, 32, 3), 20 * number, np.uint8)), "", number)


async def test_a_late_report_about_an_old_generation_answers_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker_main.main", late.main)
    monkeypatch.setenv(late.CHANCE, ALWAYS)

    seen = Generations()
    async with running(seen) as pool:
        deadline = asyncio.get_running_loop().time() + 60
        # One after another, so that they follow each other in slot 0.
        answers = [await pool.generate(task(number), m.Job(0, deadline)) for number in range(IMAGES)]
    assert [answer.image for answer in answers] == [task(number).image for number in range(IMAGES)]
    assert seen.old
    replies = [command.job for command in seen.commands if isinstance(command, m.Reply)]
    assert replies == list(range(1, IMAGES + 1))
    assert not any(isinstance(event, m.WorkerExited) for event in seen.events)
