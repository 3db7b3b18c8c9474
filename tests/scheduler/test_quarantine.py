"""Workers that exit again and again, or whose device is faulty, are quarantined for a while."""

import pytest

from scheduler.errors import IllegalEvent
from scheduler.messages import (
    Draining,
    Exit,
    Faulted,
    Kill,
    Reply,
    Spawn,
    Start,
    Submitted,
    Tick,
    WorkerExited,
    WorkerState,
)
from tests.scheduler.words import GPU, Checked, done, finished, job, loading, ready, scheduler

LIMITS = {"restart_backoff": 0.0, "quarantine_after": 3, "quarantine_pause": 100.0}


def lose(core: Checked, worker: str, *, times: int = 1, now: float = 1.0) -> None:
    for _ in range(times):
        core.handle(now, WorkerExited(worker, "SIGSEGV"))


def reason_of(core: Checked, worker: str) -> str:
    return next(view.reason for view in core.workers() if view.id == worker)


def test_a_worker_that_is_lost_too_often_is_quarantined() -> None:
    core = loading("gpu0", "gpu1", **LIMITS)
    lose(core, "gpu0", times=2)
    assert core.state_of("gpu0") is WorkerState.LOADING
    lose(core, "gpu0")
    assert (core.state_of("gpu0"), reason_of(core, "gpu0")) == (WorkerState.QUARANTINED, "SIGSEGV")


def test_a_worker_whose_next_process_would_end_alike_is_quarantined_at_once() -> None:
    core = loading("gpu0", "gpu1", **LIMITS)
    core.handle(1.0, WorkerExited("gpu0", "no such model", hopeless=True))
    assert (core.state_of("gpu0"), reason_of(core, "gpu0")) == (WorkerState.QUARANTINED, "no such model")


def test_it_is_tried_again_after_a_long_pause_and_out_again_with_the_next_loss() -> None:
    core = loading("gpu0", "gpu1", **LIMITS)
    core.handle(0.0, ready("gpu1"))
    lose(core, "gpu0", times=3, now=1.0)
    assert core.next_wakeup == 101.0
    assert core.handle(100.0, Tick()) == []
    assert core.handle(101.0, Tick()) == [Spawn("gpu0")]
    lose(core, "gpu0", now=102.0)
    assert core.state_of("gpu0") is WorkerState.QUARANTINED


def test_one_that_finishes_an_image_has_all_its_tries_again() -> None:
    core = scheduler(ready("gpu0"), **LIMITS)
    for _ in range(2):
        lose(core, "gpu0")
    core.handle(1.0, ready("gpu0"))
    first = core.start(1.0, Submitted(job(1)))
    core.handle(2.0, finished(first))
    lose(core, "gpu0", times=3, now=3.0)
    assert core.state_of("gpu0") is WorkerState.LOADING


def test_one_that_was_ready_for_long_has_all_its_tries_again_though_nobody_wanted_an_image() -> None:
    core = scheduler(ready("gpu0"), **LIMITS)
    lose(core, "gpu0", times=2)
    core.handle(1.0, ready("gpu0"))
    lose(core, "gpu0", times=3, now=101.0)
    assert core.state_of("gpu0") is WorkerState.LOADING


def test_when_all_are_quarantined_everybody_is_told_and_it_ends_with_the_reasons() -> None:
    core = loading("gpu0", "gpu1", **LIMITS)
    core.handle(0.0, Submitted(job(1)))
    lose(core, "gpu0", times=3)
    lose(core, "gpu1", times=2)
    told = "gpu0 is quarantined: SIGSEGV; gpu1 is quarantined: no driver"
    assert core.handle(1.0, WorkerExited("gpu1", "no driver")) == [Reply(1, Draining()), Exit(told)]
    assert core.handle(1.0, Submitted(job(2))) == [Reply(2, Draining())]
    assert core.next_wakeup is None


def test_a_drain_that_nothing_failed_in_ends_without_a_reason() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"), **LIMITS)
    lose(core, "gpu0", times=3)
    start = core.start(1.0, Submitted(job(1)))
    assert core.handle(2.0, finished(start)) == [Reply(1, done(start))]


@pytest.mark.parametrize("state", [WorkerState.READY, WorkerState.LOADING])
def test_a_worker_whose_device_is_faulty_is_killed_and_quarantined(state: WorkerState) -> None:
    core = loading("gpu0", "gpu1", **LIMITS)
    if state is WorkerState.READY:
        core.handle(0.0, ready("gpu0"))
    assert core.handle(1.0, Faulted("gpu0", "XID 79")) == [Kill("gpu0", "XID 79")]
    assert core.handle(1.5, WorkerExited("gpu0", "killed by SIGKILL")) == []
    assert (core.state_of("gpu0"), reason_of(core, "gpu0")) == (WorkerState.QUARANTINED, "XID 79")


def test_its_jobs_are_done_elsewhere() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"), **LIMITS)
    core.handle(0.0, Submitted(job(1)))
    core.handle(1.0, Faulted("gpu0", "XID 79"))
    assert core.handle(1.5, WorkerExited("gpu0", "killed by SIGKILL")) == [Start(1, "gpu1", 0, 2)]


def test_a_fault_during_the_backoff_quarantines_the_worker() -> None:
    core = loading("gpu0", "gpu1", restart_backoff=5.0, quarantine_pause=100.0)
    lose(core, "gpu0", now=1.0)
    core.handle(2.0, Faulted("gpu0", "XID 79"))
    assert core.state_of("gpu0") is WorkerState.QUARANTINED
    assert core.handle(50.0, Tick()) == []
    core.handle(60.0, Faulted("gpu0", "XID 48"))
    assert core.handle(159.0, Tick()) == []
    assert core.handle(160.0, Tick()) == [Spawn("gpu0")]


def test_a_fault_of_a_worker_that_is_being_killed_quarantines_it() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"), heartbeat_floor=5.0, **LIMITS)
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(5.0, Tick()) == [Kill("gpu0", "silent for 5.0 s")]
    core.handle(5.1, Faulted("gpu0", "XID 79"))
    core.handle(5.2, WorkerExited("gpu0", "killed by SIGKILL"))
    assert core.state_of("gpu0") is WorkerState.QUARANTINED


def test_one_that_is_out_has_no_process_to_lose_and_none_that_is_ready() -> None:
    core = loading("gpu0", "gpu1", **LIMITS)
    lose(core, "gpu0", times=3)
    with pytest.raises(IllegalEvent, match="no process to lose"):
        core.handle(1.0, WorkerExited("gpu0", "again"))
    with pytest.raises(IllegalEvent, match="in state quarantined"):
        core.handle(1.0, ready("gpu0", GPU))


def test_when_the_last_is_lost_after_the_pause_of_another_is_over_that_one_is_tried_again() -> None:
    """No Tick came in between: the event loop was busy, say."""
    core = scheduler(ready("gpu0"), ready("gpu1"), **LIMITS)
    core.handle(0.0, Faulted("gpu0", "XID 79"))
    lose(core, "gpu0", now=0.0)
    core.handle(1.0, Faulted("gpu1", "XID 79"))
    core.handle(1.0, Submitted(job(1)))
    assert core.handle(101.0, WorkerExited("gpu1", "killed")) == [Spawn("gpu0")]
    assert (core.state_of("gpu0"), core.state_of("gpu1")) == (WorkerState.LOADING, WorkerState.QUARANTINED)
    assert core.queue_depth == 1
