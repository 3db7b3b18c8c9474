"""How jobs end: deadline, cancel, failure; and what becomes of their slots."""

from scheduler.messages import (
    Abandoned,
    Blame,
    Broken,
    Cancel,
    Cancelled,
    Expired,
    Refused,
    Reply,
    Start,
    Submitted,
    Tick,
    WaitReason,
    WorkerExited,
)
from tests.scheduler.words import CPU, SINGLE, Checked, done, failed, finished, job, ready, released, scheduler, stepped

FIRST = Start(1, "gpu0", 0, 1)
CANCEL = Cancel("gpu0", 0, 1)


def running_one(deadline: float = 1000.0) -> Checked:
    """Job 1 runs in the only slot, job 2 waits."""
    core = scheduler(ready("gpu0", SINGLE))
    assert core.handle(0.0, Submitted(job(1, deadline))) == [FIRST]
    assert core.handle(0.0, Submitted(job(2))) == []
    return core


def test_a_waiting_job_that_is_cancelled_leaves_the_queue() -> None:
    core = running_one()
    assert core.handle(0.1, Cancelled(2)) == [Reply(2, Abandoned())]
    assert (core.queue_depth, core.wait_reason) == (0, None)
    assert core.handle(1.0, finished(FIRST)) == [Reply(1, done(FIRST))]


def test_a_running_job_that_is_cancelled_is_answered_at_once() -> None:
    core = running_one()
    assert core.handle(0.1, Cancelled(1)) == [Reply(1, Abandoned()), CANCEL]
    assert core.running == 0


def test_its_slot_is_not_free_before_the_worker_says_so() -> None:
    core = running_one()
    core.handle(0.1, Cancelled(1))
    assert core.wait_reason is WaitReason.SLOTS_TAKEN
    assert core.handle(0.2, released(FIRST)) == [Start(2, "gpu0", 0, 2)]


def test_an_image_that_was_finished_meanwhile_frees_the_slot_too() -> None:
    core = running_one()
    core.handle(0.1, Cancelled(1))
    assert core.handle(0.2, finished(FIRST)) == [Start(2, "gpu0", 0, 2)]


def test_an_image_that_failed_meanwhile_frees_the_slot_too() -> None:
    core = running_one()
    core.handle(0.1, Cancelled(1))
    assert core.handle(0.2, failed(FIRST, "KeyError")) == [Start(2, "gpu0", 0, 2)]


def test_it_is_cancelled_once() -> None:
    core = running_one()
    core.handle(0.1, Cancelled(1))
    assert core.handle(0.1, Cancelled(1)) == []


def test_a_client_may_go_as_the_reply_comes() -> None:
    core = running_one()
    core.handle(1.0, finished(FIRST))
    assert core.handle(1.0, Cancelled(1)) == []
    assert core.handle(1.0, Cancelled(99)) == []


def test_an_image_that_is_leaving_does_not_count_as_running_with_others() -> None:
    core = scheduler(ready("gpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))  # waits: it would slow the first
    assert core.handle(0.1, Cancelled(1)) == [Reply(1, Abandoned()), CANCEL, Start(2, "gpu0", 1, 2)]


def test_a_waiting_job_expires() -> None:
    core = running_one()
    core.handle(0.0, Submitted(job(3, deadline=5.0)))
    assert core.next_wakeup == 5.0
    assert core.handle(4.9, Tick()) == []
    assert core.handle(5.0, Tick()) == [Reply(3, Expired())]


def test_a_running_job_expires_and_its_slot_is_emptied() -> None:
    core = running_one(deadline=5.0)
    assert core.handle(5.0, Tick()) == [Reply(1, Expired()), CANCEL]
    assert core.handle(5.1, released(FIRST)) == [Start(2, "gpu0", 0, 2)]


def test_any_event_makes_jobs_expire() -> None:
    core = running_one(deadline=5.0)
    assert core.handle(6.0, stepped("gpu0", 3)) == [Reply(1, Expired()), CANCEL]


def test_an_image_that_comes_before_the_tick_is_in_time() -> None:
    core = running_one(deadline=5.0)
    assert core.handle(5.01, finished(FIRST)) == [Reply(1, done(FIRST)), Start(2, "gpu0", 0, 2)]


def test_an_expired_job_is_not_started() -> None:
    core = running_one()
    core.handle(0.0, Submitted(job(3, deadline=5.0)))
    core.handle(0.0, Cancelled(2))
    assert core.handle(5.0, finished(FIRST)) == [Reply(1, done(FIRST)), Reply(3, Expired())]


def test_a_deadline_is_forgotten_with_its_job() -> None:
    core = scheduler(ready("gpu0", SINGLE))
    core.handle(0.0, Submitted(job(1, deadline=5.0)))
    core.handle(1.0, finished(FIRST))
    assert core.next_wakeup is None
    assert core.handle(6.0, Tick()) == []


def test_an_image_that_cannot_be_read_is_refused() -> None:
    core = running_one()
    assert core.handle(0.1, failed(FIRST, "not an image", Blame.IMAGE)) == [
        Reply(1, Refused("not an image")),
        Start(2, "gpu0", 0, 2),
    ]


def test_a_worker_that_fails_on_a_job_breaks_it() -> None:
    core = running_one()
    assert core.handle(0.1, failed(FIRST, "KeyError"))[0] == Reply(1, Broken("KeyError"))


def test_a_late_message_is_not_taken_for_the_next_tenants() -> None:
    core = scheduler(ready("gpu0", SINGLE))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.1, WorkerExited("gpu0", "SIGSEGV"))
    core.handle(1.0, Tick())
    second = Start(1, "gpu0", 0, 2)
    assert core.handle(2.0, ready("gpu0", SINGLE)) == [second]
    for late in (finished(FIRST), failed(FIRST, "late", Blame.IMAGE), released(FIRST)):
        assert core.handle(3.0, late) == []
    assert core.handle(3.0, finished(second)) == [Reply(1, done(second, queued=2.0))]


def test_a_message_about_a_free_slot_is_ignored() -> None:
    core = scheduler(ready("gpu0"))
    assert core.handle(0.0, finished(Start(1, "gpu0", 3, 7))) == []
    assert core.handle(0.0, finished(Start(1, "gpu0", 99, 7))) == []
    assert core.handle(0.0, stepped("gpu0", 3)) == []


def test_seconds_in_the_queue_run_to_the_last_start() -> None:
    core = running_one()
    core.handle(3.0, finished(FIRST))
    second = Start(2, "gpu0", 0, 2)
    assert core.handle(4.0, finished(second)) == [Reply(2, done(second, queued=3.0))]
