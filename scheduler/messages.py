"""The vocabulary of the system: what can happen, what can be done about it, and how a job can end.

Events go into `scheduler.core.Scheduler`, commands come out. Both are frozen, and both unions are closed: match them
with `assert_never`. Times are seconds on one monotonic clock, durations are seconds.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

JobId: TypeAlias = int
WorkerId: TypeAlias = str
ClientId: TypeAlias = str


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to make. `work` is its number of pixels relative to the nominal picture that `Costs` are about.

    Clients share the service: `client` says whose job it is.
    """

    id: JobId
    deadline: float
    work: float = 1.0
    client: ClientId = ""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a worker measured on its device with the nominal picture.

    `step_seconds[n - 1]` is one denoising step of n pictures together; `fixed_seconds` is all that is not denoising
    (prepare, decode, encode) for one picture.
    """

    steps: int
    step_seconds: tuple[float, ...]
    fixed_seconds: float


@dataclass(frozen=True, slots=True)
class Image:
    """A finished picture: `length` bytes in the output slot that its job ran in, and the seconds each stage took."""

    length: int
    prepare: float
    denoise: float
    decode: float
    encode: float


# ------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Opened:
    """The shell can start processes. Once; jobs may come before."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A client asks for a picture. Exactly one `Reply` will answer it."""

    job: Job


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client of a job has gone."""

    job: JobId


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A spawned worker has loaded its model. It has slots 0 .. len(costs.step_seconds) - 1."""

    worker: WorkerId
    costs: Costs


@dataclass(frozen=True, slots=True)
class Measured:
    """A ready worker has measured itself again: it has become faster, say. Steps and slots are what they were."""

    worker: WorkerId
    costs: Costs


@dataclass(frozen=True, slots=True)
class Faulted:
    """A worker's device is known to be unwell, whatever its process may say: what it computes cannot be relied on."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker's process has ended and was reaped; its slots can no longer be written to.

    `outside`: somebody ended it who had nothing to do with what was in it.
    """

    worker: WorkerId
    reason: str
    outside: bool = False


@dataclass(frozen=True, slots=True)
class Stepped:
    """A sign of life: the worker took a step. `done` holds (slot, steps taken so far) of each picture in that step."""

    worker: WorkerId
    done: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A picture lies in its output slot."""

    worker: WorkerId
    slot: int
    generation: int
    image: Image


class Blame(StrEnum):
    """What a failure is put down to."""

    PICTURE = "picture"  # it cannot be read
    MEMORY = "memory"  # there was not enough: alone, or elsewhere, the picture may be made
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker could not make one picture, and is well otherwise."""

    worker: WorkerId
    slot: int
    generation: int
    reason: str
    blame: Blame


@dataclass(frozen=True, slots=True)
class Released:
    """A worker has let go of a slot after `Cancel`."""

    worker: WorkerId
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `Scheduler.next_wakeup` named has come."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new, finish what was accepted, answer what is not done by `until`, then `Exit`."""

    until: float


Event: TypeAlias = (
    Opened
    | Submitted
    | Cancelled
    | WorkerReady
    | Measured
    | Faulted
    | WorkerLost
    | Stepped
    | Finished
    | Failed
    | Released
    | Tick
    | Drain
)


# ----------------------------------------------------------------------------------------------------------- outcomes


@dataclass(frozen=True, slots=True)
class Done:
    """The picture is in output slot `slot` of `worker`, and stays there until the next `Start` into that slot."""

    worker: WorkerId
    slot: int
    image: Image
    queued: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The picture cannot be read: the client's fault."""

    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The worker failed on this job: our fault."""

    reason: str


@dataclass(frozen=True, slots=True)
class Poisoned:
    """The job lost its worker `losses` times and is not tried again."""

    losses: int


@dataclass(frozen=True, slots=True)
class Expired:
    """The deadline has passed."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """It could not be done before its deadline, or the queue is full. It could be after `retry_after` seconds."""

    retry_after: float


@dataclass(frozen=True, slots=True)
class Overdrawn:
    """Its client has its share of the queue. It will have less than that after `retry_after` seconds."""

    retry_after: float


@dataclass(frozen=True, slots=True)
class Draining:
    """The service is shutting down: the job came too late, or was not done when the drain ended.

    Or it ends because no worker is left that could do it.
    """


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The client had gone before the picture was done."""


Outcome: TypeAlias = Done | Refused | Broken | Poisoned | Expired | Rejected | Overdrawn | Draining | Abandoned


# ----------------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process of a worker that has none."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker's process at once; `WorkerLost` follows when it is reaped."""

    worker: WorkerId
    reason: str


@dataclass(frozen=True, slots=True)
class Start:
    """Put a job into a slot of a worker. `generation` is new with every `Start`: it tells a slot's tenants apart."""

    job: JobId
    worker: WorkerId
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Tell a worker to drop what is in a slot, which is free when `Released` (or `Finished`, `Failed`) comes back."""

    worker: WorkerId
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a job: the last thing that is ever said of it."""

    job: JobId
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Exit:
    """Every job is answered. After it, only who comes too late gets a `Reply`.

    Drained; or else `failure` says why nothing can be served any more.
    """

    failure: str = ""


Command: TypeAlias = Spawn | Kill | Start | Cancel | Reply | Exit


# --------------------------------------------------------------------------------------------------------- what shows


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    NEW = "new"  # not spawned yet
    LOADING = "loading"
    READY = "ready"
    ENDING = "ending"  # killed, not reaped yet
    WAITING = "waiting"  # lost; spawned again after a pause
    OUT = "out"  # of service, as it was lost too often or its device is unwell; spawned again after a long pause


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as `/readyz` and the metrics show it. `reason` is the last loss, empty if there was none."""

    id: WorkerId
    state: WorkerState
    running: int
    capacity: int
    restarts: int
    reason: str
