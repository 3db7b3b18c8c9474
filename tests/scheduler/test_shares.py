"""Clients share the service: nobody's flood starves another, and who was taken is in time all the same."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.messages import Done, Event, QuotaExceeded, Rejected, Reply, Start, Submitted, WorkerExited
from scheduler.placement import MARGIN
from tests.scheduler.test_admission import FLEETS, alone
from tests.scheduler.toy import Toy
from tests.scheduler.words import CPU, SINGLE, Checked, finished, job, loading, ready, scheduler


class Line:
    """A worker with one slot, which finishes an image when it is told to."""

    def __init__(self) -> None:
        self.core: Checked = scheduler(ready("gpu0", SINGLE))
        self.order: list[int] = []
        self.running: Start | None = None
        self.now = 0.0

    def submit(
        self,
        number: int,
        client: str,
        work: float = 1.0,
        deadline: float = 1000.0,
        relative_steps: float = 1.0,
        priority: int = 0,
        surcharge: float = 0.0,
    ) -> None:
        submitted = job(number, deadline, work, client, relative_steps, priority)
        self._note(Submitted(replace(submitted, surcharge=surcharge)))

    def finish(self, count: int = 1, seconds: float = 0.0) -> list[int]:
        """So many images, after so many seconds each; the jobs that started instead."""
        self.order.clear()
        for _ in range(count):
            assert self.running is not None
            self.now += seconds
            self._note(finished(self.running))
        return self.order

    def _note(self, event: Event) -> None:
        for command in self.core.handle(self.now, event):
            if isinstance(command, Start):
                self.running = command
                self.order.append(command.job)


# ---------------------------------------------------------------------------------------------------------- fair order


def test_clients_take_turns_however_many_jobs_each_has() -> None:
    line = Line()
    for number in (1, 2, 3, 4):
        line.submit(number, "flood")
    line.submit(5, "other")
    line.submit(6, "other")
    assert line.finish(5) == [2, 5, 3, 6, 4]


def test_a_client_that_asks_for_one_at_a_time_gets_every_other_turn() -> None:
    line = Line()
    for number in range(1, 9):
        line.submit(number, "flood")
    order = []
    for number in range(101, 104):
        line.submit(number, "other")
        order += line.finish(2)
    assert order == [2, 101, 3, 102, 4, 103]


def test_turns_count_by_work() -> None:
    line = Line()
    for number in (1, 2, 3):
        line.submit(number, "large", work=4.0)
    for number in range(101, 109):
        line.submit(number, "small")
    assert line.finish(9) == [101, 102, 103, 2, 104, 105, 106, 107, 3]


def test_turns_count_what_a_job_costs_beside_the_device() -> None:
    line = Line()
    for number in (1, 2, 3):
        line.submit(number, "large files", surcharge=3.0)
    for number in range(101, 109):
        line.submit(number, "small files")
    assert line.finish(9) == [101, 102, 103, 2, 104, 105, 106, 107, 3]


def test_three_clients_get_a_third_each() -> None:
    line = Line()
    for number in range(1, 31):
        line.submit(number, "abc"[number % 3])
    for number in range(31, 61):
        line.submit(number, "a")
    started = Counter("a" if number > 30 else "abc"[number % 3] for number in line.finish(24))
    assert started == {"a": 8, "b": 8, "c": 8}


def test_a_returning_client_has_saved_up_no_work() -> None:
    line = Line()
    for number in range(1, 21):
        line.submit(number, "steady")
    line.finish(10)
    for number in range(101, 111):
        line.submit(number, "new")
    assert Counter(number > 100 for number in line.finish(8)) == {True: 4, False: 4}


# -------------------------------------------------------------------------------------------------- promises are kept


@pytest.mark.parametrize(("spare", "order"), [(0.9, [2, 3, 4]), (1.4, [2, 4, 3])])
def test_a_job_without_slack_is_not_overtaken(spare: float, order: list[int]) -> None:
    line = Line()
    line.submit(1, "first")
    line.submit(2, "second")
    line.submit(3, "large", work=2.0, deadline=2 * 1.1 + 2.2 + spare)
    line.submit(4, "small")  # it takes 1.1 s
    assert line.finish(3, seconds=1.1) == order


def test_a_flood_with_distant_deadlines_does_not_turn_away_who_is_in_a_hurry() -> None:
    line = Line()
    for number in range(1, 41):
        line.submit(number, "flood")
    line.submit(101, "other", deadline=2.5)
    assert line.finish(1, seconds=1.1) == [101]


def test_in_a_hurry_a_client_still_leaves_others_as_much_time_as_it_takes() -> None:
    line = Line()
    for number in range(1, 41):
        line.submit(number, "flood")
    line.submit(101, "other", deadline=4.0)
    assert isinstance(line.core.refused(0.0, job(102, 4.0, client="other")), QuotaExceeded)


def test_a_new_client_does_not_wait_for_the_queue_of_another() -> None:
    """Also after a spell in which deadlines, and not turns, decided who was next."""
    line = Line()
    for number in range(1, 22):
        line.submit(number, "flood")
    for number in range(101, 106):
        line.submit(number, f"tight {number}", deadline=2.4 + 1.25 * (number - 101))
    for number in range(201, 221):
        line.submit(number, "second flood")
    line.finish(20, seconds=1.1)
    line.submit(301, "new")
    assert 301 in line.finish(3, seconds=1.1)


def test_an_urgent_important_job_is_not_refused_for_its_own_clients_distant_ones() -> None:
    line = Line()
    for number in range(1, 60):
        line.submit(number, "only", deadline=600.0)
    line.submit(101, "only", deadline=3.0, priority=9)
    assert line.finish(1, seconds=1.1) == [101]


def test_a_client_alone_may_have_nine_tenths_of_the_queue() -> None:
    core = loading("gpu0", max_queue=100)
    taken = [not core.handle(0.0, Submitted(job(number, client="only"))) for number in range(1, 101)]
    assert taken == [True] * 90 + [False] * 10
    assert core.handle(0.0, Submitted(job(101, client="other"))) == []
    short = loading("gpu0", max_queue=3)
    taken = [not short.handle(0.0, Submitted(job(number, client="only"))) for number in range(1, 4)]
    assert taken == [True, True, False]
    assert short.handle(0.0, Submitted(job(4, client="other"))) == []


def test_no_job_overtakes_one_that_would_be_late() -> None:
    line = Line()
    for number in range(1, 9):
        line.submit(number, f"client {number}", deadline=1.1 * number + 0.5)
    assert isinstance(line.core.refused(0.0, job(101, 2.5, client="other")), Rejected)


A_CLIENT = st.sampled_from(["flood", "flood", "flood", "one", "two"])
A_BUDGET = st.sampled_from([4.0, 6.0, 12.0, 40.0])  # in images alone on the slowest worker
A_DAY = st.lists(st.tuples(A_CLIENT, A_BUDGET, st.sampled_from([0.0, 0.0, 0.05, 0.3])), min_size=1, max_size=120)


def test_without_shares_nobody_overdraws_a_queue_that_lost_jobs_came_back_to() -> None:
    core = scheduler(ready("cpu0", SINGLE), max_queue=1, client_share=1.0)
    core.handle(0.0, Submitted(job(1, client="only")))
    core.handle(0.0, Submitted(job(2, client="only")))
    core.handle(0.0, WorkerExited("cpu0", "SIGKILL"))
    assert core.queue_depth == 2
    assert isinstance(core.refused(0.0, job(3, client="only")), Rejected)


@pytest.mark.parametrize("fleet", FLEETS)
@given(day=A_DAY)
@example(day=[("flood", 12.0, 0.0)] * 60 + [("one", 4.0, 0.3), ("two", 6.0, 0.3)] * 20)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_an_admitted_job_is_done_in_time_whichever_client_else_arrives(
    fleet: str, day: list[tuple[str, float, float]]
) -> None:
    toy, unit = Toy(*FLEETS[fleet]), alone(*FLEETS[fleet])
    for client, budget, pause in day:
        toy.submit(budget * unit, client=client)
        toy.run(toy.now + pause * unit)
    toy.run(toy.now + 100 * unit)
    assert len(toy.outcomes) == len(day)
    assert {type(outcome) for _, outcome in toy.outcomes.values()} <= {Done, Rejected, QuotaExceeded}


# ------------------------------------------------------------------------------------------------------- its own share


def test_a_client_has_at_most_what_is_left_for_others() -> None:
    core = loading("gpu0", max_queue=7)
    assert core.handle(0.0, Submitted(job(100, client="another"))) == []
    for number in (1, 2, 3):
        assert core.handle(0.0, Submitted(job(number, client="flood"))) == []
    assert core.handle(1.0, Submitted(job(4, client="flood"))) == [Reply(4, QuotaExceeded(999.0))]
    assert core.handle(1.0, Submitted(job(5, client="other"))) == []


def test_the_more_clients_wait_the_less_each_may_have_and_one_more_finds_a_place() -> None:
    core = loading("gpu0", max_queue=64)
    held: Counter[str] = Counter()
    for number in range(1, 401):
        client = f"client {number % 7}"
        held[client] += not core.handle(0.0, Submitted(job(number, client=client)))
    assert set(held.values()) == {8}
    assert core.handle(0.0, Submitted(job(500, client="one more"))) == []


def test_a_share_of_one_lets_a_client_fill_the_queue() -> None:
    core = loading("gpu0", max_queue=3, client_share=1.0)
    for number in (1, 2, 3):
        assert core.handle(0.0, Submitted(job(number, client="only"))) == []
    assert core.handle(1.0, Submitted(job(4, client="only"))) == [Reply(4, Rejected(999.0, queue_full=True))]


def test_running_jobs_are_not_counted() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"), max_queue=1)
    for number in (1, 2):
        core.start(0.0, Submitted(job(number, client="only")))


def test_a_client_leaves_others_as_much_time_as_it_takes() -> None:
    core = scheduler(ready("cpu0", CPU), lone_share=0.5)
    replies = [core.handle(0.0, Submitted(job(number, 66.0, client="flood"))) for number in range(1, 7)]
    assert [bool(reply) for reply in replies] == [True, False, False, False, True, True]  # one runs, three wait
    [reply] = replies[4]
    assert isinstance(reply, Reply)
    assert isinstance(reply.outcome, QuotaExceeded)
    spare = 66.0 - (40.0 * MARGIN + 10.0)
    assert reply.outcome.retry_after == pytest.approx(30.0 * MARGIN - spare + 2.0)
    assert core.handle(0.0, Submitted(job(7, 66.0, client="other"))) == []


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize(
    "limits", [{}, {"max_queue": 7}, {"client_share": 0.25}, {"client_share": 0.2, "max_queue": 40}]
)
@pytest.mark.parametrize("pause", [0.0, 0.04])
def test_a_retry_after_the_given_time_is_admitted(fleet: str, limits: dict[str, float], pause: float) -> None:
    alike = {"lone_share": limits.get("client_share", 0.5)}
    toy, seconds = Toy(*FLEETS[fleet], **limits, **alike), 12 * alone(*FLEETS[fleet])
    while not isinstance(answer := toy.submit(seconds, client="flood"), QuotaExceeded):
        assert answer is None
        toy.run(toy.now + pause)
    toy.run(toy.now + answer.retry_after)
    assert toy.submit(seconds, client="flood") is None


@pytest.mark.parametrize("fleet", FLEETS)
def test_a_flood_leaves_another_client_its_half(fleet: str) -> None:
    toy, unit = Toy(*FLEETS[fleet]), alone(*FLEETS[fleet])
    waiting = 0
    for _ in range(400):
        for _ in range(4):
            toy.submit(20 * unit, client="flood")
        waiting += toy.submit(20 * unit, client="other") is None
        toy.run(toy.now + unit / 10)
    toy.run(toy.now + 40 * unit)
    made = Counter(toy.clients[number] for number, (_, outcome) in toy.outcomes.items() if isinstance(outcome, Done))
    assert made["other"] >= 0.45 * made.total()
