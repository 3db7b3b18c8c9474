"""Recovery: slow workers are tried again, and no job waits for ever for a better place."""

from random import Random

import pytest

from scheduler.messages import (
    Abandoned,
    BatchKey,
    Cancel,
    Cancelled,
    Costs,
    Job,
    Rejected,
    Reply,
    Start,
    Submitted,
    Tick,
    WorkerExited,
)
from scheduler.workers import Worker
from tests.scheduler.toy import Toy
from tests.scheduler.words import GPU, SINGLE, Checked, finished, job, loading, ready, released, scheduler, stepped

LARGE = BatchKey(1.5, (768, 512))


def worker_of(core: Checked) -> Worker:
    return core._workers["gpu0"]


def test_a_device_that_was_slow_and_has_rested_is_tried_again() -> None:
    core = scheduler(ready("gpu0", GPU))
    start = core.start(0.0, Submitted(job(1, deadline=1000.0)))
    for step in range(1, 21):
        core.handle(1.5 * step, stepped("gpu0", step))  # 30 times as long as measured
    core.handle(30.0, finished(start))
    assert isinstance(core.handle(31.0, Submitted(job(2, deadline=39.0)))[0], Reply)
    assert isinstance(core.handle(40.0, Submitted(job(3, deadline=48.0)))[0], Start)


def test_hiccups_of_one_size_do_not_drive_its_cost_and_the_slowdown_apart() -> None:
    core, random, now = scheduler(ready("gpu0", GPU)), Random(3), 0.0
    for number in range(1, 401):
        now += 0.1
        start = core.start(now, Submitted(Job(number, now + 30, LARGE.work, "a", size=LARGE.size)))
        for step in range(1, 21):
            now += 0.075 * (3 if random.random() < 0.05 else 1)
            core.handle(now, stepped("gpu0", step))
        core.handle(now + 0.1, finished(start))
        now += 0.1
    model = worker_of(core).cost_model
    assert 1 / 3.5 < model.slowdown.factor < 3.5
    assert model.seconds_alone(job(1, work=LARGE.work)) < 5


def test_a_job_waits_for_a_faster_worker_for_so_long_as_the_empty_one_would_take() -> None:
    fast, slow = Costs(20, (0.05,), 0.1), Costs(20, (0.12,), 0.1)  # an image takes 1.1 s, and 2.5 s
    toy = Toy(fast, slow)
    toy.submit(1000.0, client="b", priority=1)
    toy.run(0.3)
    toy.submit(1000.0, client="b")  # the place that it waits for is always taken by one that goes before
    for _ in range(6):
        toy.run(toy.now + 1.0)
        toy.submit(1000.0, client="b", priority=1)
    assert toy.started[2] <= 0.3 + 2.5 + 0.2


def test_the_time_to_wait_counts_down_while_a_worker_loads() -> None:
    core = loading("gpu0")
    core.handle(60.0, ready("gpu0", GPU))
    core.handle(70.0, WorkerExited("gpu0", "gone"))
    core.handle(71.0, Submitted(job(1, deadline=1000.0)))  # its loading began then, and takes a minute
    soon, later = core.queue_position(1, 71.0), core.queue_position(1, 91.0)
    assert soon is not None
    assert later is not None
    assert soon.seconds == pytest.approx(60.0)
    assert later.seconds == pytest.approx(40.0)


def test_an_empty_slow_worker_does_not_refuse_a_job_for_a_busy_fast_one() -> None:
    fast, slow = Costs(20, (0.05, 0.1, 0.15, 0.2), 0.1), Costs(20, (0.15,), 0.1)  # two at once gain nothing
    core = scheduler(ready("fast", fast), ready("slow", slow))
    core.handle(0.0, Submitted(job(1)))
    start = core.start(0.0, Submitted(job(2, deadline=2.5)))  # 3.1 s on the slow one, 2.1 s beside the other
    assert start.worker == "fast"


SLOW = Costs(20, (0.2, 0.22, 0.24, 0.26), 0.4)


def test_no_job_prefers_a_running_size_where_it_is_late() -> None:
    core = loading("slow", "fast")
    core.handle(0.0, ready("slow", SLOW))
    core.handle(0.0, Submitted(job(1, 1000.0, work=2.0)))
    core.handle(0.0, ready("fast"))
    core.handle(0.0, Submitted(job(2, 1000.0)))
    start = core.start(0.1, Submitted(job(3, 6.1, work=2.0)))  # slow runs its size, and would take 10.3 s
    assert start.worker == "fast"


