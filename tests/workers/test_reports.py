"""Reports that cannot be: each costs the worker that sent it, and neither the front end nor a job."""

import asyncio
import os

import msgspec
import pytest

from scheduler import messages as m
from tests.workers import lying
from tests.workers.test_pool import TASK, Seen, make, running, until
from workers.channel import (
    MAX_PREVIEW,
    MAX_WARNINGS,
    REASON_CHARS,
    WARNING_CHARS,
    Preview,
    Report,
    StatusChanged,
    is_possible,
    receive_report,
    socket_pair,
)
from workers.engine.contract import MAX_SIZES, EngineStatus
from workers.shared_memory import SlotLayout

LAYOUT = SlotLayout(2, 2**20, 2**20)
POSSIBLE = (
    m.WorkerReady(lying.ID, lying.COSTS),
    m.Measured(lying.ID, m.Costs(4, (0.1, 0.1), 0.2, 0.1, ((lying.WIDE, (0.3, 0.4)),) * MAX_SIZES)),
    m.Finished(lying.ID, 1, 1, m.Image(2**20, *lying.TIMES)),
    m.Finished(lying.ID, 1, 1, m.Image(2**20, *lying.TIMES, ("x" * WARNING_CHARS,) * MAX_WARNINGS)),
    m.Stepped(lying.ID, ((0, 1), (1, 4)), (4, 4)),
    Preview(0, 1, bytes(MAX_PREVIEW)),
    m.Failed(lying.ID, 1, 1, "x" * REASON_CHARS, m.Blame.SERVICE),
    StatusChanged(EngineStatus(graphs=(("step", 3),))),
)
SENT_TO_A_POOL = (
    "costs that are no numbers",
    "more slots than there are",
    "text that is not UTF-8",
    "an image of nobody",
    "a length below zero",
    "a length beyond the slot",
    "a long warning",
    "a step after the last",
    "a large preview",
    "long exit reason",
    *lying.UNTIMELY,
)


@pytest.mark.parametrize("report", POSSIBLE, ids=lambda report: type(report).__name__)
def test_reports_of_an_honest_worker_are_possible(report: Report) -> None:
    assert is_possible(report, LAYOUT)


@pytest.mark.parametrize("lie", [*lying.EARLY, *lying.LATE])
def test_impossible_reports_are_recognised(lie: str) -> None:
    said = lying.LIES[lie]
    ours, theirs = socket_pair()
    with ours, theirs:
        theirs.send(said if isinstance(said, bytes) else msgspec.msgpack.encode(said))
        if isinstance(said, bytes):
            with pytest.raises(ValueError, match=r".+"):
                receive_report(ours)
        else:
            received = receive_report(ours)
            assert received is not None
            assert not is_possible(received, LAYOUT)


@pytest.mark.parametrize("lie", SENT_TO_A_POOL)
async def test_it_costs_the_worker_that_sent_it_and_no_job(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker_main.main", lying.main)
    monkeypatch.setenv(lying.LIE, lie)

    seen = Seen()
    async with running(seen) as pool:
        job = asyncio.create_task(make(pool))
        await until(lambda: bool(pool.processes))
        del os.environ[lying.LIE]  # the next process is an honest one
        assert (await job).image == TASK.image
        assert pool.core.running == 0
        pool.core.check()
    lost = [event.reason for event in seen.events if isinstance(event, m.WorkerExited)]
    assert len(lost) == 1
    assert lost[0].startswith(("it sent an invalid report", "it sent a ", "its report was refused"))
    assert len(lost[0]) <= REASON_CHARS


async def test_a_worker_that_only_looks_as_if_it_had_ended_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker_main.main", lying.main)
    monkeypatch.setenv(lying.LIE, lying.HIDE)

    seen = Seen()
    async with running(seen) as pool:
        await until(lambda: any(isinstance(event, m.WorkerExited) for event in seen.events))
        del os.environ[lying.LIE]
        assert (await make(pool)).image == TASK.image
    lost = [event.reason for event in seen.events if isinstance(event, m.WorkerExited)]
    assert set(lost) == {"killed by SIGKILL"}


async def test_a_worker_that_never_stops_reporting_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.worker_main.main", lying.main)
    monkeypatch.setenv(lying.LIE, lying.FLOOD)

    seen = Seen()
    async with running(seen, workers=2) as pool:
        assert [(await make(pool)).image for _ in range(3)] == [TASK.image] * 3
        flood = [event for event in seen.events if isinstance(event, m.Released)]
        assert len(flood) > 100
