"""Images of more or fewer denoising steps: their time is predicted, shared out and promised by what they take."""

from itertools import cycle
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.messages import (
    Costs,
    Done,
    QuotaExceeded,
    Rejected,
    Reply,
    Start,
    Stepped,
    Submitted,
    WaitReason,
    WorkerExited,
)
from scheduler.placement import MARGIN
from tests.scheduler.sums import if_joined, running, seconds_alone, steps_of
from tests.scheduler.test_admission import FLEETS, alone
from tests.scheduler.test_overload import CAPACITY, DEADLINE, ECHO
from tests.scheduler.test_shares import A_BUDGET, A_CLIENT, Line
from tests.scheduler.toy import Toy
from tests.scheduler.words import CPU, GPU, SINGLE, finished, job, loading, ready, scheduler, stepped

SETTLED, END = 20.0, 50.0  # seconds

# ---------------------------------------------------------------------------------------------------------- prediction


def test_a_length_is_a_number_of_steps_and_at_least_one() -> None:
    assert [steps_of(GPU, relative_steps) for relative_steps in (1.0, 2.5, 0.05, 0.001, 7 / 20)] == [20, 50, 1, 1, 7]


def test_only_the_steps_of_a_longer_image_take_longer() -> None:
    assert seconds_alone(GPU, work=1.0, relative_steps=2.5) == pytest.approx(50 * 0.050 + 0.1)
    assert seconds_alone(GPU, work=2.0, relative_steps=0.5) == pytest.approx(2 * (10 * 0.050 + 0.1))


def test_a_short_image_leaves_a_batch_before_those_that_it_joined() -> None:
    together = if_joined(GPU, [running(20)], steps=5)
    assert together.end == pytest.approx(5 * 0.055 + 0.1)
    assert together.sum_increase - together.end == pytest.approx(5 * 0.055 - 5 * 0.050)


def test_a_long_image_delays_those_that_it_joins_as_long_as_they_run() -> None:
    together = if_joined(GPU, [running(20)], steps=50)
    assert together.end == pytest.approx(20 * 0.055 + 30 * 0.050 + 0.1)
    assert together.sum_increase - together.end == pytest.approx(20 * 0.055 - 20 * 0.050)


def test_a_short_image_joins_where_a_nominal_one_would_wait() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(0.0, Submitted(job(2))) == []
    assert core.wait_reason is WaitReason.BATCH_SLOWER
    other = scheduler(ready("cpu0", CPU))
    other.handle(0.0, Submitted(job(1)))
    assert other.handle(0.0, Submitted(job(2, relative_steps=1 / 9))) == [Start(2, "cpu0", 1, 2)]


def test_cached_predictions_differ_by_number_of_steps() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2, client="a")))  # it waits, and the worker was asked about it
    assert core.handle(0.0, Submitted(job(3, client="b", relative_steps=1 / 9))) == [Start(3, "cpu0", 1, 2)]


def test_steps_left_are_counted_from_the_images_own_length() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1, relative_steps=2.0)))  # 18 steps of a second, and one second more
    core.handle(10.0, stepped("cpu0", 10))
    assert core.handle(10.0, Submitted(job(2, deadline=26.5))) == [Reply(2, Rejected(9.0 + 10.0 - 16.5 + 2.0))]
    assert core.handle(10.0, Submitted(job(3, deadline=29.5))) == []


def test_a_long_silence_is_no_more_like_a_long_image() -> None:
    core = scheduler(ready("cpu0", CPU), heartbeat_floor=1.0, heartbeat_factor=8.0)
    core.handle(0.0, Submitted(job(1, relative_steps=50.0)))
    assert core.next_wakeup == 8.0 * CPU.step_seconds[-1]


# ----------------------------------------------------------------------------------------------------------- admission


def test_an_idle_worker_takes_what_is_short_enough() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.refused(0.0, job(1, deadline=18.5, relative_steps=2.0))
    assert core.handle(0.0, Submitted(job(2, deadline=19.5, relative_steps=2.0))) == [Start(2, "cpu0", 0, 1)]


