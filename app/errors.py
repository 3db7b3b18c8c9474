"""Every error that a client can get, as one table, in the form of RFC 9457 (problem+json)."""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus
from math import ceil

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Error(Enum):
    """The table: the last part of the problem's type, its status and its title."""

    BROKEN_HTTP = "broken-http", HTTPStatus.BAD_REQUEST, "The request is not HTTP as it should be"
    BROKEN_JSON = "broken-json", HTTPStatus.BAD_REQUEST, "The body is not JSON"
    BROKEN_FORM = "broken-form", HTTPStatus.BAD_REQUEST, "The body is not a form"
    UNAUTHORIZED = "unauthorized", HTTPStatus.UNAUTHORIZED, "An API key is needed"
    NOT_FOUND = "not-found", HTTPStatus.NOT_FOUND, "There is nothing at this path"
    METHOD = "method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED, "This path does not take this method"
    SLOW = "request-timeout", HTTPStatus.REQUEST_TIMEOUT, "The request took too long to arrive"
    TOO_LARGE = "too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is larger than this service takes"
    OVERDRAWN = "overdrawn", HTTPStatus.TOO_MANY_REQUESTS, "This client has its share of the queue already"
    HEAD_TOO_LARGE = (
        "head-too-large",
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "The request's head is larger than this service takes",
    )
    MEDIA_TYPE = "unsupported-media-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is of a type not taken here"
    INVALID_FIELD = "invalid-field", HTTPStatus.UNPROCESSABLE_ENTITY, "A field is missing or wrong"
    INVALID_PICTURE = "invalid-picture", HTTPStatus.UNPROCESSABLE_ENTITY, "The picture cannot be read"
    INTERNAL = "internal", HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed"
    POISONED = "poisoned", HTTPStatus.INTERNAL_SERVER_ERROR, "This request ended the workers that tried it"
    BUSY = "busy", HTTPStatus.SERVICE_UNAVAILABLE, "More is asked for than can be done in time"
    DRAINING = "draining", HTTPStatus.SERVICE_UNAVAILABLE, "The service is shutting down"
    CONNECTIONS = "too-many-connections", HTTPStatus.SERVICE_UNAVAILABLE, "There are too many connections"
    EXPIRED = "expired", HTTPStatus.GATEWAY_TIMEOUT, "The deadline has passed"

    def __init__(self, slug: str, status: HTTPStatus, title: str) -> None:
        self.slug = slug
        self.status = status
        self.title = title

    @property
    def type(self) -> str:
        """The problem's type, a URI as RFC 9457 wants it."""
        return f"urn:contour:problem:{self.slug}"


class FieldError(msgspec.Struct, frozen=True):
    """A field of the request's body, and what is wrong with it."""

    field: str
    detail: str


class ProblemBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an error (RFC 9457). `errors` names the field to blame, where there is one; `retry_after` is the
    header's, in seconds."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []
    retry_after: int | None = None


@dataclasses.dataclass
class Problem(Exception):
    """Raise it to answer with an error. `field` is the JSON key to blame; `retry_after` is in seconds."""

    error: Error
    detail: str
    field: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


def respond(problem: Problem) -> Response:
    """The response that tells a client of a problem."""
    return Response(problem_body(problem), problem.error.status, problem_headers(problem), MEDIA_TYPE)


def problem_body(problem: Problem) -> bytes:
    """A problem as JSON."""
    error = problem.error
    errors = [] if problem.field is None else [FieldError(problem.field, problem.detail)]
    later = None if problem.retry_after is None else whole_seconds(problem.retry_after)
    return msgspec.json.encode(ProblemBody(error.type, error.title, int(error.status), problem.detail, errors, later))


def problem_headers(problem: Problem) -> dict[str, str]:
    """The headers that go with a problem, in whatever form its body is."""
    headers = dict(problem.headers)
    if problem.retry_after is not None:
        headers["Retry-After"] = str(whole_seconds(problem.retry_after))
    if problem.error is Error.DRAINING:
        headers["Connection"] = "close"
    return headers


def whole_seconds(retry_after: float) -> int:
    """As Retry-After wants them: whoever waits so long does not come too early."""
    return max(1, ceil(retry_after))


def routing_problem(request: Request, error: Exception) -> Problem:
    """What Starlette's router raises: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        return Problem(
            Error.METHOD, f"{request.method} is not taken at {path}; allowed: {allowed}.", headers={"Allow": allowed}
        )
    return Problem(Error.NOT_FOUND, f"There is nothing at {path}; pictures are made at /generation/.")


async def on_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for everything that nobody expected; it is logged with its traceback by the server."""
    return respond(Problem(Error.INTERNAL, "An unexpected error; the server's log has it."))
