"""The life of a request: an id, the check of its API key, its time, count and log line, and exactly one answer."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.errors import ClientGoneError, Error, Problem, respond, routing_problem
from app.generator import GeneratedImage, Workload
from app.http.access import Access
from app.http.events import EventStream, Feed
from app.metrics import Metrics
from app.tracing import Tracing
from workers.logs import Record

log = logging.getLogger("contour.generation")
requests_log = logging.getLogger("contour.request")

ABANDONED = "abandoned"
PATH_CHARS = 200  # of a path, in the log: what the router refuses may be as long as a head
ID_BYTES = 8
# Turns of the event loop until an immediate refusal has come back: one task for the request, one for each image, and
# the way back through both.
TURNS_TO_REFUSE = 6
CLIENT_CLOSED_REQUEST = 499  # as nginx calls it: nobody reads this answer


@dataclass(slots=True)
class RequestContext:
    """A request that is being answered. `began` is when its head had arrived, by time.perf_counter.

    The other fields are filled in as they become known.
    """

    id: str
    began: float
    client: str = ""
    workload: Workload | None = None
    images: Sequence[GeneratedImage] = ()
    problem: Problem | None = None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


Handler: TypeAlias = Callable[[Request, RequestContext], Awaitable[Response]]
ErrorRenderer: TypeAlias = Callable[[Problem], Response]  # the form that an API gives to errors
CountOutcome: TypeAlias = Callable[[str, float], None]  # outcome, seconds


class RequestLifecycle:
    """Answers each request exactly once: with its handler's response, or with the problem that the handler raised."""

    def __init__(self, metrics: Metrics, access: Access, tracing: Tracing | None, *, log_requests: bool) -> None:
        self._metrics = metrics
        self._access = access
        self._tracing = tracing
        self._logs_requests = log_requests
        self.open_requests = 0

    async def serve(
        self,
        request: Request,
        handler: Handler,
        render_error: ErrorRenderer = respond,
        count: CountOutcome | None = None,
        *,
        quiet: bool = False,
        level: int = logging.INFO,
    ) -> Response:
        """Run a handler and return its response, counted and timed when it is complete, or when its stream ends.

        `count` replaces the count of image requests. A `quiet` request is logged only if it fails; `level` is the log
        level of any other.
        """
        context = RequestContext(_new_id(), time.perf_counter())
        outcome = "done"
        self.open_requests += 1
        close = partial(self._close, request, context=context, count=count, level=None if quiet else level)
        try:
            context.client = self._access.client(request)
            response = await handler(request, context)
        except asyncio.CancelledError:
            self.open_requests -= 1
            raise
        except Exception as error:  # noqa: BLE001 - each error is answered, and an unexpected one is logged
            problem = self.problem(error, context)
            response = Response(status_code=CLIENT_CLOSED_REQUEST) if problem is None else render_error(problem)
            outcome = ABANDONED if problem is None else problem.error.slug
        if isinstance(response, EventStream):
            response.ended = partial(close, response)
        else:
            close(response, outcome)
        response.headers["X-Request-Id"] = context.id
        return response

    async def serve_lookup(self, request: Request, handler: Handler, render_error: ErrorRenderer = respond) -> Response:
        """Like `serve`, for a request that only reads something: it is counted and logged only if it fails."""
        return await self.serve(request, handler, render_error, self._metrics.lookup, quiet=True)

    async def stream(
        self,
        context: RequestContext,
        feed: Feed,
        generating: Coroutine[Any, Any, bytes],
        encode_error: Callable[[Problem], bytes],
    ) -> EventStream:
        """Stream the feed's events while `generating` runs. The last event is its result, or an encoded error.

        An immediate refusal is raised, so that it is answered with its own status.
        """

        def last_event(finished: "asyncio.Task[bytes]") -> tuple[bytes, str]:
            if (error := finished.exception()) is None:
                return finished.result(), "done"
            problem = self.problem(error, context)
            return (b"", ABANDONED) if problem is None else (encode_error(problem), problem.error.slug)

        task = asyncio.ensure_future(generating)
        for _ in range(TURNS_TO_REFUSE):
            await asyncio.sleep(0)
            if task.done():
                task.result()
        return EventStream(feed, task, last_event)

    async def on_routing_error(self, request: Request, error: Exception) -> Response:
        """Starlette's handler for unknown paths and methods."""
        return self.refuse(request, routing_problem(request, error))

    def refuse(self, request: Request, problem: Problem) -> Response:
        """Answer a request that reaches no endpoint. It gets an id, and is counted and logged like any other."""
        self._metrics.refused(problem.error.slug)
        response = respond(problem)
        request_id = response.headers["X-Request-Id"] = _new_id()
        context = RequestContext(request_id, time.perf_counter(), problem=problem)
        self._log(request, response, context, problem.error.slug, logging.INFO)
        return response

    def on_connection_error(self, problem: Problem, client: str) -> None:
        """Count and log a connection that ended before a whole request had arrived."""
        self._metrics.connection(problem.error)
        if self._logs_requests:
            requests_log.info(
                _ConnectionErrorRecord(int(problem.error.status), problem.error.slug, problem.reason, client)
            )

    def problem(self, error: BaseException, context: RequestContext) -> Problem | None:
        """The problem to answer with; None if the client has left. An unexpected error is logged."""
        match error:
            case Problem():
                context.problem = error
                return error
            case ClientGoneError() | ClientDisconnect():
                return None
            case _:
                log.error("Request %s failed", context.id, exc_info=error)
                return Problem(
                    Error.INTERNAL, f"Unexpected error; the server's log has the details under {context.id}."
                )

    def _close(
        self,
        request: Request,
        response: Response,
        outcome: str,
        context: RequestContext,
        count: CountOutcome | None,
        level: int | None,
    ) -> None:
        self.open_requests -= 1
        (count or self._metrics.request)(outcome, context.seconds)
        if outcome not in ("done", ABANDONED):
            level = logging.INFO
        if level is not None:
            self._log(request, response, context, outcome, level)

    def _log(self, request: Request, response: Response, context: RequestContext, outcome: str, level: int) -> None:
        """Log the request, and record its spans."""
        record = RequestRecord(
            request=context.id,
            method=request.method,
            path=request.scope["path"][:PATH_CHARS],
            routed="endpoint" in request.scope,
            status=response.status_code,
            outcome=outcome,
            client=context.client,
            began=context.began,
            seconds=context.seconds,
            images=context.images,
            workload=context.workload,
            reason="" if context.problem is None else context.problem.reason,
        )
        if self._tracing is not None:
            record = replace(record, trace=self._tracing.record(record, request.headers))
        if self._logs_requests:
            requests_log.log(level, record)


