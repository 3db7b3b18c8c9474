"""The lives of workers: spawned, ready, silent, killed, lost, spawned again."""

import pytest

from scheduler.core import Scheduler
from scheduler.limits import Limits
from scheduler.messages import (
    Abandoned,
    Cancel,
    Cancelled,
    Costs,
    Expired,
    Kill,
    Opened,
    Reply,
    Spawn,
    Start,
    Submitted,
    Tick,
    WaitReason,
    WorkerExited,
    WorkerState,
)
from tests.scheduler.words import (
    CPU,
    GPU,
    SINGLE,
    Checked,
    done,
    failed,
    finished,
    job,
    loading,
    ready,
    released,
    scheduler,
    stepped,
)

FIRST = Start(1, "gpu0", 0, 1)
LOST = WorkerExited("gpu0", "SIGKILL")


def lose(core: Checked, now: float) -> float:
    """Lose the only worker once more, as soon as it is spawned; returns the pause before it is spawned again."""
    assert core.handle(now, LOST) == []
    wakeup = core.next_wakeup
    assert wakeup is not None
    assert core.handle(wakeup, Tick()) == [Spawn("gpu0")]
    return wakeup - now


def test_every_worker_is_spawned_when_the_shell_opens() -> None:
    core = Scheduler(["gpu0", "gpu1"], Limits())
    assert core.next_wakeup is None
    assert core.handle(0.0, Opened()) == [Spawn("gpu0"), Spawn("gpu1")]
    assert not core.ready


def test_the_service_is_ready_with_its_first_worker() -> None:
    core = loading("gpu0", "gpu1")
    core.handle(1.0, ready("gpu1"))
    assert core.ready
    assert core.state_of("gpu1") is WorkerState.READY
    assert core.state_of("gpu0") is WorkerState.LOADING


def test_it_is_not_ready_without_a_worker() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(1.0, LOST)
    assert not core.ready


# -------------------------------------------------------------------------------------------------------------- losses


def test_a_lost_workers_job_is_started_elsewhere() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(0.4, LOST) == [Start(1, "gpu1", 0, 2)]


def test_a_worker_that_finished_an_image_is_spawned_again_at_once() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    core.handle(1.0, finished(FIRST))
    assert core.handle(2.0, LOST) == [Spawn("gpu0")]
    assert core.workers()[0].restarts == 1
    assert core.workers()[0].reason == "SIGKILL"


def test_a_worker_that_finished_nothing_pauses_first() -> None:
    core = scheduler(ready("gpu0"), restart_backoff=0.5)
    assert core.handle(2.0, LOST) == []
    assert (core.state_of("gpu0"), core.next_wakeup) == (WorkerState.BACKOFF, 2.5)
    assert core.handle(2.4, Tick()) == []
    assert core.handle(2.5, Tick()) == [Spawn("gpu0")]


def test_the_pause_doubles_up_to_its_limit() -> None:
    core = loading("gpu0", restart_backoff=0.5, restart_backoff_max=3.0, quarantine_after=10**6)
    assert [lose(core, 10.0 * turn) for turn in range(5)] == pytest.approx([0.5, 1.0, 2.0, 3.0, 3.0])


def test_it_doubles_for_ever_without_overflow() -> None:
    core = loading("gpu0", quarantine_after=10**6)
    assert max(lose(core, 100.0 * turn) for turn in range(2000)) == pytest.approx(30.0)


def test_becoming_ready_does_not_end_the_doubling() -> None:
    core = loading("gpu0", restart_backoff=0.5, quarantine_after=10**6)
    assert lose(core, 0.0) == pytest.approx(0.5)
    core.handle(5.0, ready("gpu0"))
    assert lose(core, 6.0) == pytest.approx(1.0)