def test_waiting_jobs_count_by_their_number_of_steps() -> None:
    core = scheduler(ready("cpu0", CPU), client_share=1.0)
    core.handle(0.0, Submitted(job(1, client="a")))
    core.handle(0.0, Submitted(job(2, deadline=38.5, client="a", relative_steps=3.0)))  # 28 s
    core.refused(0.0, job(3, deadline=38 * MARGIN + 9.5, client="a"))
    assert core.handle(0.0, Submitted(job(4, deadline=38 * MARGIN + 10.5, client="a"))) == []


def test_of_a_queue_of_short_images_the_fixed_parts_count() -> None:
    core = scheduler(ready("gpu0", SINGLE), client_share=1.0)  # 1.1 s, a tenth of a second of which is fixed
    core.handle(0.0, Submitted(job(1, client="a")))
    wait = (1.1 + 10 * 0.15) * MARGIN
    for number in range(2, 12):
        core.handle(0.0, Submitted(job(number, deadline=wait + 1.0, client="a", relative_steps=0.05)))  # 0.15 s each
    core.refused(0.0, job(12, deadline=wait + 1.05, client="a"))
    assert core.handle(0.0, Submitted(job(13, deadline=wait + 1.15, client="a"))) == []


def test_jobs_admitted_before_any_measurement_keep_their_load() -> None:
    core = loading("cpu0")
    core.handle(0.0, Submitted(job(1, relative_steps=2.0)))
    core.handle(0.0, ready("cpu0", CPU))
    core.handle(0.0, WorkerExited("cpu0", "gone"))
    core.check()  # all sums are what they should be


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("lengths", [(3.0,), (1.0, 4.0), (0.1, 2.5), (0.5, 1.0, 2.5)])
def test_a_retry_after_the_given_time_is_admitted(fleet: str, lengths: tuple[float, ...]) -> None:
    toy = Toy(*FLEETS[fleet], max_queue=10_000)
    seconds = 12 * alone(*FLEETS[fleet])
    for relative_steps in cycle(lengths):
        if (answer := toy.submit(seconds, relative_steps=relative_steps)) is not None:
            break
    assert isinstance(answer, Rejected)
    toy.run(toy.now + answer.retry_after)
    assert toy.submit(seconds, relative_steps=relative_steps) is None


# --------------------------------------------------------------------------------------------------------------- turns


def test_an_image_of_fifty_steps_is_nearly_two_and_a_half_turns_of_one_of_twenty() -> None:
    line = Line()
    for number in (1, 2, 3):
        line.submit(number, "long", relative_steps=2.5)
    for number in range(101, 109):
        line.submit(number, "short")
    assert line.finish(9) == [101, 102, 2, 103, 104, 3, 105, 106, 107]


# -------------------------------------------------------------------------------------------------- promises are kept

A_LENGTH = st.sampled_from([1.0, 1.0, 0.05, 0.5, 2.5])
A_PRIORITY = st.sampled_from([0, 0, 0, 5, -5])
A_DAY = st.lists(
    st.tuples(A_CLIENT, A_BUDGET, st.sampled_from([0.0, 0.0, 0.05, 0.3]), A_LENGTH, A_PRIORITY),
    min_size=1,
    max_size=120,
)


@pytest.mark.parametrize("fleet", FLEETS)
@given(day=A_DAY)
@example(day=[("flood", 12.0, 0.0, 2.5, 0)] * 30 + [("flood", 12.0, 0.3, 0.05, 5), ("two", 6.0, 0.3, 1.0, 0)] * 30)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_an_admitted_job_is_done_in_time_whatever_else_arrives(
    fleet: str, day: list[tuple[str, float, float, float, int]]
) -> None:
    toy, unit = Toy(*FLEETS[fleet]), alone(*FLEETS[fleet])
    for client, budget, pause, relative_steps, priority in day:
        toy.submit(budget * unit, 1.0, client, relative_steps, priority)
        toy.run(toy.now + pause * unit)
    toy.run(toy.now + 300 * unit)
    assert len(toy.outcomes) == len(day)
    assert {type(outcome) for _, outcome in toy.outcomes.values()} <= {Done, Rejected, QuotaExceeded}


