"""Errors of our own, in every place of the pool: each costs at most the job it was about, and never a slot."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeAlias, get_args

import pytest

from scheduler import messages as m
from scheduler.core import IllegalEvent, Scheduler
from scheduler.policy import Limits
from tests.service.running import descendants
from tests.workers.test_pool import ECHO, PATIENCE, TASK, Seen, make, until
from workers import pool as pool_module
from workers import wire
from workers.child import Child
from workers.devices import DeviceSpec
from workers.engine.contract import Task
from workers.pool import Answer, Device, Pool, Terms
from workers.process import Setup
from workers.slots import SlotLayout, SlotMemory

JOBS = 6
FailOnce: TypeAlias = Callable[..., list[str]]
LAYOUT = SlotLayout(ECHO.slots, 2**16, 2**16)


class Fault(Exception):
    """What no part of the service expects."""


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> FailOnce:
    """Replace a method: the first call that `when` picks raises, all others do what they did; its name when it has."""

    def fail_once(owner: object, name: str, error: Exception, when: Callable[..., bool] = lambda *_: True) -> list[str]:
        method, raised = getattr(owner, name), list[str]()

        def instead(*arguments: Any) -> Any:
            if not raised and when(*arguments):
                raised.append(name)
                raise error
            return method(*arguments)

        monkeypatch.setattr(owner, name, instead)
        return raised

    return fail_once


@asynccontextmanager
async def two_workers(seen: Seen | None = None) -> AsyncIterator[Pool]:
    """A pool with two real workers; afterwards nothing of any job may be left, and there may be no process."""
    setups = [Setup(DeviceSpec(name, "cpu", None), ECHO, threads=1) for name in ("cpu0", "cpu1")]
    core = Scheduler(["cpu0", "cpu1"], Limits(restart_pause=0.05, out_pause=0.05))
    pool = Pool(setups, core, LAYOUT, seen or Seen())
    task = asyncio.create_task(pool.run())
    yield pool
    pool.drain(PATIENCE)
    await asyncio.wait_for(task, PATIENCE)
    assert_nothing_is_left(pool)
    assert not pool.processes


def assert_nothing_is_left(pool: Pool) -> None:
    pool.core.check()
    assert (pool.core.running, pool.core.queue_depth) == (0, 0)
    assert list(pool._pending) == []
    assert pool._watching._watches == {}


def assert_timer_is_set(pool: Pool) -> None:
    assert pool._timer is not None
    assert not pool._timer.cancelled()


def all_are_ready(pool: Pool) -> bool:
    return all(view.state is m.WorkerState.READY for view in pool.core.workers())


async def every_slot_works(pool: Pool) -> None:
    """As many jobs as there are slots, at the same time, each with its image."""
    await until(lambda: all_are_ready(pool))
    assert [answer.picture for answer in await asyncio.gather(*(make(pool) for _ in range(4)))] == [TASK.picture] * 4


def kinds(answers: Sequence[Answer]) -> list[str]:
    return sorted(type(answer.outcome).__name__ for answer in answers)


def provoke(pool: Pool, kind: type[m.Command], jobs: list["asyncio.Task[Answer]"]) -> None:
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
def test_an_exception_in_one_command_costs_one_job_at_most(
    kind: type[m.Command], error: Exception, fail_once: FailOnce
) -> None:
    async def scenario() -> None:
        async with two_workers() as pool:
            await until(lambda: all_are_ready(pool))
            jobs = [asyncio.create_task(make(pool)) for _ in range(JOBS)]
            await until(lambda: pool.core.running == 4)
            raised = fail_once(pool, "_perform", error, lambda command: isinstance(command, kind))
            provoke(pool, kind, jobs)
            assert_timer_is_set(pool)
            answers = await asyncio.gather(*jobs)
            expected = ["Broken"] if kind in {m.Start, m.Reply} else []
            assert kinds(answers) == expected + ["Done"] * (len(jobs) - len(expected))
            await until(lambda: pool.core.running == 0)
            await every_slot_works(pool)
        assert raised  # of Exit, by the drain

    asyncio.run(scenario())


def test_a_slot_that_cannot_be_written_to_costs_one_job(fail_once: FailOnce) -> None:
    async def scenario() -> None:
        async with two_workers() as pool:
            await until(lambda: all_are_ready(pool))
            fail_once(SlotMemory, "input", MemoryError())
            assert kinds(await asyncio.gather(*(make(pool) for _ in range(JOBS)))) == ["Broken"] + ["Done"] * 5
            await every_slot_works(pool)

    asyncio.run(scenario())


def test_an_image_that_cannot_be_copied_out_costs_one_job(fail_once: FailOnce) -> None:
    async def scenario() -> None:
        async with two_workers() as pool:
            await until(lambda: all_are_ready(pool))
            fail_once(SlotMemory, "output", MemoryError())
            assert kinds(await asyncio.gather(*(make(pool) for _ in range(JOBS)))) == ["Broken"] + ["Done"] * 5
            await every_slot_works(pool)

    asyncio.run(scenario())


def test_a_worker_that_is_not_killed_at_once_is_killed_soon(fail_once: FailOnce) -> None:
    async def scenario() -> None:
        async with two_workers() as pool:
            await until(lambda: all_are_ready(pool))
            first = pool.processes["cpu0"]
            fail_once(Child, "kill", PermissionError(1, "Operation not permitted"))
            provoke(pool, m.Kill, [])
            assert pool.processes["cpu0"] == first
            await until(lambda: pool.processes.get("cpu0", first) != first)
            await every_slot_works(pool)

    asyncio.run(scenario())


@pytest.mark.parametrize("watched", [1, 2])
def test_a_process_that_cannot_be_watched_is_ended(watched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would use the same memory as the next one, and nobody would see it end."""

    async def scenario() -> None:
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

    asyncio.run(scenario())