def test_a_worker_that_only_failed_has_proved_nothing() -> None:
    core = scheduler(ready("gpu0"), restart_backoff=0.5)
    core.handle(0.0, Submitted(job(1)))
    core.handle(1.0, failed(FIRST, "KeyError"))
    assert core.handle(2.0, LOST) == []
    assert core.next_wakeup == 2.5


def test_a_finished_image_ends_the_doubling() -> None:
    core = loading("gpu0", restart_backoff=0.5, quarantine_after=10**6)
    lose(core, 0.0)
    lose(core, 10.0)
    core.handle(20.0, ready("gpu0"))
    start = core.start(20.0, Submitted(job(1)))
    core.handle(21.0, finished(start))
    assert core.handle(22.0, LOST) == [Spawn("gpu0")]
    assert lose(core, 23.0) == pytest.approx(0.5)


def test_without_a_pause_it_is_spawned_in_the_same_breath() -> None:
    core = scheduler(ready("gpu0"), restart_backoff=0.0)
    assert core.handle(1.0, LOST) == [Spawn("gpu0")]


def test_a_new_process_may_have_other_costs() -> None:
    core = scheduler(ready("gpu0", GPU), restart_backoff=0.0)
    core.handle(1.0, LOST)
    core.handle(2.0, ready("gpu0", CPU))
    assert core.predicted_seconds == pytest.approx(10.0)
    assert core.workers()[0].capacity == 4


# ------------------------------------------------------------------------------------------------------------- silence


def test_a_worker_that_is_silent_while_busy_is_killed() -> None:
    core = scheduler(ready("gpu0"), heartbeat_floor=20.0)
    core.handle(5.0, Submitted(job(1)))
    assert core.next_wakeup == 25.0
    assert core.handle(24.9, Tick()) == []
    assert core.handle(25.0, Tick()) == [Kill("gpu0", "silent for 20.0 s")]
    assert core.state_of("gpu0") is WorkerState.ENDING
    assert not core.ready


def test_it_is_killed_once() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(5.0, Submitted(job(1)))
    core.handle(25.0, Tick())
    assert core.handle(500.0, Tick()) == []


def test_an_idle_worker_may_be_silent_for_ever() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    core.handle(1.0, finished(FIRST))
    assert core.next_wakeup is None
    assert core.handle(1e6, Tick()) == []


def test_an_idle_worker_is_given_its_time_from_the_start() -> None:
    core = scheduler(ready("gpu0"))
    assert core.handle(500.0, Submitted(job(1))) == [FIRST]
    assert core.handle(510.0, Tick()) == []


def test_every_step_is_a_sign_of_life() -> None:
    core = scheduler(ready("gpu0"), heartbeat_floor=20.0)
    core.handle(0.0, Submitted(job(1)))
    for step in range(1, 10):
        assert core.handle(15.0 * step, stepped("gpu0", step)) == []
    assert core.handle(135.0 + 19.9, Tick()) == []
    assert core.handle(135.0 + 20.0, Tick()) == [Kill("gpu0", "silent for 20.0 s")]


def test_a_finished_image_is_a_sign_of_life() -> None:
    core = scheduler(ready("gpu0"), heartbeat_floor=20.0)
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    core.handle(15.0, finished(FIRST))
    assert core.next_wakeup == 35.0


def test_another_job_is_no_sign_of_life() -> None:
    core = scheduler(ready("gpu0"), heartbeat_floor=20.0)
    core.handle(0.0, Submitted(job(1)))
    core.handle(19.0, Submitted(job(2)))
    assert core.handle(20.0, Tick()) == [Kill("gpu0", "silent for 20.0 s")]


