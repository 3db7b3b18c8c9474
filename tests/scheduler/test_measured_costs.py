"""Workers that measure themselves again, as their networks have become faster."""

import pytest
from msgspec.structs import replace

from scheduler.errors import IllegalEvent
from scheduler.messages import Costs, Done, Finished, Impossible, Measured, Start, Submitted, WaitReason, WorkerExited
from tests.scheduler.sums import seconds_alone
from tests.scheduler.toy import Toy
from tests.scheduler.words import CPU, GPU, IMAGE, SLOW_GPU, job, loading, ready, scheduler, stepped

SLOW_CPU = replace(CPU, step_seconds=(4.0, 8.0, 12.0, 16.0))
FAST = replace(SLOW_GPU, step_seconds=(0.010, 0.011, 0.012, 0.013))


def test_the_fastest_worker_is_the_one_that_is_so_now() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1", SLOW_GPU))
    assert core.handle(1.0, Measured("gpu1", FAST)) == []
    assert core.predicted_seconds == seconds_alone(FAST)
    assert core.handle(1.0, Submitted(job(1))) == [Start(1, "gpu1", 0, 1)]


def test_a_job_that_waited_joins_when_a_batch_has_become_cheap() -> None:
    core = scheduler(ready("cpu0", CPU))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, Submitted(job(2)))
    assert core.wait_reason is WaitReason.BATCH_SLOWER
    shared = replace(CPU, step_seconds=(1.0, 1.01, 1.02, 1.03))
    assert core.handle(1.0, Measured("cpu0", shared)) == [Start(2, "cpu0", 1, 2)]


def test_a_slower_worker_is_waited_for_longer() -> None:
    core = scheduler(ready("cpu0", CPU), heartbeat_floor=1.0, heartbeat_factor=8.0)
    core.handle(0.0, Submitted(job(1)))
    assert core.next_wakeup == 8.0 * CPU.step_seconds[-1]
    core.handle(1.0, Measured("cpu0", SLOW_CPU))
    assert core.next_wakeup == 8.0 * SLOW_CPU.step_seconds[-1]


def test_a_ready_worker_cannot_change_its_steps_or_slots() -> None:
    core = scheduler(ready("gpu0"))
    for costs in (replace(GPU, steps=19), replace(GPU, step_seconds=GPU.step_seconds[:2]), Costs(0, (), 0.0)):
        with pytest.raises(IllegalEvent, match="gpu0 cannot change its steps or slots"):
            core.handle(1.0, Measured("gpu0", costs))


def test_a_worker_that_is_not_ready_has_nothing_to_tell() -> None:
    core = loading("gpu0")
    with pytest.raises(IllegalEvent, match="in state loading"):
        core.handle(1.0, Measured("gpu0", GPU))
    core.handle(1.0, WorkerExited("gpu0", "gone"))
    with pytest.raises(IllegalEvent, match="in state backoff"):
        core.handle(1.0, Measured("gpu0", GPU))


def test_a_worker_that_measured_itself_on_a_busy_machine_is_corrected_by_its_first_images() -> None:
    busy = Costs(steps=20, step_seconds=(0.57, 1.0), fixed_seconds=2.0)  # where 0.02 s a step is true
    toy = Toy(busy, slower=0.02 / 0.57)
    assert isinstance(toy.submit(10.0), Impossible)  # 13 s, as far as anybody knows
    for _ in range(8):
        assert toy.submit(30.0) is None
        toy.run(toy.now + 1.0)
    assert toy.core.predicted_seconds == pytest.approx(seconds_alone(busy) * 0.02 / 0.57, rel=0.1)
    assert toy.submit(1.0) is None
    toy.run(toy.now + 1.0)
    assert isinstance(toy.outcomes[10][1], Done)


def test_only_the_worker_whose_steps_are_slow_is_priced_so() -> None:
    core = scheduler(ready("gpu0"), ready("gpu1"))
    for number in (1, 2):
        core.handle(0.0, Submitted(job(number)))
    for taken in range(1, 20):
        core.handle(0.05 * taken, stepped("gpu1", taken))
        if taken % 4 == 0:
            core.handle(0.05 * taken, stepped("gpu0", taken // 4))
    assert core.predicted_seconds == pytest.approx(seconds_alone(GPU), rel=0.03)
    core.handle(1.0, Finished("gpu0", 0, 1, IMAGE))
    core.handle(1.0, Finished("gpu1", 0, 2, IMAGE))
    assert core.handle(1.0, Submitted(job(3))) == [Start(3, "gpu1", 0, 3)]


def test_a_worker_that_measures_itself_again_starts_afresh() -> None:
    toy = Toy(GPU, slower=3.0)
    for _ in range(10):
        toy.submit(100.0)
    toy.run(60.0)
    assert toy.core.predicted_seconds == pytest.approx(3 * seconds_alone(GPU), rel=0.15)
    toy.core.handle(60.0, Measured("device0", GPU))
    assert toy.core.predicted_seconds == seconds_alone(GPU)
