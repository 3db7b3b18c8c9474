"""Predictions, and whether to join or to wait."""

import pytest
from msgspec.structs import replace

from scheduler.costs import Capacity, estimate_capacity
from scheduler.messages import Costs, Submitted, WaitReason
from scheduler.placement import MIN_RETRY_AFTER, retry_after
from tests.scheduler.sums import NEVER, ends, if_joined, reason_not_to_join, running, seconds_alone
from tests.scheduler.words import CPU, GPU, job, ready, scheduler


def test_an_image_alone_takes_its_steps_and_the_fixed_part() -> None:
    assert seconds_alone(GPU) == pytest.approx(20 * 0.050 + 0.1)


def test_a_larger_image_takes_longer_in_proportion() -> None:
    assert seconds_alone(GPU, work=2.5) == pytest.approx(2.5 * 1.1)


def test_a_batch_speeds_up_when_an_image_leaves_it() -> None:
    times, busy = ends(GPU, [running(10), running(20)])
    assert times == pytest.approx([10 * 0.055 + 0.1, 10 * 0.055 + 10 * 0.050 + 0.1])
    assert busy == pytest.approx(10 * 0.055 + 10 * 0.050)


def test_an_image_being_decoded_does_not_slow_the_others() -> None:
    assert ends(GPU, [running(0), running(20)])[0] == pytest.approx([0.1, 1.1])


def test_each_size_is_a_batch_of_its_own() -> None:
    times, _ = ends(GPU, [running(20, work=0.5), running(20, work=1.5), running(20, work=1.5)])
    step = 0.5 * 0.050 + 1.5 * 0.055
    assert times == pytest.approx([20 * step + 0.05, 20 * step + 0.15, 20 * step + 0.15])


def test_joining_is_predicted_for_the_newcomer() -> None:
    assert if_joined(GPU, [running(10)]).end == pytest.approx(10 * 0.055 + 10 * 0.050 + 0.1)
    assert if_joined(GPU, []).end == pytest.approx(seconds_alone(GPU))


def test_where_a_batch_of_two_is_cheap_it_joins() -> None:
    assert reason_not_to_join(GPU, [running(20)], now=0.0) is None


def test_where_a_batch_gains_nothing_it_waits() -> None:
    assert reason_not_to_join(CPU, [running(9)], now=0.0) is WaitReason.BATCH_SLOWER


def test_where_a_batch_gains_nothing_it_waits_however_long_the_queue() -> None:
    assert reason_not_to_join(CPU, [running(9)], now=0.0, behind=1000.0) is WaitReason.BATCH_SLOWER


def test_more_images_in_a_batch_are_never_cheaper_whatever_was_measured() -> None:
    noisy = Costs(steps=20, step_seconds=(0.050, 0.045, 0.060, 0.055), fixed_seconds=0.1)
    steps = [ends(noisy, [running(1)] * count)[1] for count in (1, 2, 3, 4)]
    assert steps == [0.050, 0.050, 0.060, 0.060]


def test_it_waits_when_the_sum_of_ends_is_no_better() -> None:
    # One image with 20 steps left: joining costs it 20 * 0.5 and gives the newcomer 20 * 0.5. Others will come.
    even = Costs(steps=20, step_seconds=(1.0, 1.5), fixed_seconds=0.0)
    assert reason_not_to_join(even, [running(20)], now=0.0) is WaitReason.BATCH_SLOWER
    assert reason_not_to_join(replace(even, step_seconds=(1.0, 1.45)), [running(20)], now=0.0) is None


def test_it_joins_where_it_delays_nobody() -> None:
    flat = Costs(steps=20, step_seconds=(0.011, 0.033, 0.033), fixed_seconds=0.0)  # three at once cost as much as two
    assert reason_not_to_join(flat, [running(20)], now=0.0) is WaitReason.BATCH_SLOWER
    assert reason_not_to_join(flat, [running(20), running(20)], now=0.0) is None


