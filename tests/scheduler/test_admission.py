"""Admission: accepted and refused jobs, and whether Retry-After is true."""

from itertools import cycle

import pytest

from scheduler.messages import (
    Command,
    Costs,
    Done,
    Expired,
    Impossible,
    Rejected,
    Reply,
    Spawn,
    Start,
    Submitted,
    Tick,
    WorkerExited,
)
from scheduler.placement import MARGIN
from tests.scheduler.sums import seconds_alone
from tests.scheduler.toy import Toy
from tests.scheduler.words import BUCKETS, CPU, GPU, SINGLE, SLOW_GPU, finished, job, loading, ready, scheduler, stepped

FLEETS = {
    "one CPU": (CPU,),
    "three CPUs": (CPU, CPU, CPU),
    "one slot": (SINGLE,),
    "one GPU": (GPU,),
    "two GPUs": (GPU, GPU),
    "unequal GPUs": (GPU, SLOW_GPU),
}
BUDGETS = (1.05, 1.3, 2.0, 3.5)  # in images alone on the slowest worker
# Between unequal workers a job goes where there is room, even if it were in time on the faster one alone: so where the
# slower one's service time under load (1.27) exceeds the budget, no time to come back can be promised.
PROMISES = [(name, budget) for name in FLEETS for budget in BUDGETS if name != "unequal GPUs" or budget > 1.27]


def alone(*fleet: Costs) -> float:
    """Seconds for an image alone on the slowest worker."""
    return max(seconds_alone(costs) for costs in fleet)


def retry_after(command: Command) -> float:
    assert isinstance(command, Reply)
    assert isinstance(command.outcome, Rejected)
    return command.outcome.retry_after


def test_a_job_whose_deadline_has_passed_expires_at_once() -> None:
    core = scheduler(ready("gpu0"))
    assert core.handle(5.0, Submitted(job(1, deadline=5.0))) == [Reply(1, Expired())]


def test_an_idle_worker_takes_what_it_can_do_in_time() -> None:
    core = scheduler(ready("cpu0", CPU))
    assert core.handle(0.0, Submitted(job(1, deadline=10.5))) == [Start(1, "cpu0", 0, 1)]


def test_an_impossible_deadline_gets_no_retry_after() -> None:
    core = scheduler(ready("cpu0", CPU))
    assert core.handle(0.0, Submitted(job(1, deadline=9.5))) == [Reply(1, Impossible(10.0))]
    core.handle(0.0, Submitted(job(2)))
    assert core.handle(0.0, Submitted(job(3, deadline=9.5))) == [Reply(3, Impossible(10.0))]


def test_a_large_image_needs_longer() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.refused(0.0, job(1, deadline=15.0, work=2.0))
    assert core.handle(0.0, Submitted(job(2, deadline=20.5, work=2.0))) == [Start(2, "cpu0", 0, 1)]


def test_a_job_joins_a_batch_if_it_is_in_time_there() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(0.0, Submitted(job(2, deadline=1.25))) == [Start(2, "gpu0", 1, 2)]  # 1.2 s with the first


def test_running_work_counts_as_far_as_it_is_left() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(0.0, Submitted(job(2, deadline=15.0))) == [Reply(2, Rejected(10.0 + 10.0 - 15.0 + 2.0))]
    core.handle(6.0, stepped("cpu0", 6))
    assert core.handle(6.0, Submitted(job(3, deadline=21.0))) == []


def test_waiting_work_counts() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2, deadline=10 * MARGIN + 10.5)))
    assert core.handle(0.0, Submitted(job(3, deadline=20 * MARGIN + 10.5))) == []
    [reply] = core.handle(0.0, Submitted(job(4, deadline=39.5)))
    assert retry_after(reply) == pytest.approx(30.0 * MARGIN + 10.0 - 39.5 + 2.0)


def test_a_job_with_time_waits_for_one_due_sooner() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    for number in range(2, 12):
        core.handle(0.0, Submitted(job(number)))  # each has a thousand seconds
    assert core.handle(0.0, Submitted(job(12, deadline=10 * MARGIN + 10.5))) == []
    assert core.handle(10.0, finished(Start(1, "cpu0", 0, 1)))[1:] == [Start(12, "cpu0", 0, 2)]


