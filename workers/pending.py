"""The jobs of a pool that somebody waits for: what goes into their slots, and who gets their answers."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from scheduler.messages import Job, JobId, Outcome
from workers import wire
from workers.engine.contract import Task


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client asks for beside the task, as in `scheduler.messages.Job`. `deadline`: seconds, time.monotonic."""

    deadline: float
    work: float = 1.0
    client: str = ""
    length: float = 1.0
    priority: int = 0
    surcharge: float = 0.0
    size: tuple[int, int] = (0, 0)

    def job(self, number: JobId) -> Job:
        """The job that the scheduler is told of."""
        return Job(number, self.deadline, self.work, self.client, self.length, self.priority, self.surcharge, self.size)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a job ended; `picture` is the file, empty unless the outcome is `Done`."""

    outcome: Outcome
    picture: bytes = b""


@dataclass(frozen=True, slots=True)
class Pending:
    """A task as it goes into a slot, and the future that its caller waits for."""

    picture: bytes | memoryview
    wish: bytes
    answer: "asyncio.Future[Answer]"


@dataclass(slots=True)
class PendingJobs:
    """Owns the jobs without an answer. A slot has room for `input_bytes`."""

    input_bytes: int
    _jobs: dict[JobId, Pending] = field(default_factory=dict)

    def __iter__(self) -> Iterator[JobId]:
        return iter(list(self._jobs))

    def __contains__(self, job: JobId) -> bool:
        return job in self._jobs

    def __getitem__(self, job: JobId) -> Pending:
        return self._jobs[job]

    def pack(self, task: Task) -> Pending:
        """Make a task ready for a slot. What is wrong with it shows here, before there is a job to lose.

        Raises ValueError where it does not fit or its text cannot be encoded, OverflowError for too large an integer.
        """
        wish = wire.pack(task)
        needed = len(task.picture) + len(wish)
        if needed > self.input_bytes:
            raise ValueError(f"The request needs {needed} bytes, but a slot has {self.input_bytes}.")
        return Pending(task.picture, wish, asyncio.get_running_loop().create_future())

    def add(self, job: JobId, pending: Pending) -> None:
        """Somebody waits for a job from now on."""
        self._jobs[job] = pending

    def drop(self, job: JobId) -> None:
        """Nobody waits for a job any more."""
        self._jobs.pop(job, None)

    def is_awaited(self, job: JobId) -> bool:
        """Whether an answer would be heard."""
        return job in self._jobs and not self._jobs[job].answer.done()

    def answer(self, job: JobId, answer: Answer) -> None:
        """Answer a job, if somebody waits for it."""
        if self.is_awaited(job):
            self._jobs[job].answer.set_result(answer)
        self.drop(job)
