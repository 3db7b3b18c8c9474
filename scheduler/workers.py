"""The workers: their states, slots and alarms.

A machine has some sixteen at most, so everything here walks over all of them, and keeps no sum that could drift.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Optional

from scheduler.costs import (
    BatchImage,
    Capacity,
    CostModel,
    JoinEffect,
    Slowdown,
    best_group,
    by_steps_left,
    completion_times,
    count_by_size,
    effect_of_joining,
    effect_of_waiting,
    estimate_capacity,
)
from scheduler.errors import IllegalEvent, require
from scheduler.limits import Limits
from scheduler.messages import (
    NOMINAL,
    BatchKey,
    Costs,
    Job,
    WaitReason,
    WorkerExited,
    WorkerId,
    WorkerState,
    WorkerView,
)

if TYPE_CHECKING:
    from scheduler.queue import JobState


@dataclass(slots=True, eq=False)
class SlotAssignment(BatchImage):
    """An image in a slot. Without a job it is leaving: the job is answered, but the slot is not free yet."""

    step_count: int
    worker: "Worker"
    slot: int
    generation: int
    job: Optional["JobState"]


_NOMINAL_JOB = Job(0, 0.0)


class ForecastTerms(NamedTuple):
    """The terms of a forecast, which are added up over the workers. The lag is weighted by throughput."""

    throughput: float
    denoising_throughput: float
    weighted_lag: float
    work_left: float
    batch_size: int


@dataclass(slots=True)
class ProcessTimes:
    """When a worker's process did what."""

    spawned_at: float = 0.0
    load_seconds: float = 0.0  # from the last spawn until it was ready
    ready_at: float = 0.0
    last_heartbeat: float = 0.0  # or when it got work after being empty
    last_step_at: float | None = None  # None if it has been empty since


@dataclass(slots=True)
class RestartHistory:
    """How a worker's processes ended, which decides when the next one starts."""

    proven: bool = False  # this process has finished an image, or was ready for long
    failures_in_a_row: int = 0  # exits of processes that were not proven
    backoff_seconds: float = 0.0  # the pause before the last restart
    device_fault: str = ""  # why the process is being killed, if its device is faulty
    restarts: int = 0
    exit_reason: str = ""


@dataclass(slots=True)
class CachedPredictions:
    """Predictions of a worker, kept until something changes: they are asked for at every event."""

    join_effects: dict[tuple[BatchKey, float, int], JoinEffect] = field(default_factory=dict)
    ends: tuple[list[SlotAssignment], list[float]] | None = None
    terms: ForecastTerms | None = None

    def clear(self) -> None:
        """Drop all."""
        self.join_effects.clear()
        self.ends = self.terms = None