def test_an_image_that_would_miss_its_deadline_by_little_is_protected_too() -> None:
    gain = Costs(steps=20, step_seconds=(1.0, 1.1), fixed_seconds=0.0)
    due = {"in time without it": 20.5, "late by little": 19.5, "late anyway": 16.5, "in time with it": 24.5}
    reasons = {name: reason_not_to_join(gain, [running(20, deadline)], now=0.0) for name, deadline in due.items()}
    assert reasons == {
        "in time without it": WaitReason.DEADLINE,
        "late by little": WaitReason.DEADLINE,
        "late anyway": None,
        "in time with it": None,
    }


def test_a_group_fills_a_batch_that_nobody_would_join_alone() -> None:
    # Five cost as much as eight. Alone, the fifth makes each of them slower; with three more behind it, it pays.
    stairs = Costs(steps=20, step_seconds=(0.0055, 0.007, 0.0105, 0.0105, *[0.019] * 4), fixed_seconds=0.008)
    core = scheduler(ready("gpu0", stairs), client_share=1.0)
    for number in range(1, 41):
        core.handle(0.0, Submitted(job(number)))
    assert core.running == 8


def test_it_joins_an_image_that_is_only_decoded() -> None:
    assert reason_not_to_join(CPU, [running(0)], now=0.0) is None


def test_the_longer_the_queue_the_more_throughput_counts() -> None:
    # Two at once take 1.7 times as long: dear for those concerned, and still 18% more images per second.
    dear = Costs(steps=20, step_seconds=(1.0, 1.7), fixed_seconds=0.0)
    assert reason_not_to_join(dear, [running(20)], now=0.0, behind=0.0) is WaitReason.BATCH_SLOWER
    assert reason_not_to_join(dear, [running(20)], now=0.0, behind=5.0) is None


def test_it_does_not_push_a_running_image_past_its_deadline() -> None:
    alone, together = 20 * 0.050 + 0.1, 20 * 0.055 + 0.1
    assert reason_not_to_join(GPU, [running(20, deadline=(alone + together) / 2)], now=0.0) is WaitReason.DEADLINE


def test_it_may_join_an_image_that_is_late_anyway() -> None:
    assert reason_not_to_join(GPU, [running(20, deadline=0.5)], now=0.0) is None


def test_deadlines_are_on_the_clock_and_not_from_now() -> None:
    assert reason_not_to_join(GPU, [running(20, deadline=101.15)], now=0.0) is None
    assert reason_not_to_join(GPU, [running(20, deadline=101.15)], now=100.0) is WaitReason.DEADLINE


def test_a_gpu_runs_full_under_load() -> None:
    assert estimate_capacity(GPU).batch_size == 4
    assert estimate_capacity(GPU).throughput == pytest.approx(4 / (20 * 0.065 + 0.1))


def test_a_cpu_runs_one_at_a_time_under_load() -> None:
    assert estimate_capacity(CPU) == Capacity(1, 10.0, step_share=0.1, denoising_share=0.9, progress_lag=2.0)


def test_an_engine_that_does_no_work_has_a_finite_capacity() -> None:
    assert estimate_capacity(Costs(steps=1, step_seconds=(0.0, 0.0), fixed_seconds=0.0)).throughput < NEVER


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        pytest.param(15.0, 10.0 + 10.0 - 15.0 + 1.0, id="until the queue is short enough"),
        pytest.param(5.0, 10.0 + 10.0 + 1.0, id="until a worker is idle"),
    ],
)
def test_when_to_come_back(budget: float, seconds: float) -> None:
    assert retry_after(wait=10.0, service=10.0, lag=1.0, budget=budget) == pytest.approx(seconds)


def test_it_never_says_at_once() -> None:
    assert retry_after(wait=0.0, service=0.0, lag=0.0, budget=0.0) == MIN_RETRY_AFTER


def test_the_example_of_the_costs_docstring() -> None:
    cheap, dear = Costs(20, (0.010, 0.012), 0.0), Costs(20, (0.010, 0.019), 0.0)
    assert (sum(ends(cheap, [running(10), running(20)])[0])) == pytest.approx(0.340)
    assert (sum(ends(dear, [running(10), running(20)])[0])) == pytest.approx(0.480)
    assert reason_not_to_join(cheap, [running(10)], now=0.0) is None
    assert reason_not_to_join(dear, [running(10)], now=0.0) is WaitReason.BATCH_SLOWER
