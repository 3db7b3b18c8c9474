"""Where a job stands that waits, and when it is expected to start."""

from random import Random

import pytest

from scheduler.messages import QueuePosition, Submitted, WorkerExited
from tests.scheduler.test_admission import FLEETS
from tests.scheduler.toy import Toy
from tests.scheduler.words import CPU, SINGLE, Checked, job, loading, ready, scheduler, stepped


def positions(core: Checked, *jobs: int) -> list[int]:
    return [queue_position.position for number in jobs if (queue_position := core.place_of(number)) is not None]


def test_a_running_job_has_no_queue_position() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    assert core.place_of(1) is None  # it runs
    assert core.place_of(2) is None  # nobody knows it


def test_before_a_worker_has_measured_itself_nobody_knows_how_long() -> None:
    core = loading("gpu0")
    core.handle(0.0, Submitted(job(1, client="a")))
    core.handle(0.0, Submitted(job(2, client="a")))
    assert core.place_of(2) == QueuePosition(1, None)


def test_a_client_alone_is_told_its_place_and_the_time() -> None:
    core = scheduler(ready("cpu0", CPU))
    for number in (1, 2, 3, 4):
        core.handle(0.0, Submitted(job(number, client="a", relative_steps=2.0 if number == 2 else 1.0)))
    core.handle(4.0, stepped("cpu0", 4))
    assert positions(core, 2, 3, 4) == [0, 1, 2]
    two, four = core.place_of(2), core.place_of(4)
    assert two is not None
    assert four is not None
    assert two.seconds == pytest.approx(6.0)
    assert four.seconds == pytest.approx(6.0 + 19.0 + 10.0)


def test_a_short_job_behind_a_long_one_of_its_client_stands_behind_it() -> None:
    core = scheduler(ready("cpu0", CPU))
    for number, relative_steps in enumerate((1.0, 1.0, 0.05)):
        core.handle(0.0, Submitted(job(number, client="a", relative_steps=relative_steps)))
    assert positions(core, 1, 2) == [0, 1]
    two, three = core.place_of(1), core.place_of(2)
    assert two is not None
    assert three is not None
    assert two.seconds is not None
    assert three.seconds is not None
    assert three.seconds > two.seconds


def test_jobs_of_higher_priority_come_first() -> None:
    core = loading("gpu0")
    for number, priority in enumerate((0, 5, 0)):
        core.handle(0.0, Submitted(job(number, client="a", priority=priority)))
    assert positions(core, 0, 1, 2) == [1, 0, 2]


def test_clients_with_one_job_each_stand_in_their_order() -> None:
    core = loading("gpu0", max_queue=100)
    for number in range(20):
        core.handle(0.0, Submitted(job(number)))
    assert positions(core, *range(20)) == list(range(20))


def test_a_suspect_stands_before_all_others() -> None:
    core = scheduler(ready("cpu0", SINGLE))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    core.handle(1.0, WorkerExited("cpu0", "gone"))
    assert positions(core, 1, 2) == [0, 1]


@pytest.mark.parametrize("fleet", ["one slot", "one GPU", "two GPUs"])
@pytest.mark.parametrize("clients", ["a", "aaaaabcd"])
def test_the_estimated_wait_is_nearly_the_real_one(fleet: str, clients: str) -> None:
    random, toy = Random(1), Toy(*FLEETS[fleet], client_share=1.0)
    for _ in range(60):
        toy.submit(10_000.0, 1.0, random.choice(clients), random.choice([0.5, 1.0, 2.5]))
    toy.run(3.0)
    told = {number: queue_position for number in toy.jobs if (queue_position := toy.core.place_of(number)) is not None}
    toy.run(1000.0)
    order = sorted(told, key=lambda number: toy.started[number])
    late = [toy.started[number] - 3.0 - (told[number].seconds or 0.0) for number in order]
    wrong = [abs(told[number].position - place) for place, number in enumerate(order)]
    assert max(wrong) <= (0 if clients == "a" else 8)
    assert sum(wrong) / len(wrong) <= 2.0
    assert sum(map(abs, late)) / len(late) <= 0.15 * max(toy.started.values())