def test_each_refused_client_has_a_time_of_its_own_to_come_back() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    replies = [core.handle(0.0, Submitted(job(number, deadline=15.0))) for number in range(2, 6)]
    assert [retry_after(reply) for [reply] in replies] == pytest.approx([7.0, 17.0, 27.0, 37.0])


def test_all_workers_share_the_backlog() -> None:
    core = scheduler(ready("cpu0", CPU), ready("cpu1", CPU))
    for number in (1, 2, 3, 4):
        core.handle(0.0, Submitted(job(number)))
    assert core.handle(0.0, Submitted(job(5, deadline=20 * MARGIN + 10.5))) == []  # 40 s of work for two


def test_work_that_has_gone_does_not_count() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2, deadline=21.0)))
    core.handle(10.0, finished(Start(1, "cpu0", 0, 1)))
    assert core.handle(21.0, Submitted(job(3, deadline=31.5)))[0] == Reply(2, Expired())
    assert core.queue_depth == 0  # job 2 is leaving, and counts no more


def test_before_a_worker_has_measured_itself_all_are_taken() -> None:
    core = loading("gpu0", max_queue=2)
    assert core.handle(0.0, Submitted(job(1, deadline=0.1))) == []
    assert core.handle(0.0, Submitted(job(2))) == []
    assert core.queue_depth == 2


def test_with_all_workers_lost_the_last_costs_count() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, WorkerExited("cpu0", "SIGKILL"))
    assert core.handle(0.0, Submitted(job(1, deadline=10.5))) == []
    [reply] = core.handle(0.0, Submitted(job(2, deadline=19.5)))
    assert retry_after(reply) == pytest.approx(0.5 + 10.0 * MARGIN + 10.0 - 19.5 + 2.0)  # it is started in 0.5 s


def test_while_the_only_worker_restarts_its_loading_counts() -> None:
    core = loading("cpu0")
    core.handle(30.0, ready("cpu0", CPU))
    core.handle(40.0, WorkerExited("cpu0", "SIGKILL"))
    [reply] = core.handle(40.0, Submitted(job(1, deadline=80.0)))  # 0.5 s, then 30 s to load, then 10 s
    assert retry_after(reply) == pytest.approx(0.5 + 30.0 + 10.0 - 40.0 + 2.0)
    assert core.handle(40.0, Submitted(job(2, deadline=81.0))) == []
    assert core.handle(40.5, Tick()) == [Spawn("cpu0")]
    assert core.handle(60.0, Submitted(job(3, deadline=92.0))) == []  # 10.5 s are left of the loading


def test_only_what_was_measured_last_counts() -> None:
    core = scheduler(ready("gpu0", GPU), restart_backoff=0.0)
    core.handle(0.0, WorkerExited("gpu0", "SIGKILL"))
    core.handle(0.0, ready("gpu0", CPU))
    core.handle(0.0, WorkerExited("gpu0", "SIGKILL"))
    assert core.handle(0.0, Submitted(job(1, deadline=9.5))) == [Reply(1, Impossible(10.0))]


def test_a_worker_that_takes_other_steps_than_it_said_does_not_spoil_the_sums() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, stepped("cpu0", 25))  # of 9: what is left is the fixed part, 1 s
    core.handle(1.0, stepped("cpu0", 4))  # steps are not taken back
    assert core.handle(1.0, Submitted(job(2, deadline=12.5))) == [Start(2, "cpu0", 1, 2)]
    assert core.handle(1.0, Submitted(job(3, deadline=18.5))) == [Reply(3, Rejected(11.0 + 10.0 - 17.5 + 2.0))]


def test_a_full_queue_turns_away_until_the_next_image_is_done() -> None:
    core = scheduler(ready("cpu0", CPU), max_queue=1)
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    core.handle(4.0, stepped("cpu0", 4))
    assert core.handle(4.0, Submitted(job(3))) == [Reply(3, Rejected(5.0 + 1.0 + 2.0, queue_full=True))]


def test_a_full_queue_has_room_at_the_first_deadline_at_the_latest() -> None:
    core = loading("gpu0", max_queue=1)
    core.handle(0.0, Submitted(job(1, deadline=7.0)))
    assert core.handle(2.0, Submitted(job(2))) == [Reply(2, Rejected(5.0, queue_full=True))]


def test_expired_jobs_take_no_place_in_the_queue() -> None:
    core = loading("gpu0", max_queue=1)
    core.handle(0.0, Submitted(job(1, deadline=7.0)))
    assert core.handle(7.0, Submitted(job(2))) == [Reply(1, Expired())]
    assert core.queue_depth == 1