def test_an_observer_that_always_fails_costs_nothing() -> None:
    class Failing(Seen):
        def __call__(self, event: m.Event, commands: Sequence[m.Command]) -> None:
            raise Fault("of an observer")

    async def scenario() -> None:
        async with two_workers(Failing()) as pool:
            await every_slot_works(pool)

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------- what is never submitted


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (replace(TASK, text="\ud800"), UnicodeEncodeError),
        (replace(TASK, options=replace(TASK.options, negative="\udfff")), UnicodeEncodeError),
        (replace(TASK, seed=2**64), OverflowError),
        (replace(TASK, picture=bytes(LAYOUT.input_bytes)), ValueError),
        (replace(TASK, text="x" * LAYOUT.input_bytes), ValueError),
    ],
    ids=["surrogate", "surrogate in an option", "seed", "picture", "text"],
)
def test_a_task_that_does_not_fit_into_a_slot_is_never_submitted(task: Task, error: type[Exception]) -> None:
    async def scenario() -> None:
        seen = Seen()
        async with two_workers(seen) as pool:
            with pytest.raises(error):
                await pool.generate(task, Terms(time.monotonic() + PATIENCE), lambda news: None)
            assert_nothing_is_left(pool)
            await every_slot_works(pool)
        assert sum(isinstance(event, m.Submitted) for event in seen.events) == 4

    asyncio.run(scenario())


def test_a_task_that_fills_its_slot_is_made() -> None:
    async def scenario() -> None:
        async with two_workers() as pool:
            room = LAYOUT.input_bytes - len(wire.pack(TASK))
            task = replace(TASK, picture=bytes(TASK.picture).ljust(room, b"\0"))
            answer = await pool.generate(task, Terms(time.monotonic() + PATIENCE))
            assert answer.picture == task.picture

    asyncio.run(scenario())


# ----------------------------------------------------------------------------------------------- a scheduler that fails


