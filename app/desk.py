"""Where every request for pictures is given a name, and is counted, timed and answered, whatever becomes of it."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.errors import Error, Problem, respond, routing_problem
from app.events import EventStream
from app.making import ClientGoneError
from app.metrics import Metrics

log = logging.getLogger("contour.generation")

ABANDONED = "abandoned"


@dataclass(slots=True)
class Ticket:
    """A request in hand: its name, and when its head was there (time.perf_counter)."""

    name: str
    began: float

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.began


Work: TypeAlias = Callable[[Request, Ticket], Awaitable[Response]]
Voice: TypeAlias = Callable[[Problem], Response]  # how an interface tells a client of a problem


class Desk:
    """Answers each request once, with what its work comes to or with a problem."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._ids = count(1)
        self._run = secrets.token_hex(4)  # tells this process's request ids from another's

    async def serve(self, request: Request, work: Work, voice: Voice = respond) -> Response:
        """The answer to a request, named; counted and timed when it is there, or when it has been streamed."""
        ticket = Ticket(self._name(), time.perf_counter())
        outcome = "done"
        try:
            response = await work(request, ticket)
        except Exception as error:  # noqa: BLE001 - it is answered, and what nobody expected is logged
            problem = self.problem(error, ticket)
            response = Response(status_code=499) if problem is None else voice(problem)  # as nginx; nobody will read it
            outcome = ABANDONED if problem is None else problem.error.slug
        if isinstance(response, EventStream):
            response.ended = partial(self._close, ticket)
        else:
            self._close(ticket, outcome)
        response.headers["X-Request-Id"] = ticket.name
        return response

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Starlette's handler for what its router raises; named and counted like what reaches an endpoint."""
        problem = routing_problem(request, error)
        self._metrics.refused(problem.error.slug)
        response = respond(problem)
        response.headers["X-Request-Id"] = self._name()
        return response

    def problem(self, error: BaseException, ticket: Ticket) -> Problem | None:
        """What a client is told of an error; None if it has left. What nobody expected is logged."""
        match error:
            case Problem():
                return error
            case ClientGoneError() | ClientDisconnect():
                return None
            case _:
                log.error("request %s failed", ticket.name, exc_info=error)
                return Problem(Error.INTERNAL, f"An unexpected error; the server's log has it under {ticket.name}.")

    def _name(self) -> str:
        return f"{self._run}-{next(self._ids)}"

    def _close(self, ticket: Ticket, outcome: str) -> None:
        self._metrics.request(outcome, ticket.seconds)