def test_a_job_that_is_in_time_on_the_fast_worker_alone_waits_for_it() -> None:
    core = scheduler(ready("fast", Costs(20, (0.05,), 0.1)), ready("slow", Costs(20, (0.2,), 0.4)))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.8, stepped("fast", 16))
    assert core.handle(0.8, Submitted(job(2, 100.0))) == []
    assert (
        core.handle(0.8, Submitted(job(3, 1.6, work=2.0, relative_steps=0.05))) == []
    )  # until 1.4 on fast, until 2.0 on slow
    assert core.handle(1.1, finished(Start(1, "fast", 0, 1)))[1:] == [Start(3, "fast", 0, 2)]


def test_a_job_that_waits_for_a_hung_fast_worker_runs_on_the_slow_one() -> None:
    core = scheduler(ready("fast", Costs(20, (0.05,), 0.1)), ready("slow", Costs(20, (0.2,), 0.4)))
    core.handle(0.0, Submitted(job(1, 100.0)))
    assert core.handle(0.1, Submitted(job(2, 20.0))) == []
    alarm = core.next_wakeup or 0.0
    assert alarm == pytest.approx(0.1 + 20 * 0.2 + 0.4)  # as long as it takes there
    assert core.handle(alarm, Tick()) == [Start(2, "slow", 0, 2)]


def test_a_job_that_can_neither_join_in_time_nor_wait_is_refused_at_once() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1, 1.32)))
    assert isinstance(core.refused(0.0, job(2, 1.1, work=0.5)), Rejected)


def test_a_step_starts_a_job_whose_turn_comes_as_time_passes() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    core.handle(0.0, Submitted(job(1, 4.4, 2.0, "a")))
    core.handle(0.3, stepped("gpu0", 3))
    for asked in (job(2, 137.5, 0.5, "a", 2.5), job(3, 275.0, 1.0, "a", 2.5), job(4, 1.65, 1.0, "a", 0.05)):
        core.handle(0.33, Submitted(asked))
    now, started = 0.33, []
    for step in range(1, 50):
        now += 0.025
        started += core.handle(now, stepped("gpu1", step))
        if step % 4 == 0:
            started += core.handle(now, stepped("gpu0", 3 + step // 4))
    assert Start(4, "gpu1", 1, 3) in started  # when it would be late behind job 3


def test_a_job_waits_for_the_worker_that_does_it_in_time_though_another_has_room() -> None:
    core = loading("slow", "fast")
    core.handle(0.0, ready("slow", Costs(20, (0.2, 0.22), 0.4)))
    core.handle(0.0, Submitted(job(1, 4.9)))
    core.handle(0.0, ready("fast", SINGLE))
    core.handle(0.0, Submitted(job(2, relative_steps=4.0)))  # until 4.1
    assert core.handle(0.0, Submitted(job(3, 7.0))) == []
    core.handle(3.9, stepped("fast", 78))
    assert core.handle(4.0, stepped("slow", 20)) == []  # alone on slow it would end at 8.4
    assert core.handle(4.1, finished(Start(2, "fast", 0, 2)))[1:] == [Start(3, "fast", 0, 3)]


def test_a_job_that_waits_for_the_fast_worker_leaves_the_slow_one_to_others() -> None:
    core = scheduler(ready("fast", SINGLE), ready("slow", Costs(20, (0.2,), 0.4)))
    core.handle(0.0, Submitted(job(1, relative_steps=20.0)))
    assert core.handle(0.0, Submitted(job(2, 30.0, relative_steps=8.0))) == []  # in time on fast alone
    assert core.handle(0.0, Submitted(job(3, relative_steps=0.25))) == [Start(3, "slow", 0, 2)]


def test_an_empty_queue_takes_what_the_next_free_worker_does_in_time() -> None:
    core = scheduler(ready("gpu0", SINGLE), ready("gpu1", SINGLE))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2, relative_steps=10.0)))
    assert core.handle(0.0, Submitted(job(3, 2.2))) == []  # gpu0 is free at 1.1
    assert core.handle(1.1, finished(Start(1, "gpu0", 0, 1)))[1:] == [Start(3, "gpu0", 0, 3)]


def test_a_place_that_is_being_left_counts_as_free() -> None:
    core = scheduler(ready("gpu0", Costs(20, (0.05, 0.055), 0.1)))
    core.handle(0.0, Submitted(job(1, relative_steps=10.0)))
    core.handle(0.0, Submitted(job(2)))
    core.handle(0.1, stepped("gpu0", 1, 1))
    assert core.handle(0.15, Cancelled(2)) == [Reply(2, Abandoned()), Cancel("gpu0", 1, 2)]
    assert core.handle(0.16, Submitted(job(3, 5.16))) == []
    assert core.handle(0.2, released(Start(2, "gpu0", 1, 2))) == [Start(3, "gpu0", 1, 3)]
