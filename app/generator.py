"""From parameters to images: one job per image through the pool, and each outcome of a job as a problem."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from starlette.requests import Request

from app.errors import ClientGoneError, Error, Problem, whole_seconds
from app.metrics import Metrics
from app.params import GenerationParams, Rules
from app.parsing.input_image import measured
from app.settings import ServerConfig
from scheduler import messages as m
from workers.engine.contract import Task
from workers.engine.header import Header, output_size
from workers.jobs import ProgressCallback, ProgressEvent
from workers.logs import counted
from workers.pool import Pool

if TYPE_CHECKING:
    from app.lifecycle import RequestContext

# A client that sets no deadline gets a minute, or ten times the predicted time of its images if that is longer. It gets
# five minutes while no worker has measured its speed, as the workers may still be loading.
AUTO_SECONDS = 60.0
AUTO_TIMES = 10.0
AUTO_LOADING_SECONDS = 300.0
# Of a thread, to decode and shrink a pixel: python -m tests.bench.decoding
DECODING_SECONDS = {"PNG": 21e-9, "JPEG": 3e-9, "WebP": 15e-9}

ImageProgressCallback: TypeAlias = Callable[[int, ProgressEvent], None]  # the number of the image in its request


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A finished image: its file, the worker that made it, and the seconds that each stage took.

    `submitted` and `finished` are by time.perf_counter. `warnings` are sentences for the client, such as that its
    prompt was cut. `thresholds` (low, high) are the edge detector's if they are automatic.
    """

    file: bytes
    worker: str
    stages: dict[str, float]
    submitted: float
    finished: float
    warnings: tuple[str, ...] = ()
    thresholds: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """The size of a request: its number of images, their size in pixels, and the steps of each."""

    images: int
    steps: int
    width: int
    height: int

    def __str__(self) -> str:
        images, steps = counted(self.images, "image"), counted(self.steps, "step")
        return f"{images} of {self.width}x{self.height} in {steps}"


class ImageGenerator:
    """Generates the images of requests, by jobs in the pool."""

    def __init__(self, pool: Pool, rules: Rules, config: ServerConfig, metrics: Metrics) -> None:
        self.rules = rules
        self._pool = pool
        self._config = config
        self._metrics = metrics

    async def generate(
        self,
        request: Request,
        params: GenerationParams,
        context: "RequestContext",
        on_progress: ImageProgressCallback | None = None,
    ) -> list[GeneratedImage]:
        """Generate all images of a request, in order. Cancelling this cancels the jobs.

        Raises Problem or ClientGoneError if one of the images fails; then the others are cancelled.
        """
        header = measured(params.image, self.rules, params.blamed)
        images, steps = params.number_of_images, self.rules.resolved(params.options).steps
        context.workload = Workload(images, steps, *_final_size(header, self.rules))
        work, relative_steps, size = effort(header, steps, self.rules)
        predicted = self._pool.core.predicted_seconds
        deadline = time.monotonic() + self._time_allowed(request, work * relative_steps * images, predicted)
        surcharge = _surcharge(header, predicted)
        job = m.Job(0, deadline, work, context.client, relative_steps, params.priority, surcharge, size)
        generating = [
            self._one(params, seed, job, on_progress and partial(on_progress, n))
            for n, seed in enumerate(params.seeds())
        ]
        return [await generating[0]] if len(generating) == 1 else await _all(generating)

    def _time_allowed(self, request: Request, work: float, predicted: float | None) -> float:
        """Seconds until the deadline: the client's preference (RFC 7240), else the configured ones."""
        if (preferred := _wait_preference(request)) is not None:
            return min(preferred, self._config.max_deadline)
        if self._config.deadline != "auto":
            return self._config.deadline
        if predicted is None:
            return AUTO_LOADING_SECONDS
        return max(AUTO_SECONDS, AUTO_TIMES * predicted * work)

    async def _one(
        self, params: GenerationParams, seed: int, job: m.Job, on_progress: ProgressCallback | None
    ) -> GeneratedImage:
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
        seen = image.warnings, image.thresholds
        return GeneratedImage(answer.image, answer.outcome.worker, stages, submitted, finished, *seen)


def _surcharge(header: Header, predicted: float | None) -> float:
    """The cost of decoding on the worker's CPU threads, in nominal images, which take `predicted` seconds."""
    return header.width * header.height * DECODING_SECONDS[header.format] / predicted if predicted else 0.0


def effort(header: Header, steps: int, rules: Rules) -> tuple[float, float, tuple[int, int]]:
    """Work, steps and size of the job, relative to an image of nominal size and steps."""
    width, height = size = output_size(header.width, header.height, rules.engine.size)
    return width * height / rules.engine.size.short_side**2, steps / rules.defaults["steps"], size


def _final_size(header: Header, rules: Rules) -> tuple[int, int]:
    if rules.engine.kind == "echo":
        return header.width, header.height
    return output_size(header.width, header.height, rules.engine.size)


async def _all(generating: Sequence[Coroutine[Any, Any, GeneratedImage]]) -> list[GeneratedImage]:
    """Return all images, or raise the first error and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in generating]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def error_of(outcome: m.Outcome, blamed: str | None) -> Problem | ClientGoneError:  # noqa: C901, PLR0911 - one case for each outcome
    """The error to answer with for a job that ended without an image."""
    match outcome:
        case m.Refused(reason, m.Blame.OPTION):
            return Problem(Error.INVALID_FIELD, reason, "steps")
        case m.Refused(reason):
            return Problem(Error.INVALID_IMAGE, reason, blamed)
        case m.Broken(reason):
            return Problem(
                Error.INTERNAL, "The worker failed to make this image; the server's log has the reason.", reason=reason
            )
        case m.WorkerCrash(losses):
            return Problem(
                Error.WORKER_CRASH,
                f"This request failed on {losses} workers, by a crash or for lack of memory; it is not tried again.",
            )
        case m.Expired():
            return Problem(
                Error.EXPIRED,
                "The image was not finished before its deadline. Ask for more time with `Prefer: wait=SECONDS`.",
            )
        case m.Rejected(retry_after, queue_full):
            why = "The queue is full." if queue_full else "This cannot finish before your deadline."
            return Problem(Error.BUSY, f"{why} Try again in {whole_seconds(retry_after)} s.", retry_after=retry_after)
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
