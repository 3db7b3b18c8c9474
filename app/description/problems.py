"""The responses that tell of problems: all those of a status, each with an example."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

import msgspec

from app.description.nodes import Node, by_status, example, headers, schema
from app.errors import MEDIA_TYPE, Error, Problem, problem_body

LATER = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

# What a client may be told, word by word.
EXAMPLES: Mapping[Error, Problem] = {
    each.error: each
    for each in (
        Problem(Error.BROKEN_HTTP, "It cannot be read: Invalid method encountered."),
        Problem(Error.BROKEN_JSON, "JSON is malformed: invalid character (byte 0)."),
        Problem(Error.BROKEN_FORM, "It cannot be read: the field 'text' is not UTF-8."),
        Problem(
            Error.FOREIGN_ORIGIN,
            "A page of 'https://example.com' may not use this service; server.allowed_origins permits origins.",
        ),
        Problem(
            Error.UNKNOWN_HOST,
            "The Host header is 'example.com', which is no name of this service; server.allowed_hosts adds names.",
        ),
        Problem(Error.UNAUTHORIZED, "Send an API key, as Authorization: Bearer KEY or as X-API-Key: KEY."),
        Problem(Error.NOT_FOUND, "There is nothing at /picture; pictures are made at /generation/."),
        Problem(Error.METHOD, "PUT is not taken at /generation/; allowed: POST."),
        Problem(Error.NOT_ACCEPTABLE, "Accept is 'image/avif', but this can be answered by image/png only."),
        Problem(Error.SLOW, "The request's body took more than 60 s to arrive."),
        Problem(Error.TOO_LARGE, "The body has 99999999 bytes; at most 33554432 bytes are taken."),
        Problem(Error.OVERDRAWN, "Others are to find room as well; try again in 4 s.", retry_after=4),
        Problem(Error.HEAD_TOO_LARGE, "The request's line and headers take more than 65536 bytes."),
        Problem(Error.MEDIA_TYPE, "The body is coded as 'gzip'; send it as it is."),
        Problem(Error.INVALID_FIELD, "canny_low is 0; it must be from 1 to 2000.", "canny_low"),
        Problem(Error.INVALID_PICTURE, "The picture is a GIF; send a PNG, JPEG or WebP.", "input_image_base64"),
        Problem(Error.INTERNAL, "An unexpected error; the server's log has it under 5f0c2a7791d3b04e."),
        Problem(Error.POISONED, "2 workers ended while they ran it; it is not tried again."),
        Problem(Error.BUSY, "It could not be done before its deadline; try again in 4 s.", retry_after=4),
        Problem(Error.DRAINING, "Nothing new is taken; try another server, or this one when it is back."),
        Problem(Error.CONNECTIONS, "Close connections that are not needed, or try again later.", retry_after=1),
        Problem(Error.EXPIRED, "The picture was not done before the deadline of this request."),
    )
}


def problems(errors: Iterable[Error]) -> dict[int, Node]:
    """A response for each status that some errors have, as problem+json (RFC 9457)."""
    return {status: _response(of_status) for status, of_status in by_status(errors).items()}


def told(errors: Sequence[Error]) -> str:
    """What a response of these errors means."""
    return "; ".join(f"{error.title} (`{error.slug}`)" for error in errors) + "."


def problem_header_names(errors: Sequence[Error]) -> list[str]:
    """The headers that these errors, which have one status, come with."""
    names = ["X-Request-Id"]
    names += ["Allow"] if Error.METHOD in errors else []
    names += ["Retry-After"] if errors[0].status in LATER else []
    names += ["WWW-Authenticate"] if Error.UNAUTHORIZED in errors else []
    return names


def _response(errors: Sequence[Error]) -> Node:
    kinds = {"type": {"enum": [error.type for error in errors]}, "status": {"const": int(errors[0].status)}}
    return {
        "description": told(errors),
        "headers": headers(*problem_header_names(errors)),
        "content": {
            MEDIA_TYPE: {
                "schema": {"allOf": [schema("ProblemBody"), {"properties": kinds}]},
                "examples": {error.slug: _example(error) for error in errors},
            }
        },
    }


def _example(error: Error) -> Node:
    return example(msgspec.json.decode(problem_body(EXAMPLES[error])), error.title)