@pytest.mark.parametrize("after", ["handle", "_place", "_exit_when_drained"])
def test_a_submission_that_fails_leaves_nothing_behind(after: str, fail_once: FailOnce) -> None:
    async def scenario() -> None:
        async with two_workers() as pool:
            await until(lambda: all_are_ready(pool))
            jobs = [asyncio.create_task(make(pool)) for _ in range(JOBS)]
            await until(lambda: pool.core.running == 4)
            fail_once(pool.core, after, Fault("of the scheduler"))
            with pytest.raises(Fault):
                await pool.generate(TASK, Terms(time.monotonic() + PATIENCE), lambda news: None)
            assert_timer_is_set(pool)
            assert kinds(await asyncio.gather(*jobs)) == ["Done"] * JOBS
            await every_slot_works(pool)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [m.Stepped, m.Finished])
@pytest.mark.parametrize("error", [IllegalEvent("cannot be"), Fault("of the scheduler")], ids=["illegal", "fault"])
def test_a_report_that_the_scheduler_cannot_take_costs_its_worker_and_no_job(
    kind: type[m.Event], error: Exception, fail_once: FailOnce
) -> None:
    async def scenario() -> None:
        seen = Seen()
        async with two_workers(seen) as pool:
            await until(lambda: all_are_ready(pool))
            jobs = [asyncio.create_task(make(pool)) for _ in range(JOBS)]
            fail_once(pool.core, "handle", error, lambda _, event: isinstance(event, kind))
            assert kinds(await asyncio.gather(*jobs)) == ["Done"] * JOBS
            await every_slot_works(pool)
        lost = [event.reason for event in seen.events if isinstance(event, m.WorkerLost)]
        assert lost == [f"its report was refused: {error}"]

    asyncio.run(scenario())


def test_the_death_of_a_worker_is_told_until_the_scheduler_takes_it(fail_once: FailOnce) -> None:
    async def scenario() -> None:
        async with two_workers() as pool:
            await until(lambda: all_are_ready(pool))
            jobs = [asyncio.create_task(make(pool)) for _ in range(JOBS)]
            await until(lambda: pool.core.running == 4)
            raised = fail_once(
                pool.core, "handle", Fault("of the scheduler"), lambda _, event: isinstance(event, m.WorkerLost)
            )
            os.kill(pool.processes["cpu0"], signal.SIGKILL)
            assert kinds(await asyncio.gather(*jobs)) == ["Done"] * JOBS
            assert raised
            await every_slot_works(pool)

    asyncio.run(scenario())


def test_a_wake_up_that_keeps_failing_is_tried_again_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with two_workers() as pool:
            await until(lambda: all_are_ready(pool))
            job = asyncio.create_task(pool.generate(TASK, Terms(time.monotonic() + 1.0)))
            await asyncio.sleep(0)
            signal_all(pool, signal.SIGSTOP)
            ring, failures = pool.core._ring, list[float]()

            def fail(now: float) -> None:
                failures.append(now)
                raise Fault("of the scheduler")

            monkeypatch.setattr(pool.core, "_ring", fail)
            began = time.monotonic()
            await until(lambda: len(failures) > 5)
            assert time.monotonic() - began > 5 * pool_module.RETRY_SECONDS
            assert_timer_is_set(pool)
            monkeypatch.setattr(pool.core, "_ring", ring)
            assert kinds([await asyncio.wait_for(job, PATIENCE)]) == ["Expired"]
            signal_all(pool, signal.SIGCONT)
            await every_slot_works(pool)

    asyncio.run(scenario())


def signal_all(pool: Pool, sig: signal.Signals) -> None:
    for process in pool.processes.values():
        os.kill(process, sig)


def test_a_drain_ends_although_the_scheduler_fails_and_everybody_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "DRAIN_GRACE", 0.5)

    async def scenario() -> None:
        setup = Setup(DeviceSpec("cpu0", "cpu", None), ECHO, threads=1)
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

    asyncio.run(scenario())