@pytest.mark.parametrize(
    ("costs", "work", "seconds"),
    [
        pytest.param(GPU, 1.0, 20.0, id="the floor"),
        pytest.param(Costs(9, (5.0,), 1.0), 1.0, 40.0, id="a slow step"),
        pytest.param(Costs(9, (5.0,), 1.0), 2.0, 80.0, id="a large image"),
        pytest.param(Costs(9, (5.0, 9.0), 1.0), 1.0, 72.0, id="a slow step of a full batch"),
        pytest.param(Costs(9, (1.0,), 6.0), 1.0, 48.0, id="a slow decoder"),
    ],
)
def test_a_slow_worker_may_be_silent_for_longer(costs: Costs, work: float, seconds: float) -> None:
    core = scheduler(ready("gpu0", costs), heartbeat_factor=8.0, heartbeat_floor=20.0)
    core.handle(0.0, Submitted(job(1, work=work)))
    assert core.next_wakeup == pytest.approx(seconds)


def test_a_worker_that_does_not_let_go_is_killed() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    core.handle(1.0, Cancelled(1))
    assert core.handle(20.0, Tick()) == [Kill("gpu0", "silent for 20.0 s")]


def test_jobs_of_a_killed_worker_wait_until_it_is_reaped() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(20.0, Tick()) == [Kill("gpu0", "silent for 20.0 s")]
    assert core.handle(21.0, LOST) == [Start(1, "gpu1", 0, 2)]


def test_a_killed_worker_gets_no_more_jobs() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    core.handle(20.0, Tick())
    assert core.handle(20.0, Submitted(job(2))) == []
    assert core.wait_reason is WaitReason.NO_WORKER


def test_a_killed_workers_last_words_count() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    core.handle(20.0, Tick())
    assert core.handle(20.1, stepped("gpu0", 20)) == []
    assert core.handle(20.1, finished(FIRST)) == [Reply(1, done(FIRST))]
    assert core.handle(20.2, LOST) == [Spawn("gpu0")]


def test_nothing_is_cancelled_in_a_killed_worker() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1, deadline=30.0)))
    core.handle(0.0, Submitted(job(2)))
    core.handle(20.0, Tick())
    assert core.handle(21.0, Cancelled(2)) == [Reply(2, Abandoned())]
    assert core.handle(30.0, Tick()) == [Reply(1, Expired())]
    assert core.handle(31.0, LOST) == []
    assert (core.running, core.queue_depth) == (0, 0)


def test_a_leaving_slot_does_not_survive_its_worker() -> None:
    core = scheduler(ready("gpu0", SINGLE), restart_backoff=0.0)
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(1.0, Cancelled(1)) == [Reply(1, Abandoned()), Cancel("gpu0", 0, 1)]
    assert core.handle(2.0, LOST) == [Spawn("gpu0")]
    core.handle(3.0, ready("gpu0", SINGLE))
    assert core.handle(3.0, released(FIRST)) == []
    assert core.handle(3.0, Submitted(job(2))) == [Start(2, "gpu0", 0, 2)]


def test_a_worker_that_loads_too_long_is_killed() -> None:
    core = loading("gpu0", load_timeout=900.0)
    assert core.handle(899.9, Tick()) == []
    assert core.handle(900.0, Tick()) == [Kill("gpu0", "not ready after 900 s")]
    assert core.state_of("gpu0") is WorkerState.ENDING
    assert core.next_wakeup is None
    assert core.handle(901.0, LOST) == []
    assert core.handle(901.5, Tick()) == [Spawn("gpu0")]


def test_one_that_is_ready_just_too_late_is_lost_all_the_same() -> None:
    core = loading("gpu0", load_timeout=900.0)
    core.handle(900.0, Tick())
    assert core.handle(900.1, ready("gpu0")) == []
    assert core.state_of("gpu0") is WorkerState.ENDING


def test_one_that_is_ready_before_the_tick_is_in_time() -> None:
    core = loading("gpu0", load_timeout=900.0)
    assert core.handle(900.1, ready("gpu0")) == []
    assert core.state_of("gpu0") is WorkerState.READY


def test_a_loading_worker_may_die() -> None:
    core = loading("gpu0", restart_backoff=0.0)
    assert core.handle(5.0, LOST) == [Spawn("gpu0")]
