"""Jobs that were in a lost worker: tried once more, alone, then convicted."""

from msgspec.structs import replace

from scheduler.messages import (
    Abandoned,
    Blame,
    Broken,
    Cancel,
    Cancelled,
    Command,
    Reply,
    Spawn,
    Start,
    Submitted,
    Tick,
    WaitReason,
    WorkerCrash,
    WorkerExited,
)
from tests.scheduler.words import SINGLE, SLOW_GPU, Checked, done, failed, finished, job, ready, released, scheduler

SLOW_SINGLE = replace(SLOW_GPU, step_seconds=SLOW_GPU.step_seconds[:1])


def submit(core: Checked, *ids: int) -> list[Command]:
    return [command for number in ids for command in core.handle(0.0, Submitted(job(number)))]


def lose(core: Checked, worker: str, now: float = 1.0) -> list[Command]:
    return core.handle(now, WorkerExited(worker, "SIGSEGV"))


def come_back(core: Checked, worker: str, now: float = 2.0) -> list[Command]:
    """The worker's pause is over, and it has loaded."""
    core.handle(now, Tick())
    return core.handle(now, ready(worker))


def test_a_job_that_loses_its_second_worker_is_not_tried_again() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    submit(core, 1)
    assert lose(core, "gpu0") == [Start(1, "gpu1", 0, 2)]
    assert lose(core, "gpu1") == [Reply(1, WorkerCrash(losses=2))]
    assert (core.running, core.queue_depth) == (0, 0)


def test_an_image_that_lacks_memory_is_made_alone_elsewhere() -> None:
    core = scheduler(ready("gpu0", SLOW_GPU), ready("gpu1"))
    submit(core, 1)
    first = Start(1, "gpu1", 0, 1)
    second = Start(1, "gpu0", 0, 2)
    assert core.handle(1.0, failed(first, "no memory", Blame.MEMORY)) == [second]
    assert core.handle(2.0, finished(second)) == [Reply(1, done(second, queued=1.0))]


def test_with_one_worker_it_is_made_alone_when_the_others_are_done() -> None:
    core = scheduler(ready("gpu0"))
    submit(core, 1, 2)
    assert core.handle(1.0, failed(Start(1, "gpu0", 0, 1), "no memory", Blame.MEMORY)) == []
    assert core.handle(1.0, Submitted(job(3))) == []
    assert core.handle(2.0, finished(Start(2, "gpu0", 1, 2)))[1:] == [Start(1, "gpu0", 0, 3)]


def test_an_image_that_lacks_memory_alone_too_fails_and_says_so() -> None:
    core = scheduler(ready("gpu0"))
    submit(core, 1)
    assert core.handle(1.0, failed(Start(1, "gpu0", 0, 1), "no memory", Blame.MEMORY)) == [Start(1, "gpu0", 0, 2)]
    assert core.handle(2.0, failed(Start(1, "gpu0", 0, 2), "no memory", Blame.MEMORY)) == [
        Reply(1, Broken("no memory"))
    ]


def test_an_image_that_lacks_memory_after_its_client_left_is_forgotten() -> None:
    core = scheduler(ready("gpu0"))
    submit(core, 1)
    core.handle(0.5, Cancelled(1))
    assert core.handle(1.0, failed(Start(1, "gpu0", 0, 1), "no memory", Blame.MEMORY)) == []
    assert (core.running, core.queue_depth) == (0, 0)


def test_workers_that_are_ended_from_outside_convict_nobody_until_it_is_a_habit() -> None:
    core = scheduler(ready("gpu0"), restart_backoff=0.0)
    submit(core, 1)
    for number in range(1, 10):
        core.handle(float(number), WorkerExited("gpu0", "killed by SIGKILL", outside=True))
        assert Start(1, "gpu0", 0, number + 1) in come_back(core, "gpu0", float(number))
    lost = core.handle(10.0, WorkerExited("gpu0", "killed by SIGKILL", outside=True))
    assert lost[0] == Reply(1, WorkerCrash(losses=10))


def test_a_job_whose_worker_was_killed_from_outside_runs_alone() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    submit(core, 1)
    assert core.handle(1.0, WorkerExited("gpu0", "killed by SIGKILL", outside=True)) == [Start(1, "gpu1", 0, 2)]
    assert core.handle(1.0, Submitted(job(2))) == []
    assert core.why() is WaitReason.SUSPECT


