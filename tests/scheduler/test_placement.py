"""Placement: empty workers, joining, waiting, first come first served."""

import pytest
from msgspec.structs import replace

from scheduler.messages import Command, Costs, Finished, Reply, Start, Submitted, WaitReason, WorkerReady
from tests.scheduler.words import (
    BUCKETS,
    CPU,
    GPU,
    SINGLE,
    SLOW_GPU,
    done,
    finished,
    job,
    loading,
    ready,
    scheduler,
    stepped,
)


def starts(commands: list[Command]) -> list[tuple[int, str, int]]:
    return [(each.job, each.worker, each.slot) for each in commands if isinstance(each, Start)]


def test_a_job_starts_at_once_in_an_empty_worker() -> None:
    core = scheduler(ready("gpu0"))
    assert core.handle(1.0, Submitted(job(1))) == [Start(1, "gpu0", 0, 1)]
    assert (core.running, core.queue_depth, core.wait_reason) == (1, 0, None)


def test_a_finished_image_is_delivered() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(1.0, Submitted(job(1)))
    assert core.handle(2.0, finished(Start(1, "gpu0", 0, 1))) == [Reply(1, done(Start(1, "gpu0", 0, 1)))]
    assert core.running == 0


def test_an_empty_worker_wins_over_joining() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    core.handle(0.0, Submitted(job(1)))
    assert starts(core.handle(0.0, Submitted(job(2)))) == [(2, "gpu1", 0)]


def test_the_fastest_empty_worker_wins() -> None:
    core = scheduler(ready("slow", SLOW_GPU), ready("fast", GPU))
    assert starts(core.handle(0.0, Submitted(job(1)))) == [(1, "fast", 0)]


def test_equal_workers_take_turns() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    core.handle(0.0, Submitted(job(1)))
    core.handle(1.0, finished(Start(1, "gpu0", 0, 1)))
    assert starts(core.handle(2.0, Submitted(job(2)))) == [(2, "gpu1", 0)]


def test_a_job_joins_the_least_loaded_gpu() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    for number in range(1, 4):
        core.handle(0.0, Submitted(job(number)))  # gpu0, gpu1, and one of them twice
    twice = next(view.id for view in core.workers() if view.running == 2)
    [(_, worker, slot)] = starts(core.handle(0.0, Submitted(job(4))))
    assert (worker != twice, slot) == (True, 1)


def test_a_job_waits_for_a_busy_cpu() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(0.0, Submitted(job(2))) == []
    assert (core.queue_depth, core.wait_reason) == (1, WaitReason.BATCH_SLOWER)


def test_a_waiting_job_starts_when_the_image_before_it_is_done() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    core.handle(2.0, Submitted(job(2)))
    first = Start(1, "cpu0", 0, 1)
    # The reply comes first: the image has to be read out of the slot that the next job may get.
    assert core.handle(10.0, finished(first)) == [Reply(1, done(first)), Start(2, "cpu0", 0, 2)]
    assert core.wait_reason is None
    second = Start(2, "cpu0", 0, 2)
    assert core.handle(20.0, finished(second)) == [Reply(2, done(second, queued=8.0))]


def test_a_job_starts_when_the_image_before_it_takes_no_more_steps() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    assert core.handle(9.0, stepped("cpu0", 8)) == []
    assert core.handle(10.0, stepped("cpu0", 9)) == [Start(2, "cpu0", 1, 2)]  # it is yet to be decoded and encoded


def test_a_job_waits_while_no_worker_is_ready() -> None:
    core = loading("gpu0")
    assert core.handle(0.0, Submitted(job(1))) == []
    assert core.wait_reason is WaitReason.NO_WORKER
    assert core.handle(9.0, ready("gpu0")) == [Start(1, "gpu0", 0, 1)]


def test_a_job_waits_while_every_slot_is_taken() -> None:
    core = scheduler(ready("gpu0", SINGLE))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    assert core.wait_reason is WaitReason.SLOTS_TAKEN


def test_a_job_waits_where_joining_would_break_a_deadline() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1, deadline=1.15)))  # alone it takes 1.1 s, with another 1.2
    assert core.handle(0.0, Submitted(job(2))) == []
    assert core.wait_reason is WaitReason.DEADLINE


def test_it_joins_as_soon_as_the_deadline_is_safe() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1, deadline=1.15)))
    core.handle(0.0, Submitted(job(2)))
    assert core.handle(0.3, stepped("gpu0", 5)) == []  # 15 steps at 0.055 s and 0.1 s more: until 1.225
    assert core.handle(0.55, stepped("gpu0", 15)) == [Start(2, "gpu0", 1, 2)]


def test_a_job_joins_where_it_costs_least_not_where_there_is_least() -> None:
    core = scheduler(ready("cpu0", CPU), ready("gpu0", GPU))
    placed = [starts(core.handle(0.0, Submitted(job(number)))) for number in (1, 2, 3, 4)]
    assert placed == [[(number, "gpu0", number - 1)] for number in (1, 2, 3, 4)]  # 1.4 s together; 10 s on the CPU


def test_where_a_place_in_a_bucket_is_free_a_job_takes_it() -> None:
    """Graphs are kept for 1, 2, 4 and 8 images: a step of three takes as long as one of four."""
    core = scheduler(ready("gpu0", BUCKETS), ready("gpu1", BUCKETS))
    for number in (1, 2, 3, 4):  # two on each
        core.handle(0.0, Submitted(job(number)))
    [(_, third, _)] = starts(core.handle(0.0, Submitted(job(5, relative_steps=0.2))))
    [(_, fourth, _)] = starts(core.handle(0.0, Submitted(job(6, relative_steps=0.2))))
    assert third == fourth


