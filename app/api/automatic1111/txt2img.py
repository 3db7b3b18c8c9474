"""`POST /sdapi/v1/txt2img`: a prompt, and an image in ControlNet's arguments."""

import asyncio
from dataclasses import replace

import msgspec
import pybase64
from starlette.requests import Request
from starlette.responses import Response

from app import bodies
from app.api.automatic1111.info import info
from app.api.automatic1111.jobs import Job, Jobs
from app.api.automatic1111.options import present_options
from app.api.automatic1111.parse import Body, ParsedRequest, parse
from app.api.automatic1111.structs import Txt2ImgAnswer, Txt2ImgRequest, respond, wrong
from app.api.edges import EdgeFinder
from app.api.generation import unless_gone
from app.errors import Faults
from app.generator import ClientGoneError, GeneratedImage, ImageGenerator
from app.http.access import Access
from app.lifecycle import CLIENT_CLOSED_REQUEST, RequestContext, RequestLifecycle
from app.settings import Settings
from app.start import about
from workers.engine.metadata import Metadata

JSON = "application/json"
_json = msgspec.json.Decoder(Body, strict=False)

INTERRUPTED = msgspec.json.encode(Txt2ImgAnswer([], Txt2ImgRequest(), '{"notes":["The request was interrupted."]}'))


class Txt2Img:
    """The endpoint."""

    def __init__(
        self,
        lifecycle: RequestLifecycle,
        access: Access,
        generator: ImageGenerator,
        finder: EdgeFinder,
        jobs: Jobs,
        settings: Settings,
    ) -> None:
        self._lifecycle = lifecycle
        self._access = access
        self._generator = generator
        self._finder = finder
        self._jobs = jobs
        self._settings = settings
        self._options = present_options(settings)
        self._metadata = Metadata(settings.engine, about(settings))

    async def txt2img(self, request: Request) -> Response:
        """Answer with the images, or with none if the request was interrupted."""
        response = await self._lifecycle.serve(request, self._answer, respond)
        if response.status_code != CLIENT_CLOSED_REQUEST:
            return response
        # A client that has left reads nothing; one that interrupted the request is still there.
        return Response(INTERRUPTED, headers={"X-Request-Id": response.headers["X-Request-Id"]}, media_type=JSON)

    async def img2img(self, request: Request) -> Response:
        """Always refuse."""
        return await self._lifecycle.serve_lookup(request, self._refuse, respond)

    async def _refuse(self, request: Request, context: RequestContext) -> Response:
        context.client = self._access.client(request)
        text = "There is no img2img here, as only the edges of an image count: send it to /sdapi/v1/txt2img, as the"
        raise wrong("init_images", f"{text} image of a ControlNet unit with module 'canny'.")

    async def _answer(self, request: Request, context: RequestContext) -> Response:
        context.client = self._access.client(request)
        parsed = await self._parse(request, context.client)
        steps = self._generator.rules.resolved(parsed.params.options).steps
        job = Job(parsed.request.force_task_id or context.id, context.id, parsed.params.number_of_images, steps)
        images = context.images = await self._images(request, parsed, job, context)
        sent = images if parsed.request.send_images is not False else []
        answer = Txt2ImgAnswer(
            [pybase64.b64encode_as_string(image.file) for image in sent],
            parsed.request,
            msgspec.json.encode(info(parsed, images, self._settings, self._metadata, job)).decode(),
        )
        return Response(msgspec.json.encode(answer), media_type=JSON)

    async def _parse(self, request: Request, client: str) -> ParsedRequest:
        faults = Faults()
        body = await bodies.json_body(request, self._generator.rules, _json, faults=faults)
        size = sum(map(len, body.scripts.values()))
        parsed = await bodies.in_thread_if_large(size, parse, body, self._generator.rules, self._options, faults)
        del body  # with the text of its images
        for mask in parsed.masks:
            mask.check(*await self._finder.range_of(request, client, mask.file, mask.name))
        return replace(parsed, masks=())

    async def _images(
        self, request: Request, parsed: ParsedRequest, job: Job, context: RequestContext
    ) -> list[GeneratedImage]:
        with self._jobs.running(context.client, job):
            job.generating = asyncio.ensure_future(
                self._generator.generate(request, parsed.params, context, job.on_progress)
            )
            try:
                return await unless_gone(request, job.generating)
            except asyncio.CancelledError:
                if job.interrupted:
                    raise ClientGoneError from None
                raise
