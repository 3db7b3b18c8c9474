"""Problems in OpenAI's form, so that its clients raise the exceptions that their users catch, and retry if it helps."""

from http import HTTPStatus

import msgspec
from starlette.responses import Response

from app.api.openai.structs import ErrorAnswer, ErrorDetail
from app.errors import Error, Problem, problem_headers

CODES = {Error.UNAUTHORIZED: "invalid_api_key", Error.QUOTA_EXCEEDED: "rate_limit_exceeded"}
MODEL_FIELD = "model"


def respond(problem: Problem) -> Response:
    """The response for a problem."""
    headers = problem_headers(problem)
    if problem.error is Error.WORKER_CRASH:
        headers["x-should-retry"] = "false"  # or the official clients would retry, and crash more workers
    return Response(error_body(problem), status(problem.error), headers, "application/json")


def status(error: Error) -> HTTPStatus:
    """OpenAI has no 422; it answers 400 to any error in a request's content."""
    return HTTPStatus.BAD_REQUEST if error.status is HTTPStatus.UNPROCESSABLE_ENTITY else error.status


def error_body(problem: Problem) -> bytes:
    """A problem as JSON."""
    return msgspec.json.encode(
        ErrorAnswer(ErrorDetail(problem.detail, _type(problem.error), problem.field, _code(problem)))
    )


def _type(error: Error) -> str:
    if error is Error.QUOTA_EXCEEDED:
        return "rate_limit_error"
    return "server_error" if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def _code(problem: Problem) -> str:
    if problem.error is Error.NOT_FOUND and problem.field == MODEL_FIELD:
        return "model_not_found"
    return CODES.get(problem.error, problem.error.slug.replace("-", "_"))
