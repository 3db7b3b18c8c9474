"""The jobs without an answer: their inputs, slots, and progress callbacks."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from scheduler.messages import JobId, Outcome, QueuePosition, Start, Stepped, WorkerId
from workers.channel import Preview, pack
from workers.engine.contract import Task

log = logging.getLogger("contour.jobs")


@dataclass(frozen=True, slots=True)
class Started:
    """A worker starts the job; more than once if workers exit."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """`done` of its `total` denoising steps are taken."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Previewed:
    """A preview of an unfinished image: a small JPEG."""

    jpeg: bytes


ProgressEvent: TypeAlias = QueuePosition | Started | Advanced | Previewed  # QueuePosition: the job waits
ProgressCallback: TypeAlias = Callable[[ProgressEvent], None]


class JobResult(NamedTuple):
    """How a job ended; `image` is the file, empty unless the outcome is `Done`."""

    outcome: Outcome
    image: bytes = b""


@dataclass(slots=True)
class PendingJob:
    """A task as it is written into a slot, the future that its caller waits for, and its progress callback."""

    image: bytes | memoryview
    params: bytes
    result: "asyncio.Future[JobResult]"
    on_progress: ProgressCallback | None


class JobTable:
    """The jobs without an answer. A slot has room for `input_bytes`."""

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
        """Pack a job's task. A bad task fails here, before the scheduler knows of the job.

        Raises ValueError where it does not fit or its text cannot be encoded, OverflowError for too large an integer.
        """
        params = pack(task)
        needed = len(task.image) + len(params)
        if needed > self._input_bytes:
            raise ValueError(f"The request needs {needed} bytes, but a slot has {self._input_bytes}.")
        result = asyncio.get_running_loop().create_future()
        self._jobs[job] = PendingJob(task.image, params, result, on_progress)
        return result

    def drop(self, job: JobId) -> None:
        """Forget a job whose caller no longer waits."""
        self._jobs.pop(job, None)

    def is_awaited(self, job: JobId) -> bool:
        """Return whether the caller still waits for the result."""
        return job in self._jobs and not self._jobs[job].result.done()

    def is_followed(self, job: JobId) -> bool:
        """Return whether a job has a progress callback."""
        return job in self._jobs and self._jobs[job].on_progress is not None

    def resolve(self, job: JobId, outcome: Outcome, image: bytes = b"") -> None:
        """Answer a job, if its caller still waits."""
        if self.is_awaited(job):
            self._jobs[job].result.set_result(JobResult(outcome, image))
        self.drop(job)

    # ------------------------------------------------------------------------------------------------------- progress

    def started(self, start: Start) -> None:
        """Note which slot a job runs in."""
        self._slots[start.worker, start.slot] = start.job, start.generation
        self.publish(start.job, Started())

    def stepped(self, report: Stepped) -> None:
        """Publish the steps of a report. Reports come in order, so they are about the slots' present jobs."""
        for (slot, done), total in zip(report.done, report.totals, strict=True):
            if (entry := self._slots.get((report.worker, slot))) is not None:
                self.publish(entry[0], Advanced(done, total))

    def previewed(self, worker: WorkerId, report: Preview) -> None:
        """Publish a preview, unless its job has left the slot: previews are drawn on another thread and may be late."""
        job, generation = self._slots.get((worker, report.slot), (None, None))
        if job is not None and generation == report.generation:
            self.publish(job, Previewed(report.jpeg))

    def publish(self, job: JobId, event: ProgressEvent) -> None:
        """Call a job's progress callback, if it has one."""
        pending = self._jobs.get(job)
        if pending is None or pending.on_progress is None:
            return
        try:
            pending.on_progress(event)
        except Exception:  # the pool is in the middle of its own work, which must go on
            log.exception("The progress callback of job %d failed; it is not called again", job)
            pending.on_progress = None
