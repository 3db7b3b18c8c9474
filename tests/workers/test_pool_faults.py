"""Errors of our own, in every place of the pool: each costs at most the job it was about, and never a slot."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest

from scheduler import messages as m
from tests.service.running import descendants
from tests.workers.faulty import (
    JOBS,
    LAYOUT,
    FailOnce,
    Fault,
    assert_nothing_is_left,
    every_slot_works,
    kinds,
    two_workers,
)
from tests.workers.test_pool import PATIENCE, TASK, Seen, make, until
from workers.channel import Device, pack
from workers.engine.contract import Task
from workers.jobs import JobResult
from workers.pool import Pool
from workers.process import Child
from workers.shared_memory import SlotMemory


def provoke(pool: Pool, kind: type[m.Command], jobs: list["asyncio.Task[JobResult]"]) -> None:
    """Do what makes the scheduler say such a command, if jobs alone do not."""
    if kind is m.Cancel:
        jobs.pop(0).cancel()
    if kind is m.Kill:
        pool.devices["cpu0"] = Device("a GPU", "GPU-1")
        pool.fault({"GPU-1"}, "GPU-1 reports XID 79")
    if kind is m.Spawn:
        os.kill(pool.processes["cpu0"], signal.SIGKILL)


@pytest.mark.parametrize("kind", get_args(m.Command), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("error", [Fault("of ours"), MemoryError()], ids=["fault", "memory"])
async def test_an_exception_in_one_command_costs_one_job_at_most(
    kind: type[m.Command], error: Exception, fail_once: FailOnce
) -> None:
    async with two_workers() as pool:
        jobs = [asyncio.create_task(make(pool)) for _ in range(JOBS)]
        await until(lambda: pool.core.running == 4)
        raised = fail_once(pool, "_perform", error, lambda command: isinstance(command, kind))
        provoke(pool, kind, jobs)
        answers = await asyncio.gather(*jobs)
        expected = ["Broken"] if kind in {m.Start, m.Reply} else []
        assert kinds(answers) == expected + ["Done"] * (len(jobs) - len(expected))
        await until(lambda: pool.core.running == 0)
        await every_slot_works(pool)
    assert raised  # of Exit, by the drain


async def test_a_slot_that_cannot_be_written_to_costs_one_job(fail_once: FailOnce) -> None:
    async with two_workers() as pool:
        fail_once(SlotMemory, "input", MemoryError())
        assert kinds(await asyncio.gather(*(make(pool) for _ in range(JOBS)))) == ["Broken"] + ["Done"] * 5
        await every_slot_works(pool)


async def test_an_image_that_cannot_be_copied_out_costs_one_job(fail_once: FailOnce) -> None:
    async with two_workers() as pool:
        fail_once(SlotMemory, "output", MemoryError())
        assert kinds(await asyncio.gather(*(make(pool) for _ in range(JOBS)))) == ["Broken"] + ["Done"] * 5
        await every_slot_works(pool)


async def test_a_worker_that_is_not_killed_at_once_is_killed_soon(fail_once: FailOnce) -> None:
    async with two_workers() as pool:
        first = pool.processes["cpu0"]
        fail_once(Child, "kill", PermissionError(1, "Operation not permitted"))
        provoke(pool, m.Kill, [])
        assert pool.processes["cpu0"] == first
        await until(lambda: pool.processes.get("cpu0", first) != first)
        await every_slot_works(pool)


@pytest.mark.parametrize("watched", [1, 2])
async def test_a_process_that_cannot_be_watched_is_ended(watched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would use the same memory as the next one, and nobody would see it end."""

    loop, calls, before = asyncio.get_running_loop(), [], descendants(os.getpid())
    add = loop.add_reader

    def add_reader(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == watched:
            raise OSError(28, "No space left on device")  # epoll has a limit for each user
        add(*arguments)

    monkeypatch.setattr(loop, "add_reader", add_reader)
    async with two_workers() as pool:
        await every_slot_works(pool)
        started = descendants(os.getpid()) - before
        assert len(started & set(pool.processes.values())) == 2
        assert len(started) <= 3  # and Python's resource tracker


async def test_an_observer_that_always_fails_costs_nothing() -> None:
    class Failing(Seen):
        def __call__(self, event: m.Event, commands: Sequence[m.Command]) -> None:
            raise Fault("of an observer")

    async with two_workers(Failing()) as pool:
        await every_slot_works(pool)


# ---------------------------------------------------------------------------------------------- what is never submitted


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (replace(TASK, text="\ud800"), UnicodeEncodeError),
        (replace(TASK, options=replace(TASK.options, negative="\udfff")), UnicodeEncodeError),
        (replace(TASK, seed=2**64), OverflowError),
        (replace(TASK, image=bytes(LAYOUT.input_bytes)), ValueError),
        (replace(TASK, text="x" * LAYOUT.input_bytes), ValueError),
    ],
    ids=["surrogate", "surrogate in an option", "seed", "image", "text"],
)
async def test_a_task_that_does_not_fit_into_a_slot_is_never_submitted(task: Task, error: type[Exception]) -> None:
    seen = Seen()
    async with two_workers(seen) as pool:
        with pytest.raises(error):
            await pool.generate(task, m.Job(0, time.monotonic() + PATIENCE), lambda news: None)
        assert_nothing_is_left(pool)
        await every_slot_works(pool)
    assert sum(isinstance(event, m.Submitted) for event in seen.events) == 4


async def test_a_task_that_fills_its_slot_is_made() -> None:
    async with two_workers() as pool:
        room = LAYOUT.input_bytes - len(pack(TASK))
        task = replace(TASK, image=bytes(TASK.image).ljust(room, b"\0"))
        answer = await pool.generate(task, m.Job(0, time.monotonic() + PATIENCE))
        assert answer.image == task.image