def test_the_number_of_attempts_is_configured() -> None:
    core = scheduler(ready("gpu0"), attempts=1)
    submit(core, 1, 2)
    assert lose(core, "gpu0") == [Reply(1, WorkerCrash(losses=1)), Reply(2, WorkerCrash(losses=1))]


def test_with_three_attempts_it_is_tried_three_times() -> None:
    core = scheduler(ready("gpu0"), attempts=3, restart_backoff=0.0)
    submit(core, 1)
    for now in (1.0, 2.0):
        assert lose(core, "gpu0", now) == [Spawn("gpu0")]
        core.handle(now, ready("gpu0"))
    assert lose(core, "gpu0", 3.0) == [Reply(1, WorkerCrash(losses=3)), Spawn("gpu0")]


def test_a_lost_job_goes_before_those_who_wait() -> None:
    core = scheduler(ready("gpu0", SINGLE))
    submit(core, 1, 2)
    lose(core, "gpu0")
    core.handle(2.0, Tick())
    assert core.handle(2.0, ready("gpu0", SINGLE)) == [Start(1, "gpu0", 0, 2)]


def test_lost_jobs_keep_their_order() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    submit(core, 1, 2, 3)  # 1 and 3 on the first, 2 on the second
    assert lose(core, "gpu0") == []
    assert come_back(core, "gpu0") == []  # another worker is to be tried, and that is busy
    second, first, third = Start(2, "gpu1", 0, 2), Start(1, "gpu1", 0, 4), Start(3, "gpu1", 0, 5)
    assert core.handle(3.0, finished(second))[1:] == [first]
    assert core.handle(4.0, finished(first))[1:] == [third]


def test_a_suspect_runs_alone() -> None:
    core = scheduler(ready("gpu0"), restart_backoff=0.0)
    submit(core, 1)
    lose(core, "gpu0")
    assert core.handle(1.0, ready("gpu0")) == [Start(1, "gpu0", 0, 2)]
    assert core.handle(1.0, Submitted(job(2))) == []
    assert core.why() is WaitReason.SUSPECT
    assert core.handle(2.0, finished(Start(1, "gpu0", 0, 2)))[1:] == [Start(2, "gpu0", 0, 3)]


def test_suspects_run_one_after_another() -> None:
    core = scheduler(ready("gpu0"))
    submit(core, 1, 2, 3)
    lose(core, "gpu0")
    assert come_back(core, "gpu0") == [Start(1, "gpu0", 0, 4)]
    assert core.why() is WaitReason.NEEDS_EMPTY
    assert core.handle(3.0, finished(Start(1, "gpu0", 0, 4)))[1:] == [Start(2, "gpu0", 0, 5)]
    assert core.handle(4.0, finished(Start(2, "gpu0", 0, 5)))[1:] == [Start(3, "gpu0", 0, 6)]


def test_the_second_death_convicts_only_the_one_that_ran_alone() -> None:
    core = scheduler(ready("gpu0"))
    submit(core, 1, 2)
    lose(core, "gpu0")
    come_back(core, "gpu0")
    core.handle(2.0, Submitted(job(3)))
    assert lose(core, "gpu0", 3.0) == [Reply(1, WorkerCrash(losses=2))]
    assert come_back(core, "gpu0", 9.0) == [Start(2, "gpu0", 0, 4)]


def test_a_suspect_waits_for_an_empty_worker_and_nobody_joins_that() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    submit(core, 1, 2)  # one each
    assert lose(core, "gpu0") == []
    assert core.why() is WaitReason.NEEDS_EMPTY
    assert core.handle(1.0, Submitted(job(3))) == []  # it would have joined job 2
    assert core.why() is WaitReason.SUSPECT
    assert core.handle(1.2, finished(Start(2, "gpu1", 0, 2)))[1:] == [Start(1, "gpu1", 0, 3)]


def test_a_full_worker_is_kept_too() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    starts = [start for start in submit(core, *range(1, 10)) if isinstance(start, Start)]  # four each, and job 9 waits
    lose(core, "gpu0")
    *others, last = [start for start in starts if start.worker == "gpu1"]
    for other in others:
        assert len(core.handle(1.2, finished(other))) == 1  # its reply; nobody takes the place
    assert core.handle(1.2, finished(last))[1:] == [Start(1, "gpu1", 0, 9)]