def test_one_job_with_a_tight_deadline_closes_no_other_worker() -> None:
    core = scheduler(*(ready(f"gpu{n}", BUCKETS) for n in range(8)))
    core.handle(0.0, Submitted(job(1, deadline=0.125)))  # alone it takes 0.118 s, with another one 0.148 s
    for number in range(2, 9):
        core.handle(0.0, Submitted(job(number)))
    [(_, worker, slot)] = starts(core.handle(0.0, Submitted(job(9))))
    assert (worker, slot) != ("gpu0", 1)
    assert starts(core.handle(0.0, Submitted(job(10, deadline=0.16)))) != []


def test_a_short_wait_for_a_fast_worker_is_better_than_an_idle_slow_one() -> None:
    slow = Costs(steps=20, step_seconds=(0.6, 1.2), fixed_seconds=1.0)  # 13 s
    core = scheduler(ready("gpu0", SINGLE), ready("cpu0", slow))
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(0.0, Submitted(job(2))) == []  # done at 2.2 s on the GPU
    assert core.wait_reason is WaitReason.SOONER_ELSEWHERE
    assert core.handle(1.1, finished(Start(1, "gpu0", 0, 1)))[1:] == [Start(2, "gpu0", 0, 2)]


def test_a_slow_worker_helps_where_the_queue_is_long() -> None:
    slow = Costs(steps=20, step_seconds=(0.6, 1.2), fixed_seconds=1.0)
    core = scheduler(ready("gpu0", SINGLE), ready("cpu0", slow))
    placed = [start for number in range(1, 20) for start in starts(core.handle(0.0, Submitted(job(number))))]
    assert [worker for _, worker, _ in placed] == ["gpu0", "cpu0"]


def test_the_least_loaded_workers_reason_is_told() -> None:
    core = scheduler(ready("gpu0", GPU), ready("gpu1", replace(GPU, step_seconds=(0.05, 0.2))))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    core.handle(0.0, Submitted(job(3, deadline=1.22)))  # joins job 1 until 1.2 s
    assert core.handle(0.0, Submitted(job(4))) == []
    assert core.wait_reason is WaitReason.BATCH_SLOWER  # than gpu1 with one; gpu0 with two has a deadline to keep


def test_a_long_queue_makes_jobs_join() -> None:
    dear = Costs(steps=20, step_seconds=(1.0, 1.7), fixed_seconds=0.0)
    core = scheduler(ready("gpu0", dear))
    started = [starts(core.handle(0.0, Submitted(job(number)))) for number in range(1, 6)]
    assert started == [[(1, "gpu0", 0)], [], [], [(2, "gpu0", 1)], []]


def test_the_queue_length_per_worker_counts() -> None:
    dear = Costs(steps=20, step_seconds=(1.0, 1.7), fixed_seconds=0.0)
    core = scheduler(ready("gpu0", dear), ready("gpu1", dear))
    started = [starts(core.handle(0.0, Submitted(job(number)))) for number in range(1, 9)]
    assert [len(each) for each in started] == [1, 1, 0, 0, 0, 1, 1, 0]


def test_jobs_start_in_the_order_they_came() -> None:
    core = loading("gpu0")
    for number in (3, 1, 2):
        core.handle(0.0, Submitted(job(number)))
    assert [each[0] for each in starts(core.handle(1.0, ready("gpu0")))] == [3, 1, 2]


def test_the_lowest_free_slot_is_taken() -> None:
    core = scheduler(ready("gpu0"))
    for number in (1, 2, 3):
        core.handle(0.0, Submitted(job(number)))
    core.handle(1.0, finished(Start(2, "gpu0", 1, 2)))
    core.handle(1.0, finished(Start(1, "gpu0", 0, 1)))
    assert core.handle(1.0, Submitted(job(4))) == [Start(4, "gpu0", 0, 4)]


def test_generations_are_never_used_again() -> None:
    core = scheduler(ready("gpu0", SINGLE))
    for generation in range(1, 5):
        assert core.handle(0.0, Submitted(job(generation))) == [Start(generation, "gpu0", 0, generation)]
        core.handle(0.0, finished(Start(generation, "gpu0", 0, generation)))


def test_a_late_worker_shares_the_load() -> None:
    core = loading("gpu0", "gpu1")
    core.handle(0.0, ready("gpu0", SINGLE))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    assert core.handle(5.0, ready("gpu1", SINGLE)) == [Start(2, "gpu1", 0, 2)]


def test_the_fastest_worker_predicts_the_seconds_of_an_image() -> None:
    core = loading("gpu0", "gpu1")
    assert core.predicted_seconds is None
    core.handle(0.0, WorkerReady("gpu0", SLOW_GPU))
    assert core.predicted_seconds == pytest.approx(2.2)
    core.handle(0.0, WorkerReady("gpu1", GPU))
    assert core.predicted_seconds == pytest.approx(1.1)


def test_the_view_of_a_worker() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    [view] = core.workers()
    assert (view.id, view.state, view.running, view.capacity, view.restarts, view.reason) == (
        "gpu0",
        "ready",
        1,
        4,
        0,
        "",
    )


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_ten_jobs_are_all_done_whatever_the_number_of_workers(workers: int) -> None:
    core = scheduler(*(ready(f"cpu{index}", CPU) for index in range(workers)))
    open_starts: list[Start] = []
    answered: list[int] = []

    def obey(commands: list[Command]) -> None:
        open_starts.extend(each for each in commands if isinstance(each, Start))
        answered.extend(each.job for each in commands if isinstance(each, Reply))

    for number in range(10):
        obey(core.handle(0.0, Submitted(job(number))))
    while open_starts:
        event: Finished = finished(open_starts.pop(0))
        obey(core.handle(1.0, event))
    assert answered == list(range(10))