@pytest.mark.parametrize("slower", [1.0, 1.3])
def test_at_overload_with_mixed_lengths_what_is_taken_is_done_in_time(slower: float) -> None:
    random, toy = Random(1), Toy(ECHO, ECHO, slower=slower)
    submitted: dict[int, float] = {}
    while toy.now < END:
        submitted[len(submitted) + 1] = toy.now
        client = f"client {random.randrange(12)}"
        relative_steps, priority = random.choice([0.05, 0.5, 1.0, 2.5]), random.choice([-5, 0, 0, 5])
        toy.submit(DEADLINE, 1.0, client, relative_steps, priority)
        toy.run(toy.now + random.expovariate(3 * CAPACITY))
    toy.run(END + 2 * DEADLINE)
    settled = [number for number, at in submitted.items() if SETTLED <= at < END - DEADLINE]
    assert {type(toy.outcomes[number][1]) for number in settled} == {Done, Rejected, QuotaExceeded}
    made = [number for number, (at, end) in toy.outcomes.items() if isinstance(end, Done) and SETTLED <= at < END]
    work = sum(toy.jobs[number].relative_steps for number in made)
    assert work >= 0.85 * CAPACITY / slower * (END - SETTLED)


def test_a_long_image_beside_which_nobody_may_run_is_not_forgotten() -> None:
    core = scheduler(ready("gpu0", GPU))
    core.handle(0.0, Submitted(job(1, deadline=2.7, relative_steps=2.5)))  # alone it takes 2.6 s, with another 3.1
    assert core.handle(0.0, Submitted(job(2))) == []
    assert core.wait_reason is WaitReason.DEADLINE
    assert core.handle(2.6, finished(Start(1, "gpu0", 0, 1)))[1:] == [Start(2, "gpu0", 0, 2)]


def test_a_device_that_waits_for_short_images_to_be_prepared_is_not_slow() -> None:
    core = scheduler(ready("gpu0", GPU))
    start = Start(1, "gpu0", 0, 1)
    core.handle(0.0, Submitted(job(1)))
    for number in range(2, 30):  # there is always one in it, and each takes its one step long after the one before
        core.handle(number - 0.9, Submitted(job(number, relative_steps=0.05)))
        core.handle(float(number), Stepped("gpu0", ((number % 2, 1),)))
        core.handle(float(number), finished(start))
        start = Start(number, "gpu0", (number + 1) % 2, number)
    core.handle(30.0, finished(start))
    assert core.handle(30.0, Submitted(job(30, deadline=31.15))) == [Start(30, "gpu0", 0, 30)]


def test_a_step_is_kept_to_spare_for_who_runs() -> None:
    even = Costs(steps=20, step_seconds=(0.050, 0.055), fixed_seconds=0.0)
    core = scheduler(ready("gpu0", even))
    core.handle(0.0, Submitted(job(1, deadline=1.14)))
    assert core.handle(0.0, Submitted(job(2))) == []  # 1.1 s together, and 0.055 for what is not known
    assert core.wait_reason is WaitReason.DEADLINE


def test_a_slow_devices_deadlines_are_kept_by_its_own_pace() -> None:
    core = scheduler(ready("gpu0", GPU))
    core.handle(0.0, Submitted(job(1, deadline=15.1, relative_steps=10.0)))
    for taken in range(1, 101):
        core.handle(0.075 * taken, stepped("gpu0", taken))  # half as long again as it said
    # At that pace it is done at 15.0 s alone, at 15.1 s together; at the pace that was measured, at 12.6 s and 12.7 s.
    assert core.handle(7.5, Submitted(job(2))) == []
    assert core.wait_reason is WaitReason.DEADLINE