def _new_id() -> str:
    """A random id that cannot be guessed, as anyone who knows it may follow and cancel the request."""
    return secrets.token_hex(ID_BYTES)


# ------------------------------------------------------------------------------------------------------- log lines


@dataclass(frozen=True, slots=True)
class _ConnectionErrorRecord(Record):
    """The log line of a connection that ended before a whole request had arrived."""

    status: int
    outcome: str
    reason: str
    client: str

    def __str__(self) -> str:
        return f"{self.status} {self.outcome}: {self.reason} Client {self.client}"

    @property
    def fields(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RequestRecord(Record):
    """The log line of a request. `began` is by time.perf_counter; `routed`: the path is one of ours.

    It holds nothing that the client sent, except the path: `reason` says why the request was refused without a quote.
    """

    request: str
    method: str
    path: str
    routed: bool
    status: int
    outcome: str
    client: str
    began: float
    seconds: float
    images: Sequence[GeneratedImage]
    workload: Workload | None = None
    reason: str = ""
    trace: str = ""

    def __str__(self) -> str:
        text = f"{self.request} {self.method} {self.path} {self.status} {self.outcome} {_ms(self.seconds)} ms"
        if self.client:
            text += f", client {self.client}"
        if self.workload is not None:
            text += f", {self.workload}"
        if self.reason:
            text += f": {self.reason}"
        for number, image in enumerate(self.images):
            which = f", image {number} by" if len(self.images) > 1 else ", by"
            stages = "".join(f" {stage} {_ms(seconds)}" for stage, seconds in image.stages.items())
            text += f"{which} {image.worker}:{stages}"
        return text

    @property
    def fields(self) -> dict[str, Any]:
        fields = {
            "request": self.request,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "outcome": self.outcome,
            "client": self.client,
            "ms": _ms(self.seconds),
            "stages": [_fields(image) for image in self.images],
        }
        if self.workload is not None:
            fields |= asdict(self.workload)
        return fields | {name: value for name in ("reason", "trace") if (value := getattr(self, name))}


def _fields(image: GeneratedImage) -> dict[str, Any]:
    return {"worker": image.worker, **{stage: _ms(seconds) for stage, seconds in image.stages.items()}}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)