@dataclass(slots=True, eq=False)
class Worker:
    """A device and its process, if any. Costs and capacity outlive the process, as estimates for the next one."""

    id: WorkerId
    state: WorkerState = WorkerState.NEW
    slot_count: int = 0  # 0 until it was ready once
    slots: dict[int, SlotAssignment] = field(default_factory=dict)
    exclusive: bool = False  # a suspect runs here, and no other job may join it
    decoding_work: float = 0.0  # what is decoded after its last step, in nominal images
    last_change: int = 0  # the number of the event that last changed its slots
    alarm: float | None = None  # when it has loaded or been silent for too long, or when its pause is over
    times: ProcessTimes = field(default_factory=ProcessTimes)
    history: RestartHistory = field(default_factory=RestartHistory)
    measured: tuple[CostModel, Capacity] | None = None
    cached: CachedPredictions = field(default_factory=CachedPredictions)

    @property
    def cost_model(self) -> CostModel:
        """The costs of a worker that was ready at least once."""
        assert self.measured is not None
        return self.measured[0]

    @property
    def capacity(self) -> Capacity:
        """The capacity of a worker that was ready at least once."""
        assert self.measured is not None
        return self.measured[1]

    @property
    def ready(self) -> bool:
        """Whether it can be given jobs."""
        return self.state is WorkerState.READY

    @property
    def has_room(self) -> bool:
        """Whether it is ready and a slot is free."""
        return self.state is WorkerState.READY and len(self.slots) < self.slot_count

    @property
    def batch(self) -> list[SlotAssignment]:
        """The running images, without those that are leaving."""
        return [each for each in self.slots.values() if each.job is not None]

    def runs_size(self, key: BatchKey) -> bool:
        """Whether it is empty or runs images of this size."""
        return not self.slots or key in [each.key for each in self.slots.values()]

    @property
    def throughput(self) -> float:
        """Nominal images per second under load, at its present speed."""
        return self.capacity.throughput / self.cost_model.slowdown.factor

    @property
    def progress_lag(self) -> float:
        """By how many seconds the known progress of its images can be out of date."""
        return self.capacity.progress_lag * self.cost_model.slowdown.factor

    @property
    def work_left(self) -> float:
        """The remaining work of its images, in nominal images. A suspect, which runs alone, keeps all of it busy."""
        if self.exclusive:
            return self.seconds_to_place() * self.throughput
        share, steps = self.capacity.step_share, self.cost_model.costs.steps
        # The part of an image that is not steps counts until it is done.
        return sum([each.key.work * (1 - share * (steps - each.steps_left)) for each in self.batch])

    @property
    def forecast_terms(self) -> ForecastTerms:
        """Its terms of a forecast."""
        if self.cached.terms is None:
            capacity, throughput = self.capacity, self.throughput
            self.cached.terms = ForecastTerms(
                throughput,
                throughput * capacity.denoising_share,
                throughput * self.progress_lag,
                self.work_left,
                capacity.batch_size,
            )
        return self.cached.terms

    @property
    def ends(self) -> tuple[list[SlotAssignment], list[float]]:
        """Its batch by steps left, and when each image is done if no image joins."""
        if self.cached.ends is None:
            batch = sorted(self.batch, key=by_steps_left)
            self.cached.ends = batch, completion_times(self.cost_model, batch)[0]
        return self.cached.ends

    def seconds_alone(self) -> float:
        """Seconds of one nominal image alone."""
        return self.cost_model.seconds_alone(_NOMINAL_JOB)

    def seconds_to_place(self) -> float:
        """Seconds until its first image is done if no image joins; 0 if none runs."""
        return next(iter(self.ends[1]), 0.0)

    def effect_of_joining(self, job: Job, group: int = 1) -> JoinEffect:
        """The effects if a job, or a group of such jobs, joins now."""
        question = job.batch_key, job.relative_steps, group
        known = self.cached.join_effects.get(question)
        if known is None:
            model = self.cost_model
            known = effect_of_joining(model, *self.ends, job.batch_key, model.step_count(job.relative_steps), group)
            self.cached.join_effects[question] = known
        return known

    def reason_not_to_join(self, job: Job, now: float, behind: float, same_size: int) -> WaitReason | None:
        """Return the reason not to join the batch, or None. `behind` jobs wait behind it, `same_size` have its size."""
        if not self.slots:
            return None
        if (effect := self.effect_of_joining(job)).makes_late(now):
            return WaitReason.DEADLINE
        if not effect.should_wait(behind):
            return None
        images, free = [each.key for each in self.batch].count(job.batch_key), self.slot_count - len(self.slots)
        most = min(free, 1 + min(int(behind), same_size))
        group = best_group(self.cost_model.batch_seconds(job.batch_key), images, most)
        if group > 1 and not self.effect_of_joining(job, group).should_wait(behind + 1 - group):
            return None
        return WaitReason.BATCH_SLOWER

    def end_if_waiting_for(self, job: Job) -> float:
        """When a job is done that takes the place of the next image to leave."""
        if not self.has_room and len(self.batch) < self.slot_count:  # a slot that is leaving is free soon
            return self.effect_of_joining(job).end
        if self.has_room:
            return self.effect_of_joining(job).end_if_waiting
        batch, model = self.ends[0], self.cost_model
        if not batch:
            return model.seconds_alone(job)
        return effect_of_waiting(model, batch, job.batch_key, model.step_count(job.relative_steps))[2]

    def assignment(self, slot: int, generation: int) -> SlotAssignment | None:
        """The assignment that a report is about; None if the report is late and about a former process."""
        found = self.slots.get(slot)
        return found if found is not None and found.generation == generation else None

    def view(self) -> WorkerView:
        """The worker as `/readyz` shows it."""
        slots, history = self.slot_count if self.ready or self.slots else 0, self.history
        return WorkerView(self.id, self.state, len(self.batch), slots, history.restarts, history.exit_reason)


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
        self._mixed_sizes = Slowdown(taken=0.1, expected=0.1)  # soon known: nothing is measured before
        self._changes = 0

    def __getitem__(self, worker: WorkerId) -> Worker:
        if worker not in self._by_id:
            raise IllegalEvent(f"there is no worker {worker}")
        return self._by_id[worker]

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._all)

    @property
    def mixed_sizes_factor(self) -> float:
        """By which factor steps take longer, lately, because images of several sizes are several batches."""
        return self._mixed_sizes.factor

    @property
    def running(self) -> int:
        """The number of running images, without those that are leaving."""
        return sum([len(worker.batch) for worker in self._all])

    def fastest_empty(self, avoid: WorkerId | None) -> Worker | None:
        """The fastest empty worker; not `avoid` while another is ready."""
        empty = [worker for worker in self.ready if not worker.slots and not self._is_avoided(worker, avoid)]
        return min(empty, key=lambda worker: (worker.seconds_alone(), worker.last_change), default=None)

    def to_hold(self, held: Worker | None, avoid: WorkerId | None) -> Worker | None:
        """The worker that gets no new jobs, so that it becomes empty: the held one, else the least loaded with room."""
        if held is not None and held.ready and not self._is_avoided(held, avoid):
            return held
        others = [worker for worker in self.ready if worker.has_room and worker.slots and not worker.exclusive]
        others = [worker for worker in others if not self._is_avoided(worker, avoid)]
        return min(others, key=lambda worker: len(worker.slots), default=None)

    def _is_avoided(self, worker: Worker, avoid: WorkerId | None) -> bool:
        return worker.id == avoid and len(self.ready) > 1

    def next_alarm(self) -> float | None:
        """The time of the first alarm."""
        return min([worker.alarm for worker in self._all if worker.alarm is not None], default=None)

    def take_due_alarms(self, now: float) -> list[Worker]:
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
            worker.times.last_heartbeat = now
        slot = next(slot for slot in range(worker.slot_count) if slot not in worker.slots)
        steps = worker.cost_model.step_count(job.job.relative_steps)
        assignment = SlotAssignment(job.batch_key, steps, job.deadline, steps, worker, slot, generation, job)
        worker.slots[slot] = assignment
        worker.exclusive = job.suspect
        job.assignment, job.started = assignment, now
        self._on_slots_changed(worker)
        return assignment

    def on_step(self, now: float, worker: Worker, done: Sequence[tuple[int, int]]) -> None:
        """Update the progress of a worker's images, and correct its costs by how long the step took."""
        last_step_at = worker.times.last_step_at
        worker.times.last_heartbeat = worker.times.last_step_at = now
        counts = count_by_size([worker.slots[slot] for slot, _ in done if slot in worker.slots])
        # If all images take their first step, the device may have waited for their preparation.
        if last_step_at is not None and counts and any(steps > 1 for _, steps in done):
            model = worker.cost_model
            model.learn(now - last_step_at, counts, worker.decoding_work)
            self._mixed_sizes.add(model.step_seconds(counts), model.step_seconds_in_one_batch(counts))
        for slot, steps in done:
            if (image := worker.slots.get(slot)) is not None:
                image.steps_left = max(0, min(image.step_count - steps, image.steps_left))
        last_steps = [image for slot, _ in done if (image := worker.slots.get(slot)) and not image.steps_left]
        worker.decoding_work = sum([image.key.work for image in last_steps])
        worker.cached.clear()

    def detach(self, assignment: SlotAssignment) -> None:
        """Detach an answered job from its slot: the slot is leaving."""
        assert assignment.job is not None
        assignment.job.assignment, assignment.job = None, None
        assignment.worker.cached.clear()

    def free_slot(self, now: float, assignment: SlotAssignment, *, finished: bool) -> None:
        """The worker has freed the slot."""
        worker = assignment.worker
        worker.times.last_heartbeat = now
        worker.history.proven = worker.history.proven or finished
        del worker.slots[assignment.slot]
        self._on_slots_changed(worker)

    def _on_slots_changed(self, worker: Worker) -> None:
        self._changes += 1
        worker.last_change = self._changes
        worker.cached.clear()
        if not worker.slots:
            worker.exclusive, worker.times.last_step_at = False, None
        if worker.ready:
            worker.alarm = worker.times.last_heartbeat + self.heartbeat_timeout(worker) if worker.slots else None

    # ---------------------------------------------------------------------------------------------------------- states

    def spawn(self, now: float, worker: Worker) -> None:
        """Its process is being started."""
        self._set_state(worker, WorkerState.LOADING)
        worker.times.spawned_at = now
        worker.alarm = now + self._limits.load_timeout

    def on_ready(self, now: float, worker: Worker, costs: Costs) -> None:
        """Its process has loaded the model."""
        times = worker.times
        times.last_heartbeat, times.ready_at, times.load_seconds = now, now, now - times.spawned_at
        self._set_state(worker, WorkerState.READY)
        self.update_costs(worker, costs)

    def update_costs(self, worker: Worker, costs: Costs) -> None:
        """It has measured itself: its slowdown starts anew. The learned costs of sizes are kept."""
        learned = {} if worker.measured is None else worker.cost_model.learned
        worker.slot_count = len(costs.step_seconds)
        worker.measured = CostModel(costs, learned=learned), estimate_capacity(costs)
        self._on_slots_changed(worker)

    def end(self, now: float, worker: Worker) -> None:
        """It is being killed, or has exited, and gets no more jobs."""
        if worker.ready:
            long_enough = now - worker.times.ready_at >= self._limits.quarantine_pause
            worker.history.proven = worker.history.proven or long_enough
        worker.alarm = None
        self._set_state(worker, WorkerState.ENDING)

    def on_exit(self, now: float, worker: Worker, exited: WorkerExited) -> list["JobState"]:
        """Its process has ended. Returns the jobs that ran on it, in the order in which they started."""
        self.end(now, worker)
        jobs = []
        for assignment in sorted(worker.batch, key=lambda each: each.generation):
            assert assignment.job is not None
            jobs.append(assignment.job)
            self.detach(assignment)
        worker.slots.clear()
        worker.exclusive, worker.times.last_step_at = False, None
        history, limits = worker.history, self._limits
        proven, history.proven = history.proven, False
        history.failures_in_a_row = 0 if proven else history.failures_in_a_row + (not exited.outside)
        if history.device_fault or exited.hopeless or history.failures_in_a_row >= limits.quarantine_after:
            self.quarantine(now, worker, history.device_fault or exited.reason)
        else:
            history.exit_reason = exited.reason
            longer = min(max(2 * history.backoff_seconds, limits.restart_backoff), limits.restart_backoff_max)
            history.backoff_seconds = 0.0 if proven else longer
            self._set_state(worker, WorkerState.BACKOFF)
            worker.alarm = now + history.backoff_seconds
        return jobs

    def quarantine(self, now: float, worker: Worker, reason: str) -> None:
        """It has no process, and gets none for a long time."""
        worker.history.exit_reason, worker.history.device_fault = reason, ""
        self._set_state(worker, WorkerState.QUARANTINED)
        worker.alarm = now + self._limits.quarantine_pause

    def _set_state(self, worker: Worker, state: WorkerState) -> None:
        worker.state = state
        self.ready = [each for each in self._all if each.ready]
        self.known = self.ready or [each for each in self._all if each.measured is not None]

    @property
    def failure(self) -> str:
        """Why all workers are quarantined; empty while one is not."""
        if any(worker.state is not WorkerState.QUARANTINED for worker in self):
            return ""
        return "; ".join(f"{worker.id} is quarantined: {worker.history.exit_reason}" for worker in self)

    def heartbeat_timeout(self, worker: Worker) -> float:
        """Seconds that a busy worker may be silent: for a step, or to prepare and decode all its images.

        A step counts as one of a full batch at least: before it the worker may switch to networks that were compiled
        for that, and runs them a few times first.
        """
        images, model = worker.slots.values(), worker.cost_model
        fixed = model.fixed_seconds(sum([each.key.work for each in images]))
        full = model.step_seconds({NOMINAL: worker.slot_count})
        expected = max(model.step_seconds(count_by_size(images)), full, fixed)
        return max(self._limits.heartbeat_floor, self._limits.heartbeat_factor * expected)

    def check(self, *, opened: bool) -> None:
        """Validate invariants; raises BrokenInvariantError. Until it is `opened`, no worker is to be spawned."""
        for worker in self:
            require(not worker.slots or worker.state in {WorkerState.READY, WorkerState.ENDING}, "slots too soon")
            require(not worker.exclusive or len(worker.slots) == 1, f"{worker.id} runs another job beside a suspect")
            pausing = opened and worker.state in {WorkerState.BACKOFF, WorkerState.QUARANTINED}
            watched = pausing or worker.state is WorkerState.LOADING or (worker.ready and bool(worker.slots))
            require((worker.alarm is not None) == watched, f"{worker.id} has a wrong alarm")
            for slot, each in worker.slots.items():
                require(0 <= slot < worker.slot_count, f"{worker.id} has no slot {slot}")
                require(each.slot == slot and each.worker is worker, f"{worker.id} has an image in the wrong slot")
                require(each.job is None or each.job.assignment is each, f"{worker.id} has a job that is elsewhere")
            _check_cache(worker)


def _check_cache(worker: Worker) -> None:
    cached, worker.cached = worker.cached, CachedPredictions()
    for (key, relative_steps, group), effect in cached.join_effects.items():
        job = Job(0, 0.0, key.work, relative_steps=relative_steps, size=key.size)
        require(effect == worker.effect_of_joining(job, group), f"{worker.id} has an outdated join effect")
    require(cached.ends is None or cached.ends == worker.ends, f"{worker.id} has outdated completion times")
    require(cached.terms is None or cached.terms == worker.forecast_terms, f"{worker.id} has outdated forecast terms")
