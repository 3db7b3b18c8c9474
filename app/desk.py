"""Where every request for pictures is given a name, and is counted, timed and answered, whatever becomes of it."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.errors import Error, Problem, respond, routing_problem
from app.events import EventStream, Feed
from app.making import Asked, ClientGoneError, Picture
from app.metrics import Metrics
from app.records import Line, Refusal
from app.tracing import Tracing

log = logging.getLogger("contour.generation")
requests_log = logging.getLogger("contour.request")

ABANDONED = "abandoned"
PATH_CHARS = 200  # of a path, in the log: what the router refuses may be as long as a head
ID_BYTES = 8
# Of the event loop, in which all images of a request are submitted and what is refused at once comes back: a task for
# the request, one for each image, and the way back through both.
TURNS_TO_REFUSE = 6
LEFT = 499  # the status for who has left, as nginx has it: nobody will read it


@dataclass(slots=True)
class Ticket:
    """A request in hand: its name, and when its head was there (time.perf_counter).

    When they are known, also whose it is, what is asked for, its pictures, and why it is refused.
    """

    name: str
    began: float
    client: str = ""
    asked: Asked | None = None
    pictures: Sequence[Picture] = ()
    problem: Problem | None = None

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.began


Work: TypeAlias = Callable[[Request, Ticket], Awaitable[Response]]
Voice: TypeAlias = Callable[[Problem], Response]  # how an interface tells a client of a problem
Count: TypeAlias = Callable[[str, float], None]  # of an outcome, and of how many seconds it took


class Desk:
    """Answers each request once, with what its work comes to or with a problem."""

    def __init__(self, metrics: Metrics, tracing: Tracing, *, log_requests: bool) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._logs_requests = log_requests
        self.in_hand = 0  # requests that have not been answered

    async def serve(
        self,
        request: Request,
        work: Work,
        voice: Voice = respond,
        count: Count | None = None,
        *,
        quiet: bool = False,
        level: int = logging.INFO,
    ) -> Response:
        """The answer to a request, named; counted and timed when it is there, or when it has been streamed.

        `count` counts what makes no picture, and is not to be counted with what does. What is `quiet` is logged only if
        it is refused; `level` is that of the log line of any other.
        """
        ticket = Ticket(_new_id(), time.perf_counter())
        outcome = "done"
        self.in_hand += 1
        close = partial(self._close, request, ticket=ticket, count=count, level=None if quiet else level)
        try:
            response = await work(request, ticket)
        except asyncio.CancelledError:
            self.in_hand -= 1
            raise
        except Exception as error:  # noqa: BLE001 - it is answered, and what nobody expected is logged
            problem = self.problem(error, ticket)
            response = Response(status_code=LEFT) if problem is None else voice(problem)
            outcome = ABANDONED if problem is None else problem.error.slug
        if isinstance(response, EventStream):
            response.ended = partial(close, response)
        else:
            close(response, outcome)
        response.headers["X-Request-Id"] = ticket.name
        return response

    async def aside(self, request: Request, work: Work, voice: Voice = respond) -> Response:
        """The same for what is no more than looked up: it is counted and logged only if it is refused."""
        return await self.serve(request, work, voice, self._metrics.aside, quiet=True)

    async def stream(
        self, ticket: Ticket, feed: Feed, making: Coroutine[Any, Any, bytes], told: Callable[[Problem], bytes]
    ) -> EventStream:
        """Events of what is fed while something is made; the last is what it comes to, or what is `told` of a problem.

        Raises what is refused at once, as without a stream.
        """

        def last(made: "asyncio.Task[bytes]") -> tuple[bytes, str]:
            if (error := made.exception()) is None:
                return made.result(), "done"
            problem = self.problem(error, ticket)
            return (b"", ABANDONED) if problem is None else (told(problem), problem.error.slug)

        task = asyncio.ensure_future(making)
        for _ in range(TURNS_TO_REFUSE):
            await asyncio.sleep(0)
            if task.done():
                task.result()
        return EventStream(feed, task, last)

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Starlette's handler for what its router raises; named and counted like what reaches an endpoint."""
        return self.turn_away(request, routing_problem(request, error))

    def turn_away(self, request: Request, problem: Problem) -> Response:
        """The answer to a request that reaches no endpoint; named, counted and logged like one that does."""
        self._metrics.refused(problem.error.slug)
        response = respond(problem)
        name = response.headers["X-Request-Id"] = _new_id()
        ticket = Ticket(name, time.perf_counter(), problem=problem)
        self._log(request, response, ticket, problem.error.slug, logging.INFO)
        return response

    def hang_up(self, problem: Problem, client: str) -> None:
        """Count and log the end of a connection on which no whole request came."""
        self._metrics.connection(problem.error)
        if self._logs_requests:
            requests_log.info(Refusal(int(problem.error.status), problem.error.slug, problem.reason, client))

    def problem(self, error: BaseException, ticket: Ticket) -> Problem | None:
        """What a client is told of an error; None if it has left. What nobody expected is logged."""
        match error:
            case Problem():
                ticket.problem = error
                return error
            case ClientGoneError() | ClientDisconnect():
                return None
            case _:
                log.error("request %s failed", ticket.name, exc_info=error)
                return Problem(Error.INTERNAL, f"An unexpected error; the server's log has it under {ticket.name}.")

    def _close(
        self, request: Request, response: Response, outcome: str, ticket: Ticket, count: Count | None, level: int | None
    ) -> None:
        self.in_hand -= 1
        (count or self._metrics.request)(outcome, ticket.seconds)
        if outcome not in ("done", ABANDONED):
            level = logging.INFO
        if level is not None:
            self._log(request, response, ticket, outcome, level)

    def _log(self, request: Request, response: Response, ticket: Ticket, outcome: str, level: int) -> None:
        """Write down what became of a request, in the log and as spans."""
        line = Line(
            request=ticket.name,
            method=request.method,
            path=request.scope["path"][:PATH_CHARS],
            routed="endpoint" in request.scope,
            status=response.status_code,
            outcome=outcome,
            client=ticket.client,
            began=ticket.began,
            seconds=ticket.seconds,
            pictures=ticket.pictures,
            asked=ticket.asked,
            reason="" if ticket.problem is None else ticket.problem.reason,
        )
        if trace := self._tracing.record(line, request.headers):
            line = replace(line, trace=trace)
        if self._logs_requests:
            requests_log.log(level, line)


def _new_id() -> str:
    """An id for a request. It cannot be guessed: whoever knows it may follow and end the request."""
    return secrets.token_hex(ID_BYTES)
