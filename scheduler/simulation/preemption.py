"""Preemption of running background images, which the real scheduler does not do: how much it would gain.

Here a background image leaves its slot at a step boundary, keeps the steps it has taken, and goes on later in any slot
of any device. That costs device time, `Machine.preemption_seconds`, or nothing: so much could be gained at most.
"""

from collections.abc import Sequence

from scheduler import messages as m
from scheduler.core import Scheduler
from scheduler.limits import Limits
from scheduler.messages import WaitReason
from scheduler.placement import Candidate, Placement
from scheduler.queue import FairQueue, JobState
from scheduler.workers import SlotAssignment, Worker, Workers


class Preemptive(Scheduler):
    """An interactive job that waits takes the place of a background image of its size: nothing else changes there."""

    def __init__(self, workers: Sequence[m.WorkerId], limits: Limits) -> None:
        super().__init__(workers, limits)
        self._places: dict[m.JobId, tuple[JobState, Worker]] = {}  # interactive jobs that get the place of another
        self._left: dict[m.JobId, int] = {}  # steps of images that were set aside

    def _place_others(self, now: float) -> WaitReason | None:
        for number, (job, worker) in list(self._places.items()):
            if worker.has_room and job.assignment is None and number in self._jobs:
                self._start(now, job, worker)
            if job.assignment is not None or number not in self._jobs:
                del self._places[number]
        wait = super()._place_others(now)
        for job in self._queue.by_deadline:
            if not job.background and job.job.id not in self._places:
                self._make_place(now, job)
        return wait

    def _make_place(self, now: float, job: JobState) -> None:
        images = [
            each for worker in self._workers.ready for each in background_images(worker) if each.key == job.batch_key
        ]
        if images:
            image = min(images, key=lambda each: (len(each.worker.slots), -each.steps_left))
            self._places[job.job.id] = job, image.worker
            self._set_aside(now, image)

    def _set_aside(self, now: float, image: SlotAssignment) -> None:
        job = image.job
        assert job is not None
        self._commands.append(m.Cancel(image.worker.id, image.slot, image.generation))
        del self._running[job.job.id]
        self._workers.detach(image)
        self._left[job.job.id] = image.steps_left
        job.load = job.charge = self._placement.load(job.job, now) * image.steps_left / image.step_count
        queue, job.bypassed_since = self._queue, None
        sequence, queue._sequence = queue._sequence, job.sequence - 1  # noqa: SLF001 - it keeps its place in the queue
        queue.add(job)
        queue._sequence = sequence  # noqa: SLF001
        self._placement.clear_cache()

    def _start(self, now: float, job: JobState, worker: Worker) -> None:
        super()._start(now, job, worker)
        assert job.assignment is not None
        job.assignment.steps_left = self._left.pop(job.job.id, job.assignment.steps_left)


class Exclusive(Preemptive):
    """Background images run only where no interactive image does: all others are set aside at once."""

    def __init__(self, workers: Sequence[m.WorkerId], limits: Limits) -> None:
        super().__init__(workers, limits)
        self._placement = _InteractiveFirst(self._queue, self._workers, limits)

    def _place_others(self, now: float) -> WaitReason | None:
        wait = super()._place_others(now)
        for worker in self._workers.ready:
            if has_interactive(worker):
                for image in background_images(worker):
                    self._set_aside(now, image)
        return wait


class _InteractiveFirst(Placement):
    """Background work gets no share of its own, as it may find no free worker."""

    def __init__(self, queue: FairQueue, workers: Workers, limits: Limits) -> None:
        super().__init__(queue, workers, limits)
        self._waiting = queue

    def next_job(self, now: float) -> JobState:
        interactive = [job for job in self._waiting.in_order() if not job.background]
        return interactive[0] if interactive else super().next_job(now)

    def _choose_worker(
        self, state: JobState, now: float, behind: int, candidates: Sequence[Candidate]
    ) -> Worker | WaitReason:
        allowed = [each for each in candidates if not (state.background and has_interactive(each[0]))]
        return super()._choose_worker(state, now, behind, allowed) if allowed else WaitReason.BATCH_SLOWER


def background_images(worker: Worker) -> list[SlotAssignment]:
    """Those that can be set aside: they have more than one step left."""
    return [each for each in worker.batch if each.job is not None and each.job.background and each.steps_left > 1]


def has_interactive(worker: Worker) -> bool:
    """Whether an interactive image runs there."""
    return any(each.job is not None and not each.job.background for each in worker.batch)
