"""The words that the scheduler's tests are written in."""

from typing import Any

from scheduler.core import Scheduler
from scheduler.limits import Limits
from scheduler.messages import (
    Blame,
    Command,
    Costs,
    Done,
    Event,
    Failed,
    Finished,
    Image,
    Job,
    JobId,
    Opened,
    Outcome,
    QueuePosition,
    Released,
    Reply,
    Start,
    Stepped,
    Submitted,
    WaitReason,
    WorkerId,
    WorkerReady,
    WorkerState,
)

GPU = Costs(steps=20, step_seconds=(0.050, 0.055, 0.060, 0.065), fixed_seconds=0.1)  # alone: 1.1 s
SLOW_GPU = Costs(steps=20, step_seconds=(0.100, 0.110, 0.120, 0.130), fixed_seconds=0.2)  # alone: 2.2 s
SINGLE = Costs(steps=20, step_seconds=(0.050,), fixed_seconds=0.1)  # one slot
CPU = Costs(steps=9, step_seconds=(1.0, 2.0, 3.0, 4.0), fixed_seconds=1.0)  # alone: 10 s; a batch gains nothing
BUCKETS = Costs(20, (0.0055, 0.0070, 0.0105, 0.0105, 0.019, 0.019, 0.019, 0.019), 0.008)  # graphs for 1, 2, 4 and 8
IMAGE = Image(byte_count=1000, prepare=0.02, denoise=1.0, decode=0.05, encode=0.03)


class Checked(Scheduler):
    """A scheduler whose invariants are validated after every event."""

    now = 0.0

    def handle(self, now: float, event: Event) -> list[Command]:
        self.now = now
        commands = super().handle(now, event)
        self.check()
        return commands

    def start(self, now: float, event: Event) -> Start:
        """Process an event that starts one job, and does nothing else."""
        [start] = self.handle(now, event)
        assert isinstance(start, Start)
        return start

    def refused(self, now: float, job: Job) -> Outcome:
        """Submit a job that is not admitted; why."""
        [reply] = self.handle(now, Submitted(job))
        assert isinstance(reply, Reply)
        return reply.outcome

    def place_of(self, job: JobId) -> QueuePosition | None:
        return self.queue_position(job, self.now)

    def why(self) -> WaitReason | None:
        return self.wait_reason

    def state_of(self, worker: WorkerId) -> WorkerState:
        return next(view.state for view in self.workers() if view.id == worker)


def job(
    id: JobId,  # noqa: A002
    deadline: float = 1000.0,
    work: float = 1.0,
    client: str = "",
    relative_steps: float = 1.0,
    priority: int = 0,
) -> Job:
    return Job(id, deadline, work, client or f"client of {id}", relative_steps, priority)


def ready(worker: WorkerId, costs: Costs = GPU) -> WorkerReady:
    return WorkerReady(worker, costs)


def scheduler(*workers: WorkerReady, **limits: Any) -> Checked:
    """A scheduler at time zero, whose workers are ready."""
    core = loading(*(worker.worker for worker in workers), **limits)
    for worker in workers:
        assert core.handle(0.0, worker) == []
    return core


def loading(*workers: WorkerId, **limits: Any) -> Checked:
    """A scheduler at time zero, whose workers were spawned."""
    core = Checked(workers, Limits(**limits))
    core.handle(0.0, Opened())
    return core


def stepped(worker: WorkerId, *taken: int) -> Stepped:
    """All slots from 0 on, by the steps that the images in them have taken."""
    return Stepped(worker, tuple(enumerate(taken)))


def finished(start: Start) -> Finished:
    return Finished(start.worker, start.slot, start.generation, IMAGE)


def failed(start: Start, reason: str, blame: Blame = Blame.SERVICE) -> Failed:
    return Failed(start.worker, start.slot, start.generation, reason, blame)


def released(start: Start) -> Released:
    return Released(start.worker, start.slot, start.generation)


def done(start: Start, queued: float = 0.0) -> Done:
    return Done(start.worker, start.slot, IMAGE, queued)
