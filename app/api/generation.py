"""`POST /generation/`: a body in, in one of its forms; images, a stream of events or a problem out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import pybase64
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Error, Problem, problem_body, quoted
from app.generator import GeneratedImage, ImageGenerator
from app.http import events
from app.http.answers import negotiated, preferred, unless_gone, with_warnings
from app.http.events import Feed
from app.lifecycle import RequestContext, RequestLifecycle
from app.params import GenerationParams, OutputOptions
from app.parsing import bodies
from workers.engine.contract import Format

JSON = "application/json"
FORMATS: dict[str, Format] = {"image/jpeg": "jpeg", "image/png": "png", "image/webp": "webp"}


class GenerationAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer: `request_id` as it came, and an image in standard base64; all images, where several were wanted.

    `warnings` is there when the request was not followed to the letter, such as when the prompt was cut. `canny_low`
    and `canny_high` are there when the thresholds are automatic.
    """

    request_id: int
    output_image_base64: str
    output_images_base64: list[str] | None = None
    warnings: list[str] | None = None
    canny_low: int | None = None
    canny_high: int | None = None


@dataclass(frozen=True)
class Generation:
    """The endpoint. Everything about a request is checked before anything is queued."""

    lifecycle: RequestLifecycle
    generator: ImageGenerator

    @cached_property
    def _offers(self) -> Sequence[str]:
        """In order of preference: JSON for clients without one; of image types, the configured one first."""
        configured = next(kind for kind, name in FORMATS.items() if name == self.generator.rules.engine.output.format)
        return list(dict.fromkeys([JSON, configured, *FORMATS, events.MEDIA_TYPE]))

    async def respond(self, request: Request) -> Response:
        return await self.lifecycle.serve(request, self._generate)

    async def _generate(self, request: Request, context: RequestContext) -> Response:
        kind = negotiated(request, self._offers)
        streams = kind == events.MEDIA_TYPE
        params = await bodies.generation_params(
            request, self.generator.rules, OutputOptions(FORMATS.get(kind), streams)
        )
        if kind in FORMATS and (named := params.options.format) is not None:
            kind = _of_format(request, named)
        file_format = FORMATS.get(kind)
        if file_format is not None and params.number_of_images > 1:
            detail = f"number_of_images is {params.number_of_images}, but {kind} holds only one image; ask for {JSON}."
            raise Problem(Error.INVALID_FIELD, detail, "number_of_images")
        if streams:
            return await self._stream(request, params, context)
        images = context.images = await unless_gone(request, self.generator.generate(request, params, context))
        body = images[0].file if file_format is not None else _json(params, images)
        response = Response(body, headers={"Server-Timing": _timing(images[0], context.seconds)}, media_type=kind)
        warnings = (*params.warnings, *warnings_of(images)) if file_format is not None else ()
        return with_warnings(response, warnings)

    async def _stream(self, request: Request, params: GenerationParams, context: RequestContext) -> Response:
        """Stream progress. An immediate refusal is answered as without a stream."""
        feed = Feed()

        async def made() -> bytes:
            context.images = await self.generator.generate(request, params, context, feed.publish)
            return events.encode_event("done", _json(params, context.images))

        return await self.lifecycle.stream(
            context, feed, made(), lambda problem: events.encode_event("error", problem_body(problem))
        )


def _json(params: GenerationParams, images: Sequence[GeneratedImage]) -> bytes:
    """Build JSON around the base64 by hand: an encoder would look at each of its characters. Copies it only once."""
    encoded = [pybase64.b64encode(image.file) for image in images]
    parts = [b'{"request_id":%d,"output_image_base64":"' % params.request_id, encoded[0], b'"']
    if len(encoded) > 1:
        parts += [b',"output_images_base64":["', b'","'.join(encoded), b'"]']
    if warnings := [*params.warnings, *warnings_of(images)]:
        parts += [b',"warnings":', msgspec.json.encode(warnings)]
    if images[0].thresholds is not None:  # those of all: the edges are the same
        parts.append(b',"canny_low":%d,"canny_high":%d' % images[0].thresholds)
    return b"".join([*parts, b"}"])


def warnings_of(images: Sequence[GeneratedImage]) -> list[str]:
    """The warnings of the images, each sentence once."""
    return list(dict.fromkeys(warning for image in images for warning in image.warnings))


def _of_format(request: Request, named: Format) -> str:
    """The media type of the format that a request names. Raises Problem if its Accept header excludes it."""
    kind = next(kind for kind, name in FORMATS.items() if name == named)
    accept = ",".join(request.headers.getlist("accept"))
    if preferred(accept, [kind]) is None:
        detail = f"output_format is {named}, but Accept is {quoted(accept)}, which excludes {kind}; leave one out."
        raise Problem(Error.INVALID_FIELD, detail, "output_format")
    return kind


def _timing(image: GeneratedImage, total: float) -> str:
    stages = (*image.stages.items(), ("total", total))
    return ", ".join(f"{name};dur={seconds * 1e3:.2f}" for name, seconds in stages)