def test_others_go_on_in_the_other_workers_meanwhile() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"), ready("gpu2"))
    submit(core, 1, 2, 3)  # one each
    lose(core, "gpu0")
    assert core.handle(1.0, Submitted(job(4))) == [Start(4, "gpu2", 1, 4)]  # gpu1 is kept for job 1
    assert core.handle(1.0, Submitted(job(5))) == [Start(5, "gpu2", 2, 5)]
    assert core.handle(1.2, finished(Start(2, "gpu1", 0, 2)))[1:] == [Start(1, "gpu1", 0, 6)]


def test_any_worker_that_is_empty_first_takes_the_suspect() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"), ready("gpu2"))
    submit(core, 1, 2, 3)
    lose(core, "gpu0")
    assert core.handle(1.2, finished(Start(3, "gpu2", 0, 3)))[1:] == [Start(1, "gpu2", 0, 4)]
    assert core.handle(1.2, Submitted(job(4))) == [Start(4, "gpu1", 1, 5)]  # it was kept, and is not any longer


def test_when_the_suspect_goes_the_others_may_join_again() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    submit(core, 1, 2)
    lose(core, "gpu0")
    core.handle(1.0, Submitted(job(3)))
    assert core.handle(1.2, Cancelled(1)) == [Reply(1, Abandoned()), Start(3, "gpu1", 1, 3)]


def test_when_the_worker_that_is_kept_is_lost_another_is_kept() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"), ready("gpu2"))
    submit(core, 1, 2, 3)
    lose(core, "gpu0")  # gpu1 is kept
    assert lose(core, "gpu1") == []  # now gpu2
    assert core.handle(1.0, Submitted(job(4))) == []
    # The job lost last stands first.
    assert core.handle(1.2, finished(Start(3, "gpu2", 0, 3)))[1:] == [Start(2, "gpu2", 0, 4)]


def test_another_worker_is_preferred_even_if_it_is_slower() -> None:
    core = scheduler(ready("gpu0", SINGLE), ready("gpu1", SLOW_SINGLE), restart_backoff=0.0)
    submit(core, 1, 2, 3, 4)
    assert core.running == 2  # 2 is on the slow one, as there is a queue
    for number in (3, 4):
        core.handle(0.5, Cancelled(number))
    lose(core, "gpu0")
    assert core.handle(1.0, ready("gpu0")) == []  # it is empty, but the suspect died there
    assert core.handle(1.0, Submitted(job(3))) == [Start(3, "gpu0", 0, 3)]
    assert core.handle(2.0, finished(Start(2, "gpu1", 0, 2)))[1:] == [Start(1, "gpu1", 0, 4)]


def test_the_same_device_is_tried_where_there_is_no_other() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"), restart_backoff=0.0)
    submit(core, 1, 2)
    lose(core, "gpu0")
    core.handle(1.0, ready("gpu0"))
    # Both are suspects now. Job 2 stands first: it died on gpu1, and gpu0 is empty.
    assert lose(core, "gpu1") == [Spawn("gpu1"), Start(2, "gpu0", 0, 3)]
    assert core.handle(2.0, finished(Start(2, "gpu0", 0, 3)))[1:] == [Start(1, "gpu0", 0, 4)]


def test_a_suspect_waits_until_a_leaving_image_is_gone() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    submit(core, 1, 2)
    lose(core, "gpu0")
    assert core.handle(1.0, Cancelled(2)) == [Reply(2, Abandoned()), Cancel("gpu1", 0, 2)]
    assert core.handle(1.1, released(Start(2, "gpu1", 0, 2))) == [Start(1, "gpu1", 0, 3)]


def test_no_job_joins_a_leaving_suspect() -> None:
    core = scheduler(ready("gpu0"), restart_backoff=0.0)
    submit(core, 1)
    lose(core, "gpu0")
    core.handle(1.0, ready("gpu0"))
    core.handle(1.0, Submitted(job(2)))
    assert core.handle(1.5, Cancelled(1)) == [Reply(1, Abandoned()), Cancel("gpu0", 0, 2)]
    assert core.handle(1.6, released(Start(1, "gpu0", 0, 2))) == [Start(2, "gpu0", 0, 3)]


def test_the_worker_that_one_suspect_avoids_takes_the_next() -> None:
    core = scheduler(ready("gpu0", SINGLE), ready("gpu1", SINGLE), ready("gpu2", SINGLE), restart_backoff=0.0)
    submit(core, 1, 2, 3)
    lose(core, "gpu0")
    lose(core, "gpu1")
    # Job 2 goes first, and would rather wait for gpu2 than run where it was lost; job 1 was lost elsewhere.
    assert core.handle(2.0, ready("gpu1", SINGLE)) == [Start(1, "gpu1", 0, 4)]
