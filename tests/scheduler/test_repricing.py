"""Workers that measure themselves again, as their networks have become faster."""

from dataclasses import replace

import pytest

from scheduler.errors import IllegalEvent
from scheduler.messages import Costs, Measured, Start, Submitted, WorkerLost
from scheduler.policy import Wait, seconds_alone
from tests.scheduler.words import CPU, GPU, SLOW_GPU, job, loading, ready, scheduler

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
    assert core.why() is Wait.SLOWER
    shared = replace(CPU, step_seconds=(1.0, 1.01, 1.02, 1.03))
    assert core.handle(1.0, Measured("cpu0", shared)) == [Start(2, "cpu0", 1, 2)]


def test_a_slower_worker_is_waited_for_longer() -> None:
    core = scheduler(ready("cpu0", CPU), silence_floor=1.0, silence_factor=8.0)
    core.handle(0.0, Submitted(job(1)))
    assert core.next_wakeup == 8.0
    core.handle(1.0, Measured("cpu0", SLOW_CPU))
    assert core.next_wakeup == 32.0


def test_what_cannot_change_while_a_worker_is_ready_is_refused() -> None:
    core = scheduler(ready("gpu0"))
    for costs in (replace(GPU, steps=19), replace(GPU, step_seconds=GPU.step_seconds[:2]), Costs(0, (), 0.0)):
        with pytest.raises(IllegalEvent, match="gpu0 cannot change its steps or slots"):
            core.handle(1.0, Measured("gpu0", costs))


def test_a_worker_that_is_not_ready_has_nothing_to_tell() -> None:
    core = loading("gpu0")
    with pytest.raises(IllegalEvent, match="gpu0 is loading"):
        core.handle(1.0, Measured("gpu0", GPU))
    core.handle(1.0, WorkerLost("gpu0", "gone"))
    with pytest.raises(IllegalEvent, match="gpu0 is waiting"):
        core.handle(1.0, Measured("gpu0", GPU))
