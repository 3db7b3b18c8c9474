"""Problems as AUTOMATIC1111 tells of them."""

import msgspec
from starlette.responses import Response

from app.compat.automatic.structs import ErrorAnswer
from app.errors import Error, Problem, problem_headers


def respond(problem: Problem) -> Response:
    """The response that tells a client of a problem."""
    body = ErrorAnswer(problem.error.title, problem.detail, problem.detail)
    return Response(msgspec.json.encode(body), problem.error.status, problem_headers(problem), "application/json")


def wrong(field: str, detail: str) -> Problem:
    """The problem of a field that cannot be had as it is."""
    return Problem(Error.INVALID_FIELD, detail, field)
