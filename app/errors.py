"""All errors that a client can get, in one table, in the form of RFC 9457 (problem+json)."""

import dataclasses
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from http import HTTPStatus
from math import ceil

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
# A problem's body is at most 4 KB. It has the detail twice: once of all, once by field.
DETAIL_BYTES = 1500
MAX_ERRORS, ERRORS_BYTES = 20, 1800  # fields that one answer names
FIELD_CHARS = 100
QUOTED_CHARS = 100  # of a client's value, in a message
LONG_BITS = 330  # an integer of more than these has more than 99 digits
CUT = "..."
REASON_CHARS = 300  # of a problem, in the log
# Noncharacters that mark a client's text in a message until it is sent. The log leaves out what is between them, as
# it may be a prompt or a key.
VALUE = "\ufdd0", "\ufdd1"
_VALUES = re.compile(f"{VALUE[0]}[^{VALUE[1]}]*{VALUE[1]}")
JSON_BYTES = 6  # that JSON takes at most for a character, as in \u0001
# No cache keeps what is made for one client, and no browser guesses another type.
SAFE_HEADERS: Mapping[str, str] = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Error(Enum):
    """The table: the last part of the problem's type, the status and the title."""

    MALFORMED_HTTP = "malformed-http", HTTPStatus.BAD_REQUEST, "The request is not valid HTTP"
    MALFORMED_JSON = "malformed-json", HTTPStatus.BAD_REQUEST, "The body is not JSON"
    MALFORMED_FORM = "malformed-form", HTTPStatus.BAD_REQUEST, "The body is not a form"
    UNAUTHORIZED = "unauthorized", HTTPStatus.UNAUTHORIZED, "An API key is needed"
    FOREIGN_ORIGIN = "foreign-origin", HTTPStatus.FORBIDDEN, "Pages of this origin may not use this service"
    UNKNOWN_HOST = "unknown-host", HTTPStatus.FORBIDDEN, "This service does not answer under this host name"
    NOT_FOUND = "not-found", HTTPStatus.NOT_FOUND, "There is nothing at this path"
    METHOD = "method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED, "This path does not support this method"
    NOT_ACCEPTABLE = "not-acceptable", HTTPStatus.NOT_ACCEPTABLE, "No type that you accept is available"
    REQUEST_TIMEOUT = "request-timeout", HTTPStatus.REQUEST_TIMEOUT, "The request took too long to arrive"
    TOO_LARGE = "too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is too large"
    QUOTA_EXCEEDED = "quota-exceeded", HTTPStatus.TOO_MANY_REQUESTS, "You have used your share of the queue"
    HEAD_TOO_LARGE = (
        "head-too-large",
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "The request's headers are too large",
    )
    MEDIA_TYPE = "unsupported-media-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body's type is not supported"
    INVALID_FIELD = "invalid-field", HTTPStatus.UNPROCESSABLE_ENTITY, "A field is missing or wrong"
    INVALID_IMAGE = "invalid-image", HTTPStatus.UNPROCESSABLE_ENTITY, "The image cannot be read"
    INTERNAL = "internal", HTTPStatus.INTERNAL_SERVER_ERROR, "The service failed"
    WORKER_CRASH = "worker-crash", HTTPStatus.INTERNAL_SERVER_ERROR, "This request crashed the workers that tried it"
    BUSY = "busy", HTTPStatus.SERVICE_UNAVAILABLE, "The service is too busy to finish this in time"
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
    """A field of the request, and what is wrong with it."""

    field: str
    detail: str


class ProblemBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an error (RFC 9457). `errors` names each field that is wrong, and `detail` names all of them. A
    fault of the request as a whole names no field. `retry_after` is the header's, in seconds."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []
    retry_after: int | None = None


@dataclasses.dataclass
class Problem(Exception):
    """Raise it to answer with an error. `field` is the JSON key to blame; `retry_after` is in seconds.

    Both texts are cut to a length that keeps the answer small, whatever they quote: see `quoted`. `errors` are all
    fields to blame, `field` first; see `Faults`. `reason` is the detail without what a client sent, for the log.
    """

    error: Error
    detail: str
    field: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    errors: Sequence[FieldError] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        self.reason = _cut(self.reason or _VALUES.sub(CUT, self.detail), REASON_CHARS)
        self.detail = _cut_to_bytes(self.detail.replace(VALUE[0], "").replace(VALUE[1], ""), DETAIL_BYTES)
        self.field = self.field and self.field[:FIELD_CHARS]
        if self.field is not None and not self.errors:
            self.errors = (FieldError(self.field, self.detail),)


