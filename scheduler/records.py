"""The scheduler's mutable records: a ticket per accepted job, a tenant per taken slot, a worker per device."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

from scheduler.messages import Costs, Job, WorkerId, WorkerState, WorkerView
from scheduler.policy import Joining, Pace, Picture, Slowdown, joining, steps_of

if TYPE_CHECKING:
    from scheduler.agenda import Agenda


@dataclass(slots=True, eq=False)
class Ticket:
    """An accepted job without its reply. It runs if it has a tenant, else it queues."""

    job: Job
    submitted: float
    load: float  # what it takes, in nominal pictures, by what was known of the workers when it was accepted
    number: int = 0  # its place in its row, see `scheduler.line`
    started: float = 0.0
    losses: int = 0
    guilt: int = 0  # by what that weighs, in accidents
    lost_on: WorkerId | None = None
    tenant: Optional["Tenant"] = None

    @property
    def charge(self) -> float:
        """What its client has had when it has started, in nominal images."""
        return self.load + self.job.surcharge

    @property
    def suspect(self) -> bool:
        """It was in a worker that was lost, and may be why."""
        return self.losses > 0


@dataclass(slots=True, eq=False)
class Tenant(Picture):
    """What is in a slot. Without a ticket it is leaving: its job is answered, its worker has yet to let go of it."""

    steps: int
    worker: "Worker"
    slot: int
    generation: int
    ticket: Ticket | None

    @property
    def rest(self) -> float:
        """What is left of it, in nominal pictures. The fixed part counts until the end."""
        costs, pace = self.worker.measured, self.worker.pace
        assert pace is not None
        return self.work * (1 - pace.step_share * (costs.steps - self.left))


@dataclass(slots=True, eq=False)
class Worker:
    """A device and whatever process it has now.

    `costs` are as the process measured them, corrected by the steps it has taken since. They and `pace` outlive the
    process: the best guess for the next.
    """

    id: WorkerId
    state: WorkerState = WorkerState.NEW
    costs: Costs | None = None
    pace: Pace | None = None
    slowdown: Slowdown = field(default_factory=Slowdown)  # how its steps compare with `costs`
    tenants: dict[int, Tenant] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)  # a heap of slots
    alone: bool = False  # a suspect is in it
    heard: float = 0.0  # its last sign of life, or since when it has something to do
    since: float = 0.0  # when it became ready
    stepped: float | None = None  # when it took its last step, if it has been busy since
    proven: bool = False  # this process finished a picture
    pause: float = 0.0  # before its next restart
    failures: int = 0  # processes in a row that were not proven
    fault: str = ""  # what its device has, if that is why it is being killed
    restarts: int = 0
    reason: str = ""
    shelf: Optional["Agenda[Worker]"] = None  # where the fleet looks for it
    asked: tuple[float, int, Joining] | None = (
        None  # by which size and steps it was last to be joined, while that holds
    )

    @property
    def measured(self) -> Costs:
        """The costs of a worker that was ready at least once."""
        assert self.costs is not None
        return self.costs

    @property
    def batch(self) -> list[Tenant]:
        """The pictures that somebody waits for."""
        return [tenant for tenant in self.tenants.values() if tenant.ticket is not None]

    def joined_by(self, job: Job) -> Joining:
        """What it means if a new picture joins; worked out once, as one that waits asks at every event."""
        work, steps = job.work, steps_of(self.measured, job.length)
        if self.asked is None or self.asked[0] != work or self.asked[1] != steps:
            self.asked = work, steps, joining(self.measured, self.batch, work, steps)
        return self.asked[2]

    def tenant(self, slot: int, generation: int) -> Tenant | None:
        """Whom a message from this worker is about; None if it is late: about a tenant of a former process."""
        tenant = self.tenants.get(slot)
        return tenant if tenant is not None and tenant.generation == generation else None

    def view(self) -> WorkerView:
        """What `/readyz` shows."""
        capacity = len(self.tenants) + len(self.free)
        return WorkerView(self.id, self.state, len(self.batch), capacity, self.restarts, self.reason)
