"""The responses that tell of problems: all those of a status, each with an example."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

import msgspec

from app.description.nodes import Node, by_status, example, headers, schema
from app.errors import MEDIA_TYPE, Error, Problem, joined, problem_body

LATER = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

# What a client may be told, word by word.
ALL_FAULTS = (
    Problem(Error.INVALID_FIELD, "steps is 'twenty'; it must be a whole number from 1 to 50.", "steps"),
    Problem(Error.INVALID_FIELD, "canny_low is 0; it must be from 1 to 2000.", "canny_low"),
)

EXAMPLES: Mapping[Error, Problem] = {
    each.error: each
    for each in (
        Problem(Error.BROKEN_HTTP, "The path has characters that are not allowed in one; percent-encode them."),
        Problem(Error.BROKEN_JSON, "Line 3, column 1: found '}'. Remove the comma before it."),
        Problem(Error.BROKEN_FORM, "The field 'text' of the form is not UTF-8."),
        Problem(
            Error.FOREIGN_ORIGIN,
            "A page of 'https://example.com' may not use this service; server.allowed_origins permits origins.",
        ),
        Problem(
            Error.UNKNOWN_HOST,
            "The Host header is 'example.com', which is no name of this service; server.allowed_hosts adds names.",
        ),
        Problem(Error.UNAUTHORIZED, "Send an API key, as Authorization: Bearer KEY or as X-API-Key: KEY."),
        Problem(Error.NOT_FOUND, "There is nothing at /picture. Images are made at /generation/; see /docs."),
        Problem(Error.METHOD, "/generation/ does not take PUT; send POST."),
        Problem(Error.NOT_ACCEPTABLE, "Accept is 'image/avif', but this can be answered by image/png only."),
        Problem(Error.SLOW, "The request's body took more than 60 s to arrive."),
        Problem(
            Error.TOO_LARGE,
            "The image is 8000 x 6000, which is 48000000 pixels; at most 40000000 pixels are taken "
            "(server.max_pixels). Scale it down to at most 7302 x 5477.",
            "input_image_base64",
        ),
        Problem(Error.OVERDRAWN, "You have used your share of the queue. Try again in 4 s.", retry_after=4),
        Problem(Error.HEAD_TOO_LARGE, "The request's line and headers take more than 65536 bytes."),
        Problem(Error.MEDIA_TYPE, "The body is compressed ('gzip'); send it uncompressed, without Content-Encoding."),
        joined(ALL_FAULTS),
        Problem(
            Error.INVALID_PICTURE,
            "The image must be a PNG, JPEG or WebP file; this is a GIF image.",
            "input_image_base64",
        ),
        Problem(Error.INTERNAL, "An unexpected error; the server's log has it under 5f0c2a7791d3b04e."),
        Problem(Error.POISONED, "2 workers exited while they ran this request; it is not tried again."),
        Problem(Error.BUSY, "This cannot finish before your deadline. Try again in 4 s.", retry_after=4),
        Problem(Error.DRAINING, "The service is shutting down. Try another server, or this one later."),
        Problem(Error.CONNECTIONS, "Close connections that are not needed, or try again later.", retry_after=1),
        Problem(
            Error.EXPIRED, "The image was not finished before your deadline (Prefer: wait=SECONDS, else the server's)."
        ),
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