class ClientGoneError(Exception):
    """The client closed its connection before it was answered."""


class Faults:
    """Collects what is wrong with the fields of a request, so that one answer names all of it.

    The first problem decides the answer's type and status. Only the first one of each field is named.
    """

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, *problems: Problem) -> None:
        """Note problems. One that is not about a field is raised at once, as nothing else can be checked then."""
        for problem in problems:
            if problem.field is None:
                raise problem
            self._problems.append(problem)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a Problem that is raised within the block, instead of raising it."""
        try:
            yield
        except Problem as problem:
            self.add(problem)

    def check(self) -> None:
        """Raise all noted problems as one."""
        if self._problems:
            raise joined(self._problems)


def joined(problems: Sequence[Problem]) -> Problem:
    if len(problems) == 1:
        return problems[0]
    by_field: dict[str, FieldError] = {}
    for problem in problems:
        for each in problem.errors:
            by_field.setdefault(each.field, each)
    errors: list[FieldError] = []
    room = ERRORS_BYTES
    for each in by_field.values():
        room -= len(msgspec.json.encode(each))
        if errors and (room < 0 or len(errors) == MAX_ERRORS):
            break
        errors.append(each)
    more = len(by_field) - len(errors)
    detail = " ".join(each.detail for each in errors) + (f" And {more} more fields are wrong." if more else "")
    reason = " ".join(problem.reason for problem in problems)
    return Problem(problems[0].error, detail, errors[0].field, errors=errors, reason=reason)


def respond(problem: Problem) -> Response:
    return Response(problem_body(problem), problem.error.status, problem_headers(problem), MEDIA_TYPE)


def problem_body(problem: Problem) -> bytes:
    error = problem.error
    later = None if problem.retry_after is None else whole_seconds(problem.retry_after)
    return msgspec.json.encode(
        ProblemBody(error.type, error.title, int(error.status), problem.detail, list(problem.errors), later)
    )


def problem_headers(problem: Problem) -> dict[str, str]:
    """The headers of an answer with a problem, whatever form its body has."""
    headers = {**problem.headers, **SAFE_HEADERS}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(whole_seconds(problem.retry_after))
    if problem.error is Error.DRAINING:
        headers["Connection"] = "close"
    return headers


def whole_seconds(retry_after: float) -> int:
    """Retry-After in whole seconds, rounded up."""
    return max(1, ceil(retry_after))


def routing_problem(request: Request, error: Exception) -> Problem:
    """The problem for what Starlette's router raises: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = plain(request.scope["path"])
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{path} does not support {plain(request.method)}; send {allowed.replace(', ', ' or ')}."
        return Problem(Error.METHOD, detail, headers={"Allow": allowed})
    return Problem(Error.NOT_FOUND, f"There is nothing at {path}. Images are generated at /generation/; see /docs.")


def quoted(value: object, most: int = QUOTED_CHARS) -> str:
    """A client's value for a message, as `repr` writes it, in at most `most` characters, however large it is."""
    text = _cut(_quote.repr(value), most)
    return text if isinstance(value, int | float) else text.join(VALUE)


def plain(text: str, most: int = QUOTED_CHARS) -> str:
    """A client's text for a message, without quotation marks, in at most `most` characters."""
    return _cut(text.replace(VALUE[1], ""), most).join(VALUE)


class _Quote(reprlib.Repr):
    """Writes values in bounded time and space. Python itself refuses to write integers of thousands of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = QUOTED_CHARS
        self.maxlevel = 3

    def repr_int(self, value: int, level: int) -> str:
        long = value.bit_length() > LONG_BITS
        return f"an integer of about {int(value.bit_length() * 0.30103) + 1} digits" if long else repr(value)

    def repr_bool(self, value: bool, level: int) -> str:
        """As JSON writes it, since a client sent JSON."""
        return "true" if value else "false"

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802 - reprlib calls it
        return "null"


_quote = _Quote()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - len(CUT)] + CUT


def _cut_to_bytes(text: str, most: int) -> str:
    """Cut a text to at most `most` bytes of JSON."""
    if len(text) * JSON_BYTES <= most:
        return text
    text = text.encode("utf-8", "replace").decode()
    cut = text
    while (size := len(msgspec.json.encode(cut)) - 2) > most:
        text = text[: len(text) * most // size - len(CUT)]
        cut = text + CUT
    return cut


async def on_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for unexpected errors. The server logs the traceback."""
    return respond(Problem(Error.INTERNAL, "Unexpected error; the server's log has the details."))
