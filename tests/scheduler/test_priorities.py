"""A client's own jobs start by priority; between clients it counts for nothing, and no promise is broken for it."""

import pytest

from scheduler.messages import Cancelled, Start, Submitted
from scheduler.placement import MARGIN
from tests.scheduler.test_shares import Line
from tests.scheduler.words import SINGLE, finished, job, loading, ready


def test_of_one_clients_jobs_those_of_higher_priority_start_first() -> None:
    line = Line()
    for number, priority in enumerate((0, 0, -3, 0, 7, 7, 3), start=1):
        line.submit(number, "only", priority=priority)
    assert line.finish(6) == [5, 6, 7, 2, 4, 3]  # job 1 ran when the others came


def test_it_counts_for_nothing_between_clients() -> None:
    line = Line()
    for number in (1, 2, 3):
        line.submit(number, "first", priority=-10)
    for number in (101, 102, 103):
        line.submit(number, "second", priority=10)
    assert line.finish(5) == [2, 101, 3, 102, 103]


def test_who_was_promised_its_deadline_is_in_time_though_more_important_ones_come() -> None:
    line = Line()
    line.submit(1, "only")
    line.submit(2, "only", deadline=2.3)  # just in time after the one that runs
    line.submit(3, "only", priority=10)
    assert line.finish(2, seconds=1.1) == [2, 3]


def test_who_has_time_to_spare_is_overtaken_as_long_as_it_has() -> None:
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
