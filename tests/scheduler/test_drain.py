"""Shutting down: nothing new, everything accepted is answered, one Exit."""

import pytest

from scheduler.limits import Limits
from scheduler.messages import (
    Abandoned,
    Cancel,
    Cancelled,
    Drain,
    Draining,
    Event,
    Exit,
    Expired,
    Opened,
    Reply,
    Spawn,
    Start,
    Submitted,
    Tick,
    WorkerExited,
)
from tests.scheduler.words import SINGLE, Checked, done, finished, job, loading, ready, scheduler

FIRST, SECOND = Start(1, "gpu0", 0, 1), Start(2, "gpu0", 0, 2)


def draining() -> Checked:
    """Job 1 runs, job 2 waits, and the service drains until 30 s."""
    core = scheduler(ready("gpu0", SINGLE), restart_backoff=0.0, heartbeat_floor=100.0)
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    assert core.handle(1.0, Drain(until=30.0)) == []
    assert core.draining
    return core


def test_with_nothing_to_do_it_exits_at_once() -> None:
    core = scheduler(ready("gpu0"))
    assert core.handle(1.0, Drain(until=30.0)) == [Exit()]
    assert core.next_wakeup is None


def test_it_exits_at_once_while_loading_too() -> None:
    assert loading("gpu0").handle(1.0, Drain(until=30.0)) == [Exit()]


def test_new_jobs_are_turned_away() -> None:
    assert draining().handle(2.0, Submitted(job(3))) == [Reply(3, Draining())]


def test_accepted_jobs_are_finished_then_it_exits() -> None:
    core = draining()
    assert core.handle(2.0, finished(FIRST)) == [Reply(1, done(FIRST)), SECOND]
    assert core.handle(3.0, finished(SECOND)) == [Reply(2, done(SECOND, queued=2.0)), Exit()]


def test_unfinished_jobs_are_answered_when_the_drain_ends() -> None:
    core = draining()
    assert core.next_wakeup == 30.0
    core.handle(19.0, finished(FIRST))
    core.handle(29.0, Submitted(job(3)))
    assert core.handle(30.0, Tick()) == [Reply(2, Draining()), Exit()]


def test_those_who_wait_and_those_who_run_are_answered_in_order() -> None:
    core = draining()
    assert core.handle(30.0, finished(Start(9, "gpu0", 0, 99))) == [Reply(1, Draining()), Reply(2, Draining()), Exit()]


def test_a_second_drain_may_shorten_the_time() -> None:
    core = draining()
    assert core.handle(2.0, Drain(until=5.0)) == []
    assert core.next_wakeup == 5.0
    assert core.handle(5.0, Tick())[-1] == Exit()


def test_it_may_not_lengthen_it() -> None:
    core = draining()
    core.handle(2.0, Drain(until=500.0))
    core.handle(29.0, finished(FIRST))
    assert core.next_wakeup == 30.0


def test_a_drain_that_is_over_ends_everything_at_once() -> None:
    core = draining()
    assert core.handle(2.0, Drain(until=2.0)) == [Reply(1, Draining()), Reply(2, Draining()), Exit()]


def test_it_does_not_wait_for_slots_that_are_leaving() -> None:
    core = draining()
    core.handle(2.0, Cancelled(2))
    assert core.handle(2.0, Cancelled(1)) == [Reply(1, Abandoned()), Cancel("gpu0", 0, 1), Exit()]


def test_a_deadline_may_end_it() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1, deadline=10.0)))
    core.handle(0.0, Drain(until=30.0))
    assert core.handle(10.0, Tick()) == [Reply(1, Expired()), Cancel("gpu0", 0, 1), Exit()]


def test_a_worker_that_is_lost_meanwhile_is_spawned_again() -> None:
    core = draining()
    assert core.handle(2.0, WorkerExited("gpu0", "SIGKILL")) == [Spawn("gpu0")]
    assert core.handle(3.0, ready("gpu0", SINGLE)) == [Start(1, "gpu0", 0, 2)]


@pytest.mark.parametrize(
    "event",
    [
        Tick(),
        WorkerExited("gpu0", "told to stop"),
        finished(FIRST),
        Drain(until=0.0),
        Cancelled(1),
        Opened(),
        ready("nobody"),
    ],
)
def test_nothing_comes_after_exit(event: Event) -> None:
    core = draining()
    core.handle(30.0, Tick())
    assert core.handle(31.0, event) == []


def test_jobs_after_exit_are_refused() -> None:
    core = draining()
    core.handle(30.0, Tick())
    assert core.handle(31.0, Submitted(job(7))) == [Reply(7, Draining())]


def test_jobs_that_come_before_opened_wait_and_drain_like_others() -> None:
    core = Checked(["gpu0"], Limits())
    assert core.handle(0.0, Submitted(job(1))) == []
    assert core.handle(1.0, Submitted(job(2))) == []
    assert core.handle(2.0, Cancelled(1)) == [Reply(1, Abandoned())]
    assert core.handle(3.0, Opened()) == [Spawn("gpu0")]
    assert core.handle(4.0, Drain(until=9.0)) == []
    assert core.handle(5.0, ready("gpu0")) == [Start(2, "gpu0", 0, 1)]


def test_a_drain_before_opened_ends_at_once_when_nobody_waits() -> None:
    assert Checked(["gpu0"], Limits()).handle(0.0, Drain(until=9.0)) == [Exit()]
