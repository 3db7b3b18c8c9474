"""Requests and answers with OpenAI's names (its API reference, "Images" and "Models")."""

from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from app.errors import Error, Problem, problem_headers
from app.params import RequestOptions
from workers.engine.contract import Format

CODES = {Error.UNAUTHORIZED: "invalid_api_key", Error.QUOTA_EXCEEDED: "rate_limit_exceeded"}
MODEL_FIELD = "model"
MOST_PARTIALS = 3

MAX_NAME = 200  # characters
Name = Annotated[str, Meta(max_length=MAX_NAME)]


class EditForm(RequestOptions, frozen=True, kw_only=True):
    """The fields of the form beside its file `image`; OpenAI's, and this service's own.

    `n` is number_of_images, `seed` is random_seed; without one, one is drawn. `output_compression` is the quality of a
    JPEG or WebP, as configured by default. `size`, `quality` and `input_fidelity` may be anything and change nothing;
    the answer's `warnings` say so. What OpenAI has besides (user, moderation, ...) means nothing here.
    """

    prompt: str
    model: Name | None = None
    n: int | None = None
    size: Name = "auto"
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Format = "png"
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    quality: Name | None = None
    input_fidelity: Name | None = None
    background: Literal["auto", "opaque"] = "auto"
    stream: bool = False
    partial_images: Annotated[int, Meta(ge=0, le=MOST_PARTIALS)] = 0
    seed: int | None = None
    random_seed: int | None = None


class EditedImage(msgspec.Struct, frozen=True, omit_defaults=True):
    """An image in standard base64, or as a data: URL; and the seed that makes it again."""

    seed: int
    b64_json: str | None = None
    url: str | None = None


class ImagesAnswer(msgspec.Struct, frozen=True):
    """The images, and what they are. `model` is what made them, whatever name was asked for.

    `warnings` is there when the request was not followed to the letter, such as when the prompt was cut.
    """

    created: int
    data: list[EditedImage]
    model: str
    size: str
    output_format: Format
    background: Literal["opaque"] = "opaque"
    warnings: list[str] | msgspec.UnsetType = msgspec.UNSET


class TokenDetails(msgspec.Struct, frozen=True):
    """Always zero, like `Usage`."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Always zero: nothing is counted in tokens here, but clients expect the field."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()


class PartialImageEvent(msgspec.Struct, frozen=True, tag_field="type", tag="image_edit.partial_image"):
    """A preview of the unfinished image: a small JPEG."""

    b64_json: str
    partial_image_index: int
    created_at: int
    size: str
    output_format: Literal["jpeg"] = "jpeg"
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"


class CompletedEvent(msgspec.Struct, frozen=True, tag_field="type", tag="image_edit.completed"):
    """The finished image."""

    b64_json: str
    created_at: int
    size: str
    output_format: Format
    seed: int
    model: str
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"
    usage: Usage = Usage()
    warnings: list[str] | msgspec.UnsetType = msgspec.UNSET


class Model(msgspec.Struct, frozen=True):
    """A model; `created` is when the service was started."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: Literal["contour"] = "contour"


class ModelList(msgspec.Struct, frozen=True):
    """All models: there is one."""

    data: list[Model]
    object: Literal["list"] = "list"


class ErrorDetail(msgspec.Struct, frozen=True):
    """The error in words and as a code; `param` is the field to blame."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of an error."""

    error: ErrorDetail


def respond(problem: Problem) -> Response:
    """The response for a problem, in OpenAI's form, by which its clients raise their exceptions and retry."""
    headers = problem_headers(problem)
    if problem.error is Error.WORKER_CRASH:
        headers["x-should-retry"] = "false"  # or the official clients would retry, and crash more workers
    return Response(error_body(problem), status(problem.error), headers, "application/json")


def status(error: Error) -> HTTPStatus:
    """OpenAI has no 422; it answers 400 to any error in a request's content."""
    return HTTPStatus.BAD_REQUEST if error.status is HTTPStatus.UNPROCESSABLE_ENTITY else error.status


def error_body(problem: Problem) -> bytes:
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
