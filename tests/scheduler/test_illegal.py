"""Events that cannot happen: they raise, and change nothing."""

import pytest

from scheduler.core import BrokenInvariantError, IllegalEvent, Scheduler
from scheduler.limits import Limits
from scheduler.messages import BatchKey, Costs, Event, Measured, Opened, Start, Submitted, WorkerExited, WorkerReady
from tests.scheduler.words import GPU, Checked, finished, job, loading, ready, released, scheduler, stepped

UNEVEN = Costs(20, GPU.step_seconds, 0.1, sizes=((BatchKey(2.0), (0.1,)),))


def busy() -> Checked:
    """One worker is ready and runs job 1, one waits for its restart, one loads."""
    core = loading("gpu0", "gpu1", "gpu2")
    core.handle(0.0, ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    core.handle(0.0, WorkerExited("gpu1", "SIGKILL"))
    return core


def face(core: Scheduler) -> tuple[object, ...]:
    """All that can be seen of a scheduler."""
    return core.workers(), core.queue_depth, core.running, core.next_wakeup, core.wait_reason, core.draining


@pytest.mark.parametrize(
    ("event", "why"),
    [
        pytest.param(Opened(), "opened before", id="opened twice"),
        pytest.param(ready("gpu7"), "no worker gpu7", id="an unknown worker is ready"),
        pytest.param(WorkerExited("gpu7", ""), "no worker gpu7", id="an unknown worker is lost"),
        pytest.param(stepped("gpu7", 1), "no worker gpu7", id="an unknown worker steps"),
        pytest.param(finished(Start(1, "gpu7", 0, 1)), "no worker gpu7", id="an unknown worker finishes"),
        pytest.param(ready("gpu0"), "gpu0 cannot become ready in state ready", id="ready twice"),
        pytest.param(ready("gpu1"), "gpu1 cannot become ready in state backoff", id="ready without a process"),
        pytest.param(WorkerExited("gpu1", ""), "no process", id="lost twice"),
        pytest.param(Submitted(job(1)), "job 1 was submitted", id="a job twice"),
        pytest.param(released(Start(1, "gpu0", 0, 1)), "nobody cancelled", id="released without a cancel"),
        pytest.param(WorkerReady("gpu2", Costs(20, (), 0.1)), "no step or no slot", id="a worker without slots"),
        pytest.param(WorkerReady("gpu2", Costs(0, (1.0,), 0.1)), "no step or no slot", id="a worker without steps"),
        pytest.param(WorkerReady("gpu2", UNEVEN), "other numbers of images", id="a size measured for fewer images"),
        pytest.param(Measured("gpu0", UNEVEN), "other numbers of images", id="the same of a busy worker"),
    ],
)
def test_illegal_events_raise_and_change_nothing(event: Event, why: str) -> None:
    core = busy()
    before = face(core)
    with pytest.raises(IllegalEvent, match=why):
        core.handle(0.0, event)
    core.check()
    assert face(core) == before


def test_no_worker_is_ready_before_opened() -> None:
    core = Checked(["gpu0"], Limits())
    with pytest.raises(IllegalEvent, match="gpu0 cannot become ready in state new"):
        core.handle(0.0, ready("gpu0"))


def test_an_illegal_event_does_not_spoil_the_next() -> None:
    core = scheduler(ready("gpu0"))
    with pytest.raises(IllegalEvent):
        core.handle(0.0, ready("gpu0"))
    assert core.handle(0.0, Submitted(job(1))) == [Start(1, "gpu0", 0, 1)]


def test_a_spoiled_state_is_found() -> None:
    core = scheduler(ready("gpu0"))
    core.handle(0.0, Submitted(job(1)))
    core._workers["gpu0"].slots.clear()
    with pytest.raises(BrokenInvariantError, match="has a wrong alarm"):
        core.check()