def test_an_engine_that_does_no_work_is_never_too_late() -> None:
    core = scheduler(ready("echo", Costs(1, (0.0,), 0.0)))
    core.handle(0.0, Submitted(job(1)))
    assert core.handle(0.0, Submitted(job(2, deadline=0.01))) == []
    assert core.handle(0.02, Tick()) == [Reply(2, Expired())]


@pytest.mark.parametrize(("fleet", "budget"), PROMISES)
@pytest.mark.parametrize("pause", [0.0, 0.04])
def test_a_retry_after_the_given_time_is_admitted(fleet: str, budget: float, pause: float) -> None:
    toy = Toy(*FLEETS[fleet])
    seconds = budget * alone(*FLEETS[fleet])
    while not isinstance(answer := toy.submit(seconds), Rejected):
        assert answer is None
        toy.run(toy.now + pause)
    toy.run(toy.now + answer.retry_after)
    assert toy.submit(seconds) is None


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("works", [(3.0,), (1.0, 4.0), (0.25, 2.0)])
def test_it_is_true_for_images_of_other_sizes_too(fleet: str, works: tuple[float, ...]) -> None:
    toy = Toy(*FLEETS[fleet])
    seconds = 12 * alone(*FLEETS[fleet])
    work, answer = next((work, answer) for work in cycle(works) if (answer := toy.submit(seconds, work)) is not None)
    assert isinstance(answer, Rejected)
    toy.run(toy.now + answer.retry_after)
    # What a mix of sizes costs is learned from steps, so who was refused before them may be told to wait a little more.
    for _ in range(3):
        if not isinstance(answer := toy.submit(seconds, work), Rejected):
            break
        toy.run(toy.now + answer.retry_after)
    assert answer is None


@pytest.mark.parametrize("fleet", FLEETS)
def test_a_retry_after_the_given_time_finds_room_in_a_full_queue(fleet: str) -> None:
    toy = Toy(*FLEETS[fleet], max_queue=3)
    while not isinstance(answer := toy.submit(1000.0), Rejected):
        assert answer is None
        toy.run(toy.now + 0.01)
    toy.run(toy.now + answer.retry_after)
    assert toy.submit(1000.0) is None


@pytest.mark.parametrize("fleet", FLEETS)
def test_an_admitted_job_is_done_in_time(fleet: str) -> None:
    toy = Toy(*FLEETS[fleet])
    seconds = 4 * alone(*FLEETS[fleet])
    for _ in range(100):
        toy.submit(seconds)
        toy.run(toy.now + seconds / 50)
    toy.run(toy.now + 2 * seconds)
    outcomes = [outcome for _, outcome in toy.outcomes.values()]
    assert len(outcomes) == 100
    assert {type(outcome) for outcome in outcomes} <= {Done, Rejected}
    assert sum(isinstance(outcome, Done) for outcome in outcomes) > 10


def test_sizes_are_batches_of_their_own_so_no_promise_is_broken_by_mixing_them() -> None:
    toy = Toy(BUCKETS)
    assert toy.submit(60.0) is None
    answer = toy.submit(0.30, work=2.25)  # alone 0.266 s; beside the first 0.376 s, and 0.245 s if they shared a batch
    assert isinstance(answer, Rejected)
    toy.run(answer.retry_after)
    assert toy.submit(0.30, work=2.25) is None
    toy.run(10.0)
    assert [type(toy.outcomes[number][1]) for number in (1, 2, 3)] == [Done, Rejected, Done]


def test_suspects_count_as_what_they_take_alone() -> None:
    cheap = Costs(20, tuple(0.005 + 0.0005 * n for n in range(1, 9)), 0.008)  # eight together take 0.188 s, one 0.118 s
    core = scheduler(ready("gpu0", cheap), restart_backoff=0.0)
    for number in range(1, 9):
        core.handle(0.0, Submitted(job(number)))
    core.handle(0.1, WorkerExited("gpu0", "gone"))
    core.handle(0.1, ready("gpu0", cheap))
    [reply] = core.handle(0.1, Submitted(job(9, deadline=0.7)))
    assert retry_after(reply) > 0.3
    assert core.handle(0.1, Submitted(job(10, deadline=0.1 + 8 * 0.118 * MARGIN + 0.2))) == []
