"""A client's own jobs start by priority; between clients its sign counts, and no promise is broken for it.

Jobs of negative priority are background work: interactive ones go first, but for a tenth of the work.
"""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.messages import Cancelled, Job, Start, Submitted
from scheduler.placement import MARGIN, MAX_BYPASS_SECONDS
from scheduler.queue import FairQueue, JobState
from tests.scheduler.test_shares import Line
from tests.scheduler.words import GPU, SINGLE, finished, job, loading, ready, scheduler


def test_of_one_clients_jobs_those_of_higher_priority_start_first() -> None:
    line = Line()
    for number, priority in enumerate((0, 0, -3, 0, 7, 7, 3), start=1):
        line.submit(number, "only", priority=priority)
    assert line.finish(6) == [5, 6, 7, 2, 4, 3]  # job 1 ran when the others came


@pytest.mark.parametrize("priorities", [(0, 10), (-1, -10)])
def test_how_high_it_is_counts_for_nothing_between_clients(priorities: tuple[int, int]) -> None:
    line = Line()
    for number in (1, 2, 3):
        line.submit(number, "first", priority=priorities[0])
    for number in (101, 102, 103):
        line.submit(number, "second", priority=priorities[1])
    assert line.finish(5) == [2, 101, 3, 102, 103]


def test_an_admitted_job_is_in_time_despite_later_ones_of_higher_priority() -> None:
    line = Line()
    line.submit(1, "only")
    line.submit(2, "only", deadline=2.3)  # just in time after the one that runs
    line.submit(3, "only", priority=10)
    assert line.finish(2, seconds=1.1) == [2, 3]


def test_a_job_with_slack_is_overtaken_while_it_has_slack() -> None:
    line = Line()
    line.submit(1, "only")
    line.submit(2, "only", deadline=1.1 + 1.1 * MARGIN + 1.15)  # there is time for one before it, and not for two
    line.submit(3, "only", priority=10)
    line.submit(4, "only", priority=10)
    assert line.finish(3, seconds=1.1) == [3, 2, 4]


def test_jobs_that_were_cancelled_leave_the_others_in_order() -> None:
    core = loading("gpu0", client_share=1.0, max_queue=1000)
    for number in range(300):
        core.handle(0.0, Submitted(job(number, client="only", priority=number % 3)))
    for number in range(1, 299):
        if number % 10:
            core.handle(0.0, Cancelled(number))
    left = sorted([0, *range(10, 299, 10), 299], key=lambda number: -(number % 3))
    assert [core.place_of(number).position for number in left] == list(range(len(left)))  # type: ignore[union-attr]
    [start] = core.handle(0.0, ready("gpu0", SINGLE))
    order = []
    while isinstance(start, Start):
        order.append(start.job)
        start = core.handle(0.0, finished(start))[-1]
    assert order == left


@pytest.mark.parametrize("priorities", [(0, 0, 0), (5, 0, -5), (-5, 0, 5)])
def test_a_flood_of_important_jobs_takes_no_turn_of_another_client(priorities: tuple[int, ...]) -> None:
    line = Line()
    for number in range(1, 31):
        line.submit(number, "flood", priority=priorities[number % 3])
    for number in range(101, 111):
        line.submit(number, "other")
    assert [number > 100 for number in line.finish(8)].count(True) == 4


# ---------------------------------------------------------------------------------------------------- background work


def test_interactive_jobs_of_all_clients_go_before_background_jobs() -> None:
    line = Line()
    for number in (1, 2, 3):
        line.submit(number, "first", priority=-10)
    for number in (101, 102, 103):
        line.submit(number, "second")
    line.submit(201, "third", priority=10)
    assert line.finish(6) == [101, 201, 102, 103, 2, 3]


def test_background_jobs_get_a_tenth_of_the_work() -> None:
    line = Line()
    for number in range(1, 11):
        line.submit(number, "background", priority=-1)
    for number in range(101, 151):
        line.submit(number, f"client {number % 7}")
    started = line.finish(40)
    assert [place for place, number in enumerate(started) if number < 100] == [9, 19, 29, 39]


def test_background_jobs_are_counted_by_work() -> None:
    line = Line()
    line.submit(1, "background", priority=-1)
    line.submit(2, "background", priority=-1, work=2.0)
    for number in range(101, 151):
        line.submit(number, "other", work=0.5)
    assert line.finish(40).index(2) == 2 * 9 / 0.5


def test_background_jobs_do_not_starve_though_no_interactive_job_waits_for_long() -> None:
    """The next one comes when the last one has started: most of the time, only the background job waits."""
    line = Line()
    line.submit(101, "other")
    line.submit(1, "background", priority=-1)
    for number in range(102, 111):
        line.submit(number, "other")
        assert line.finish() == [number]
    line.submit(111, "other")
    assert line.finish() == [1]


