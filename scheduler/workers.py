"""The workers: their states, slots and alarms.

A machine has some sixteen at most, so everything here walks over all of them, and keeps no sum that could drift.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

from scheduler.costs import (
    BatchImage,
    Capacity,
    Joining,
    Slowdown,
    StepPrices,
    Wait,
    best_group,
    capacity,
    completion_times,
    counted,
    if_they_wait,
    joining,
    steps_left,
)
from scheduler.errors import IllegalEvent, require
from scheduler.limits import Limits
from scheduler.messages import BatchKey, Costs, Job, WorkerExited, WorkerId, WorkerState, WorkerView

if TYPE_CHECKING:
    from scheduler.queue import JobState


@dataclass(slots=True, eq=False)
class SlotAssignment(BatchImage):
    """An image in a slot. Without a job it is leaving: the job is answered, but the slot is not free yet."""

    steps: int
    worker: "Worker"
    slot: int
    generation: int
    job: Optional["JobState"]


@dataclass(slots=True, eq=False)
class Worker:
    """A device and its process, if any. `prices` and `capacity` outlive the process, as estimates for the next one."""

    id: WorkerId
    state: WorkerState = WorkerState.NEW
    prices: StepPrices | None = None
    capacity: Capacity | None = None
    size: int = 0  # how many slots it has, once it was ready
    slots: dict[int, SlotAssignment] = field(default_factory=dict)
    exclusive: bool = False  # a suspect runs here, and nobody joins it
    alarm: float | None = None  # when to look at it: it loads or is silent for too long, or its pause is over
    heard: float = 0.0  # the time of its last heartbeat, or when it got work after being empty
    ready_at: float = 0.0
    spawned_at: float = 0.0
    load_seconds: float = 0.0  # from its last spawn until it was ready
    stepped: float | None = None  # the time of its last step, if it has been busy since
    decoding: float = 0.0  # the work that is decoded after that step, in nominal images
    changed: int = 0  # the number of the event that last changed its slots
    proven: bool = False  # this process has finished an image, or was ready for long
    backoff: float = 0.0  # before its next restart
    failures: int = 0  # processes in a row that were not proven
    fault: str = ""  # the fault of its device, if it is being killed for that
    restarts: int = 0
    reason: str = ""
    # Results that are kept until something changes:
    joinings: dict[tuple[BatchKey, float, int], Joining] = field(default_factory=dict)
    known_ends: tuple[list[SlotAssignment], list[float]] | None = None
    known_rates: tuple[float, float, float, float, float] | None = None

    @property
    def known_prices(self) -> StepPrices:
        """The prices of a worker that was ready at least once."""
        assert self.prices is not None
        return self.prices

    @property
    def known_capacity(self) -> Capacity:
        """The capacity of a worker that was ready at least once."""
        assert self.capacity is not None
        return self.capacity

    @property
    def ready(self) -> bool:
        """Whether it can be given jobs."""
        return self.state is WorkerState.READY

    @property
    def has_room(self) -> bool:
        """Whether it is ready and a slot is free."""
        return self.state is WorkerState.READY and len(self.slots) < self.size

    @property
    def batch(self) -> list[SlotAssignment]:
        """The running images, without those that are leaving."""
        return [each for each in self.slots.values() if each.job is not None]

    @property
    def throughput(self) -> float:
        """Nominal images per second under load, at its present speed."""
        return self.known_capacity.throughput / self.known_prices.slowdown.factor

    @property
    def lag(self) -> float:
        """By how many seconds the known progress of its images can be out of date."""
        return self.known_capacity.lag * self.known_prices.slowdown.factor

    @property
    def work_left(self) -> float:
        """The remaining work of its images, in nominal images. A suspect, which runs alone, keeps all of it busy."""
        if self.exclusive:
            return self.seconds_to_place() * self.throughput
        step, steps = self.known_capacity.step_share, self.known_prices.costs.steps
        # The part of an image that is not steps counts until it is done.
        return sum([each.key.work * (1 - step * (steps - each.left)) for each in self.batch])

    @property
    def rates(self) -> tuple[float, float, float, float, float]:
        """What a forecast sums up: throughput, throughput of steps, throughput times lag, work left, places."""
        if self.known_rates is None:
            capacity, rate = self.known_capacity, self.throughput
            self.known_rates = rate, rate * capacity.steps_share, rate * self.lag, self.work_left, capacity.places
        return self.known_rates

    def forget(self) -> None:
        """Drop what was computed: something has changed."""
        self.joinings.clear()
        self.known_ends = self.known_rates = None

    @property
    def ends(self) -> tuple[list[SlotAssignment], list[float]]:
        """Its batch by steps left, and when each image is done if no image joins."""
        if self.known_ends is None:
            batch = sorted(self.batch, key=steps_left)
            self.known_ends = batch, completion_times(self.known_prices, batch)[0]
        return self.known_ends

    def seconds_alone(self) -> float:
        """Seconds of one nominal image alone."""
        return self.known_prices.alone(Job(0, 0.0))

    def seconds_to_place(self) -> float:
        """Seconds until its first image is done if no image joins; 0 if none runs."""
        return next(iter(self.ends[1]), 0.0)

    def joined_by(self, job: Job, group: int = 1) -> Joining:
        """What happens if a job, or a group of such jobs, joins now. Kept, because it is asked for at every event."""
        known = self.joinings.get((job.batch_key, job.length, group))
        if known is None:
            prices = self.known_prices
            known = joining(prices, *self.ends, job.batch_key, prices.steps(job.length), group)
            self.joinings[job.batch_key, job.length, group] = known
        return known

    def reason_not_to_join(self, job: Job, now: float, behind: float, alike: int) -> Wait | None:
        """Return the reason not to join the batch, or None. `behind` jobs wait behind it, `alike` have its size."""
        if not self.slots:
            return None
        if (joining := self.joined_by(job)).makes_late(now):
            return Wait.DEADLINE
        if not joining.is_slower(behind):
            return None
        images, most = [each.key for each in self.batch].count(job.batch_key), self.size - len(self.slots)
        group = best_group(self.known_prices.of(job.batch_key), images, min(most, 1 + min(int(behind), alike)))
        return Wait.SLOWER if group == 1 or self.joined_by(job, group).is_slower(behind + 1 - group) else None

    def end_if_waited_for(self, job: Job) -> float:
        """When a job is done that takes the place of the next image to leave."""
        if not self.has_room and len(self.batch) < self.size:  # a slot that is leaving is free soon
            return self.joined_by(job).end
        if self.has_room:
            return self.joined_by(job).end_if_waited
        batch, prices = self.ends[0], self.known_prices
        return if_they_wait(prices, batch, job.batch_key, prices.steps(job.length))[2] if batch else prices.alone(job)

    def assignment(self, slot: int, generation: int) -> SlotAssignment | None:
        """The assignment that a report is about; None if the report is late and about a former process."""
        found = self.slots.get(slot)
        return found if found is not None and found.generation == generation else None

    def view(self) -> WorkerView:
        """The worker as `/readyz` shows it."""
        size = self.size if self.ready or self.slots else 0
        return WorkerView(self.id, self.state, len(self.batch), size, self.restarts, self.reason)


class Workers:
    """Owns the workers and their slots, and sets their alarms."""

    def __init__(self, workers: Sequence[WorkerId], limits: Limits) -> None:
        self._limits = limits
        self._by_id = {worker: Worker(worker) for worker in workers}
        self._all = list(self._by_id.values())
        self.ready: list[Worker] = []
        """Workers that can be given jobs."""
        self.known: list[Worker] = []
        """Workers to estimate by: the ready ones; while there are none, all that were ready before."""
        self._mixing = Slowdown(taken=0.1, expected=0.1)  # soon known: nothing is measured before
        self._changes = 0

    def __getitem__(self, worker: WorkerId) -> Worker:
        if worker not in self._by_id:
            raise IllegalEvent(f"there is no worker {worker}")
        return self._by_id[worker]

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._all)

    @property
    def mixing(self) -> float:
        """By which factor steps take longer, lately, because images of several sizes are several batches."""
        return self._mixing.factor

    @property
    def running(self) -> int:
        """The number of running images, without those that are leaving."""
        return sum([len(worker.batch) for worker in self._all])

    def fastest_empty(self, avoid: WorkerId | None) -> Worker | None:
        """The fastest empty worker; not `avoid` while another is ready."""
        empty = [worker for worker in self.ready if not worker.slots and not self._avoided(worker, avoid)]
        return min(empty, key=lambda worker: (worker.seconds_alone(), worker.changed), default=None)

    def to_hold(self, held: Worker | None, avoid: WorkerId | None) -> Worker | None:
        """The worker that gets no new jobs, so that it becomes empty: the held one, else the least loaded with room."""
        if held is not None and held.ready and not self._avoided(held, avoid):
            return held
        others = [worker for worker in self.ready if worker.has_room and worker.slots and not worker.exclusive]
        others = [worker for worker in others if not self._avoided(worker, avoid)]
        return min(others, key=lambda worker: len(worker.slots), default=None)

    def _avoided(self, worker: Worker, avoid: WorkerId | None) -> bool:
        return worker.id == avoid and len(self.ready) > 1

    def next_alarm(self) -> float | None:
        """The time of the first alarm."""
        return min([worker.alarm for worker in self._all if worker.alarm is not None], default=None)

    def due(self, now: float) -> list[Worker]:
        """The workers whose alarm is due, the earliest first. Turns these alarms off."""
        due = [worker for worker in self._all if worker.alarm is not None and worker.alarm <= now]
        due.sort(key=lambda worker: worker.alarm or 0.0)
        for worker in due:
            worker.alarm = None
        return due

    # ----------------------------------------------------------------------------------------------------------- slots

    def assign(self, now: float, worker: Worker, job: "JobState", generation: int) -> SlotAssignment:
        """Put a job into the first free slot of a worker."""
        if not worker.slots:
            worker.heard = now
        slot = next(slot for slot in range(worker.size) if slot not in worker.slots)
        steps = worker.known_prices.steps(job.job.length)
        assignment = SlotAssignment(job.job.batch_key, steps, job.job.deadline, steps, worker, slot, generation, job)
        worker.slots[slot] = assignment
        worker.exclusive = job.suspect
        job.assignment, job.started = assignment, now
        self._changed(worker)
        return assignment

    def on_step(self, now: float, worker: Worker, done: Sequence[tuple[int, int]]) -> None:
        """Update the progress of a worker's images, and correct its prices by how long the step took."""
        stepped, worker.heard, worker.stepped = worker.stepped, now, now
        counts = counted([worker.slots[slot] for slot, _ in done if slot in worker.slots])
        # If all images take their first step, the device may have waited for their preparation.
        if stepped is not None and counts and any(steps > 1 for _, steps in done):
            worker.known_prices.learn(now - stepped, counts, worker.decoding)
            self._mixing.add(worker.known_prices.step(counts), worker.known_prices.step_in_one_batch(counts))
        for slot, steps in done:
            if (assignment := worker.slots.get(slot)) is not None:
                assignment.left = max(0, min(assignment.steps - steps, assignment.left))
        worker.decoding = sum([each.key.work for slot, _ in done if (each := worker.slots.get(slot)) and not each.left])
        worker.forget()

    def detach(self, assignment: SlotAssignment) -> None:
        """Detach an answered job from its slot: the slot is leaving."""
        assert assignment.job is not None
        assignment.job.assignment, assignment.job = None, None
        assignment.worker.forget()

    def free_slot(self, now: float, assignment: SlotAssignment, *, finished: bool) -> None:
        """The worker has freed the slot."""
        worker = assignment.worker
        worker.heard = now
        worker.proven = worker.proven or finished
        del worker.slots[assignment.slot]
        self._changed(worker)

    def _changed(self, worker: Worker) -> None:
        self._changes += 1
        worker.changed = self._changes
        worker.forget()
        if not worker.slots:
            worker.exclusive, worker.stepped = False, None
        if worker.ready:
            worker.alarm = worker.heard + self.heartbeat_timeout(worker) if worker.slots else None

    # ----------------------------------------------------------------------------------------------------------- lives

    def spawn(self, now: float, worker: Worker) -> None:
        """Its process is being started."""
        self._become(worker, WorkerState.LOADING)
        worker.spawned_at = now
        worker.alarm = now + self._limits.load_timeout

    def on_ready(self, now: float, worker: Worker, costs: Costs) -> None:
        """Its process has loaded the model."""
        worker.heard, worker.ready_at, worker.load_seconds = now, now, now - worker.spawned_at
        self._become(worker, WorkerState.READY)
        self.update_costs(worker, costs)

    def update_costs(self, worker: Worker, costs: Costs) -> None:
        """It has measured itself: its slowdown starts anew. The learned prices of sizes are kept."""
        learned = {} if worker.prices is None else worker.prices.learned
        worker.size = len(costs.step_seconds)
        worker.prices, worker.capacity = StepPrices(costs, learned=learned), capacity(costs)
        self._changed(worker)

    def end(self, now: float, worker: Worker) -> None:
        """It is being killed, and gets no more jobs."""
        if worker.ready:
            worker.proven = worker.proven or now - worker.ready_at >= self._limits.quarantine_pause
        worker.alarm = None
        self._become(worker, WorkerState.ENDING)

    def on_exit(self, now: float, worker: Worker, loss: WorkerExited) -> list["JobState"]:
        """Its process has ended. Returns the jobs that ran on it, in the order in which they started."""
        self.end(now, worker)
        jobs = []
        for assignment in sorted(worker.batch, key=lambda each: each.generation):
            assert assignment.job is not None
            jobs.append(assignment.job)
            self.detach(assignment)
        worker.slots.clear()
        worker.exclusive, worker.stepped = False, None
        proven, worker.proven = worker.proven, False
        worker.failures = 0 if proven else worker.failures + (not loss.outside)
        if worker.fault or loss.hopeless or worker.failures >= self._limits.quarantine_after:
            self.quarantine(now, worker, worker.fault or loss.reason)
        else:
            worker.reason = loss.reason
            self._become(worker, WorkerState.WAITING)
            worker.backoff = 0.0 if proven else self._longer(worker.backoff)
            worker.alarm = now + worker.backoff
        return jobs

    def quarantine(self, now: float, worker: Worker, reason: str) -> None:
        """It has no process, and gets none for a long time."""
        worker.reason, worker.fault = reason, ""
        self._become(worker, WorkerState.OUT)
        worker.alarm = now + self._limits.quarantine_pause

    def _become(self, worker: Worker, state: WorkerState) -> None:
        worker.state = state
        self.ready = [each for each in self._all if each.ready]
        self.known = self.ready or [each for each in self._all if each.prices is not None]

    @property
    def failure(self) -> str:
        """Why all workers are out of service; empty while one is not."""
        if any(worker.state is not WorkerState.OUT for worker in self):
            return ""
        return "; ".join(f"{worker.id} is out of service: {worker.reason}" for worker in self)

    def _longer(self, backoff: float) -> float:
        return min(max(2 * backoff, self._limits.restart_backoff), self._limits.restart_backoff_max)

    def heartbeat_timeout(self, worker: Worker) -> float:
        """Seconds that a busy worker may be silent: for one step, or to prepare and decode all its images."""
        images, prices = worker.slots.values(), worker.known_prices
        expected = max(prices.step(counted(images)), prices.fixed(sum([each.key.work for each in images])))
        return max(self._limits.heartbeat_floor, self._limits.heartbeat_factor * expected)

    def check(self, *, opened: bool) -> None:
        """Validate invariants; raises BrokenInvariantError. Until it is `opened`, no worker is to be spawned."""
        for worker in self:
            require(not worker.slots or worker.state in {WorkerState.READY, WorkerState.ENDING}, "slots too soon")
            require(not worker.exclusive or len(worker.slots) == 1, f"{worker.id} has a suspect in company")
            pausing = opened and worker.state in {WorkerState.WAITING, WorkerState.OUT}
            watched = pausing or worker.state is WorkerState.LOADING or (worker.ready and bool(worker.slots))
            require((worker.alarm is not None) == watched, f"{worker.id} has a wrong alarm")
            for slot, each in worker.slots.items():
                require(0 <= slot < worker.size, f"{worker.id} has no slot {slot}")
                require(each.slot == slot and each.worker is worker, f"{worker.id} mistook a slot")
                require(each.job is None or each.job.assignment is each, f"{worker.id} mistook a job")
            ends, rates, joinings = worker.known_ends, worker.known_rates, dict(worker.joinings)
            worker.forget()
            jobs = [(Job(0, 0.0, key.work, length=length, size=key.size), group) for key, length, group in joinings]
            same = joinings == dict(zip(joinings, [worker.joined_by(*each) for each in jobs], strict=True))
            same = same and (ends is None or ends == worker.ends) and (rates is None or rates == worker.rates)
            require(same, f"{worker.id} remembers what does not hold any more")
