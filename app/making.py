"""From what is wanted to pictures: jobs through the pool, and how each way a job can end reads to a client."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from starlette.requests import Request

from app import pictures
from app.errors import Error, Problem, whole_seconds
from app.metrics import Metrics
from app.params import GenerationParams
from app.rules import Rules
from app.settings import ServerConfig
from scheduler import messages as m
from workers.engine.contract import Task
from workers.engine.header import Header
from workers.jobs import ProgressCallback, ProgressEvent
from workers.pool import Pool

if TYPE_CHECKING:
    from app.desk import Ticket

# A client that sets no deadline gets the longer of a minute and ten times what its pictures are predicted to take, and
# five minutes while no worker has measured itself yet: it may still be loading.
AUTO_SECONDS = 60.0
AUTO_TIMES = 10.0
AUTO_LOADING_SECONDS = 300.0

Follow: TypeAlias = Callable[[int, ProgressEvent], None]  # which of the pictures, and what is new of it


class ClientGoneError(Exception):
    """The client closed its connection before the answer was there."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture: its file, who made it, and the seconds that each stage took.

    `submitted` and `finished` are moments of time.perf_counter. `warnings`: sentences for the client, such as that its
    prompt was cut.
    """

    file: bytes
    worker: str
    stages: dict[str, float]
    submitted: float
    finished: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, as it is carried out: so many images of this size, in pixels, in so many steps each."""

    images: int
    steps: int
    width: int
    height: int

    def __str__(self) -> str:
        images, steps = "s" * (self.images != 1), "s" * (self.steps != 1)
        return f"{self.images} image{images} of {self.width}x{self.height} in {self.steps} step{steps}"


class Maker:
    """Has pictures made by the pool."""

    def __init__(self, pool: Pool, rules: Rules, config: ServerConfig, metrics: Metrics) -> None:
        self.rules = rules
        self._pool = pool
        self._config = config
        self._metrics = metrics

    async def make(
        self, request: Request, params: GenerationParams, ticket: "Ticket", follow: Follow | None = None
    ) -> list[Picture]:
        """All the pictures that are wanted, in order; none if one of them cannot be had. The ticket says for whom.

        Raises Problem and ClientGoneError. Cancelling it cancels the jobs.
        """
        header = pictures.measured(params.image, self.rules, params.blamed)
        images, steps = params.number_of_images, self.rules.resolved(params.options).steps
        ticket.asked = Asked(images, steps, *pictures.final_size(header, self.rules))
        work, length, size = pictures.effort(header, steps, self.rules)
        deadline = time.monotonic() + self._patience(request, work * length * images)
        job = m.Job(0, deadline, work, ticket.client, length, params.priority, self._surcharge(header), size)
        making = [self._one(params, seed, job, follow and partial(follow, n)) for n, seed in enumerate(params.seeds())]
        return [await making[0]] if len(making) == 1 else await _all(making)

    def _surcharge(self, header: Header) -> float:
        """What decoding takes of a worker beside its device, in nominal images."""
        predicted = self._pool.core.predicted_seconds
        return pictures.decoding_seconds(header) / predicted if predicted else 0.0

    def _patience(self, request: Request, work: float) -> float:
        """Seconds that the client is prepared to wait: its own wish (RFC 7240), else the configuration's."""
        if (wish := _wait_preference(request)) is not None:
            return min(wish, self._config.max_deadline)
        if self._config.deadline != "auto":
            return self._config.deadline
        if (predicted := self._pool.core.predicted_seconds) is None:
            return AUTO_LOADING_SECONDS
        return max(AUTO_SECONDS, AUTO_TIMES * predicted * work)

    async def _one(
        self, params: GenerationParams, seed: int, job: m.Job, on_progress: ProgressCallback | None
    ) -> Picture:
        submitted = time.perf_counter()
        answer = await self._pool.generate(Task(params.image, params.text, seed, params.options), job, on_progress)
        if not isinstance(answer.outcome, m.Done):
            raise error_of(answer.outcome, params.blamed)
        image = answer.outcome.image
        stages = {
            "queue": answer.outcome.queued,
            "prepare": image.prepare,
            "denoise": image.denoise,
            "decode": image.decode,
            "encode": image.encode,
        }
        self._metrics.stages(stages)
        finished = time.perf_counter()
        return Picture(answer.image, answer.outcome.worker, stages, submitted, finished, image.warnings)


async def _all(making: Sequence[Coroutine[Any, Any, Picture]]) -> list[Picture]:
    """All of them, or the first error: then the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in making]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def error_of(outcome: m.Outcome, blamed: str | None) -> Problem | ClientGoneError:  # noqa: C901, PLR0911 - one for each
    """What is told of a job that did not end with a picture."""
    match outcome:
        case m.Refused(reason, m.Blame.OPTION):
            return Problem(Error.INVALID_FIELD, reason, "steps")
        case m.Refused(reason):
            return Problem(Error.INVALID_PICTURE, reason, blamed)
        case m.Broken(reason):
            return Problem(
                Error.INTERNAL, "The worker failed to make this image; the server's log says why.", reason=reason
            )
        case m.WorkerCrash(losses):
            return Problem(
                Error.WORKER_CRASH, f"{losses} workers exited while they ran this request; it is not tried again."
            )
        case m.Expired():
            return Problem(
                Error.EXPIRED,
                "The image was not finished before your deadline (Prefer: wait=SECONDS, else the server's).",
            )
        case m.Rejected(retry_after):
            detail = f"This cannot finish before your deadline. Try again in {whole_seconds(retry_after)} s."
            return Problem(Error.BUSY, detail, retry_after=retry_after)
        case m.Impossible(seconds):
            detail = f"This cannot finish before your deadline: alone on this server it takes about {seconds:.1f} s. "
            return Problem(Error.EXPIRED, detail + "Allow more time (Prefer: wait=SECONDS), or ask for fewer steps.")
        case m.QuotaExceeded(retry_after):
            detail = f"You have used your share of the queue. Try again in {whole_seconds(retry_after)} s."
            return Problem(Error.QUOTA_EXCEEDED, detail, retry_after=retry_after)
        case m.Draining():
            return Problem(Error.DRAINING, "The service is shutting down. Try another server, or this one later.")
        case m.Abandoned() | m.Done():
            return ClientGoneError()
        case _ as unreachable:
            assert_never(unreachable)


def _wait_preference(request: Request) -> float | None:
    """Seconds of `Prefer: wait=SECONDS`; None when there is no such preference or it makes no sense (RFC 7240, 2)."""
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait" and (digits := value.strip().strip('"')).isdecimal():
            return float(digits)
    return None
