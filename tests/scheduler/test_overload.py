"""Far more than can be done, on devices that are as fast as they said, and on slower ones."""

from itertools import count

import pytest

from scheduler.costs import Slowdown
from scheduler.messages import Costs, Done, Expired, Rejected
from tests.scheduler.toy import Toy

ECHO = Costs(steps=20, step_seconds=(0.05,) * 4, fixed_seconds=0.0)  # four images a second
CAPACITY = 8.0  # images a second of two
DEADLINE, SETTLED, END = 10.0, 30.0, 90.0  # seconds


@pytest.mark.parametrize("slower", [1.0, 1.02, 1.3, 2.0])
def test_at_ten_times_the_load_what_is_taken_is_done_in_time(slower: float) -> None:
    toy = Toy(ECHO, ECHO, slower=slower)
    submitted: dict[int, float] = {}
    for number in count(1):
        submitted[number] = toy.now
        toy.submit(DEADLINE)
        toy.run(toy.now + 1 / (10 * CAPACITY))
        if toy.now > END:
            break
    outcomes = [outcome for number, outcome in toy.outcomes.items() if SETTLED <= submitted[number] < END - DEADLINE]
    done = [at for at, outcome in toy.outcomes.values() if isinstance(outcome, Done) and SETTLED <= at < END]
    assert len(done) >= 0.9 * CAPACITY / slower * (END - SETTLED)
    assert {type(outcome) for _, outcome in outcomes} == {Done, Rejected}


def test_jobs_that_expired_make_room_for_others() -> None:
    toy = Toy(ECHO, slower=2.0)  # nothing is known of that yet: too many are taken
    for _ in range(20):
        toy.submit(6.0)
    for _ in range(4):
        toy.submit(20.0)
    toy.run(20.0)
    ends = [type(toy.outcomes[number][1]) for number in range(1, 25)]
    assert ends[:8] == [Done] * 8
    assert Expired in ends[8:20]
    assert ends[20:] == [Done] * 4


def test_the_slowdown_follows_the_steps_up_and_down() -> None:
    slowdown = Slowdown()
    assert slowdown.factor == 1.0
    for _ in range(300):
        slowdown.add(0.15, 0.1)
    assert slowdown.factor == pytest.approx(1.5, rel=0.01)
    for _ in range(300):
        slowdown.add(0.05, 0.1)
    assert slowdown.factor == pytest.approx(0.5, rel=0.01)


def test_steps_that_take_no_time_say_nothing() -> None:
    slowdown = Slowdown()
    for _ in range(100_000):
        slowdown.add(0.0, 0.0)
    assert slowdown.factor == 1.0
    for _ in range(100_000):
        slowdown.add(0.0, 0.1)
    assert slowdown.factor == Slowdown.MIN_FACTOR


def test_a_step_that_was_stopped_for_a_while_is_one_step() -> None:
    slowdown = Slowdown()
    for _ in range(300):
        slowdown.add(0.1, 0.1)
    slowdown.add(600.0, 0.1)
    assert slowdown.factor < 1.1