def test_clients_take_turns_with_their_background_jobs_whenever_they_came() -> None:
    line = Line()
    for number in range(1, 11):
        line.submit(number, "first", priority=-1)
    for number in range(101, 126):
        line.submit(number, "other")
    line.finish(12)
    for number in range(201, 211):
        line.submit(number, "second", priority=-1)
    line.finish(15)
    assert Counter(number > 200 for number in line.finish(8)) == {True: 4, False: 4}


def test_a_client_saves_no_turns_by_waiting_in_the_background() -> None:
    line = Line()
    for number in (1, 2):
        line.submit(number, "first", priority=-1)
    for number in range(101, 111):
        line.submit(number, "second")
    line.finish(5)
    for number in range(11, 16):
        line.submit(number, "first")
    assert Counter(number > 100 for number in line.finish(4)) == {True: 2, False: 2}


def test_a_background_job_that_was_promised_its_deadline_is_in_time() -> None:
    line = Line()
    line.submit(1, "other")
    line.submit(2, "background", deadline=2.3, priority=-10)  # just in time after the one that runs
    for number in range(101, 111):
        line.submit(number, f"client {number}")
    assert line.finish(2, seconds=1.1) == [2, 101]


@pytest.mark.parametrize(("seconds", "order"), [(1.0, [5, 7, 6]), (MAX_BYPASS_SECONDS, [7, 5, 6])])
def test_a_background_job_of_a_running_size_passes_an_interactive_one_that_came_just_now(
    seconds: float, order: list[int]
) -> None:
    core = scheduler(ready("gpu0", GPU))
    starts = [core.handle(0.0, Submitted(job(number)))[0] for number in (1, 2, 3, 4)]
    core.handle(0.0, Submitted(job(5, client="background", priority=-1)))
    core.handle(0.0, Submitted(job(6, client="background", priority=-1)))
    core.handle(0.0, Submitted(job(7, work=2.0, client="other")))
    for start in starts:  # it grows in the loop
        assert isinstance(start, Start)
        starts += [each for each in core.handle(seconds, finished(start)) if isinstance(each, Start)]
        seconds += MAX_BYPASS_SECONDS
    assert [each.job for each in starts[4:] if isinstance(each, Start)] == order


def test_background_jobs_leave_half_of_the_queue_to_others() -> None:
    core = loading("gpu0", max_queue=8, client_share=1.0)
    taken = [not core.handle(0.0, Submitted(job(number, priority=-1))) for number in range(6)]
    assert taken == [True] * 4 + [False] * 2
    assert [not core.handle(0.0, Submitted(job(number))) for number in range(10, 15)] == [True] * 4 + [False]


def test_a_client_leaves_others_their_share_of_the_half_for_background_jobs() -> None:
    core = loading("gpu0", max_queue=40)
    for number, client in enumerate(["other", *["flood"] * 15]):
        core.handle(0.0, Submitted(job(number, client=client, priority=-1)))
    assert core.queue_depth == 1 + 10
    assert core.handle(0.0, Submitted(job(101, client="one more", priority=-1))) == []


def test_where_a_job_stands_is_where_it_starts() -> None:
    line = Line()
    for number in range(1, 8):
        line.submit(number, f"client {number % 2}", priority=-1)
    for number in range(101, 121):
        line.submit(number, f"client {number % 3}", priority=number % 4)
    places = {number: line.core.place_of(number) for number in [*range(2, 8), *range(101, 121)]}
    by_place = sorted(places, key=lambda number: places[number].position)  # type: ignore[union-attr]
    assert line.finish(26) == by_place


A_JOB = st.tuples(st.sampled_from("abc"), st.sampled_from([0, 0, -1]), st.sampled_from([0.25, 1.0, 4.0]))


@given(day=st.lists(st.one_of(A_JOB, st.none()), max_size=200))
def test_as_long_as_background_jobs_wait_they_get_a_tenth_less_one_job(
    day: list[tuple[str, int, float] | None],
) -> None:
    """Each entry is a job that comes, or None: the next one starts."""
    queue, gave_way = FairQueue(), 0.0  # what background jobs should have been started of
    for number, entry in enumerate(day):
        if entry is not None:
            client, priority, work = entry
            queue.add(JobState(Job(number, 1000.0, work, client, priority=priority), 0.0, work))
        elif (turn := queue.next_job) is not None:
            queue.remove(turn, started=True)
            gave_way = max(0.0, gave_way - turn.load) if turn.background else gave_way + turn.load / 9
        queue.check()
        if not any(each.background for each in queue):
            gave_way = 0.0
        assert gave_way < 4.0 + 4.0 / 9
