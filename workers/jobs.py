"""The jobs that have no answer yet: what goes into their slots, which slot each is in, and who hears of them."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from scheduler.messages import JobId, Outcome, QueuePosition, Start, Stepped, WorkerId
from workers import wire
from workers.engine.contract import Task

log = logging.getLogger("contour.jobs")


@dataclass(frozen=True, slots=True)
class Started:
    """A worker begins with the job; more than once if workers are lost."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """`done` of its `total` denoising steps are taken."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Previewed:
    """What the image looks like so far: a small JPEG."""

    jpeg: bytes


ProgressEvent: TypeAlias = QueuePosition | Started | Advanced | Previewed  # QueuePosition: the job waits
ProgressCallback: TypeAlias = Callable[[ProgressEvent], None]


class JobResult(NamedTuple):
    """How a job ended; `image` is the file, empty unless the outcome is `Done`."""

    outcome: Outcome
    image: bytes = b""


@dataclass(slots=True)
class PendingJob:
    """A task as it goes into a slot, the future that its caller waits for, and who follows it."""

    image: bytes | memoryview
    params: bytes
    result: "asyncio.Future[JobResult]"
    on_progress: ProgressCallback | None


class JobTable:
    """Owns the jobs without an answer. A slot has room for `input_bytes`."""

    def __init__(self, input_bytes: int) -> None:
        self._input_bytes = input_bytes
        self._jobs: dict[JobId, PendingJob] = {}
        self._slots: dict[tuple[WorkerId, int], tuple[JobId, int]] = {}  # the last job of each, and its generation

    def __iter__(self) -> Iterator[JobId]:
        return iter(list(self._jobs))

    def __contains__(self, job: JobId) -> bool:
        return job in self._jobs

    def __getitem__(self, job: JobId) -> PendingJob:
        return self._jobs[job]

    def add(self, job: JobId, task: Task, on_progress: ProgressCallback | None) -> "asyncio.Future[JobResult]":
        """Pack a job's task. What is wrong with it shows here, before the scheduler hears of the job.

        Raises ValueError where it does not fit or its text cannot be encoded, OverflowError for too large an integer.
        """
        params = wire.pack(task)
        needed = len(task.image) + len(params)
        if needed > self._input_bytes:
            raise ValueError(f"The request needs {needed} bytes, but a slot has {self._input_bytes}.")
        result = asyncio.get_running_loop().create_future()
        self._jobs[job] = PendingJob(task.image, params, result, on_progress)
        return result

    def drop(self, job: JobId) -> None:
        """Nobody waits for a job any more."""
        self._jobs.pop(job, None)

    def is_awaited(self, job: JobId) -> bool:
        """Whether anybody would get the result."""
        return job in self._jobs and not self._jobs[job].result.done()

    def is_followed(self, job: JobId) -> bool:
        """Whether anybody wants to hear how a job goes."""
        return job in self._jobs and self._jobs[job].on_progress is not None

    def resolve(self, job: JobId, outcome: Outcome, image: bytes = b"") -> None:
        """Answer a job, if anybody waits for it."""
        if self.is_awaited(job):
            self._jobs[job].result.set_result(JobResult(outcome, image))
        self.drop(job)

    # ------------------------------------------------------------------------------------------------------- progress

    def started(self, start: Start) -> None:
        """A job is in a slot from now on."""
        self._slots[start.worker, start.slot] = start.job, start.generation
        self.publish(start.job, Started())

    def stepped(self, report: Stepped) -> None:
        """Reports come in order, and a slot is used again after its job has left it: they are about the present one."""
        for (slot, done), total in zip(report.done, report.totals, strict=True):
            if (entry := self._slots.get((report.worker, slot))) is not None:
                self.publish(entry[0], Advanced(done, total))

    def previewed(self, worker: WorkerId, report: wire.Preview) -> None:
        """A preview is drawn beside all else, and may come after its job has left the slot."""
        job, generation = self._slots.get((worker, report.slot), (None, None))
        if job is not None and generation == report.generation:
            self.publish(job, Previewed(report.jpeg))

    def publish(self, job: JobId, event: ProgressEvent) -> None:
        """Tell whoever follows a job."""
        pending = self._jobs.get(job)
        if pending is None or pending.on_progress is None:
            return
        try:
            pending.on_progress(event)
        except Exception:  # the pool is in the middle of its own work, which must not suffer from it
            log.exception("The progress callback of job %d failed; it is not called again", job)
            pending.on_progress = None
