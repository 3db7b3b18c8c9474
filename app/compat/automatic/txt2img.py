"""`POST /sdapi/v1/txt2img`: a prompt, and an image in ControlNet's arguments."""

import asyncio
from dataclasses import replace

import msgspec
import pybase64
from starlette.requests import Request
from starlette.responses import Response

from app import bodies
from app.access import Access
from app.compat.automatic.asking import Asked, Body, asked
from app.compat.automatic.errors import respond, wrong
from app.compat.automatic.info import info
from app.compat.automatic.jobs import Job, Jobs
from app.compat.automatic.options import present_options
from app.compat.automatic.structs import Txt2ImgAnswer, Txt2ImgRequest
from app.desk import LEFT, Desk, Ticket
from app.edges import EdgeFinder
from app.errors import Faults
from app.generation import unless_gone
from app.making import ClientGoneError, Maker, Picture
from app.settings import Settings
from app.start import about
from workers.engine.metadata import Metadata

JSON = "application/json"
_json = msgspec.json.Decoder(Body, strict=False)

INTERRUPTED = msgspec.json.encode(Txt2ImgAnswer([], Txt2ImgRequest(), '{"notes":["The request was interrupted."]}'))


class Txt2Img:
    """The endpoint."""

    def __init__(
        self, desk: Desk, access: Access, maker: Maker, finder: EdgeFinder, jobs: Jobs, settings: Settings
    ) -> None:
        self._desk = desk
        self._access = access
        self._maker = maker
        self._finder = finder
        self._jobs = jobs
        self._settings = settings
        self._options = present_options(settings)
        self._metadata = Metadata(settings.engine, about(settings))

    async def txt2img(self, request: Request) -> Response:
        """Images; none, if they were interrupted."""
        response = await self._desk.serve(request, self._answer, respond)
        if response.status_code != LEFT:
            return response
        # Who has left reads nothing; who interrupted is still there.
        return Response(INTERRUPTED, headers={"X-Request-Id": response.headers["X-Request-Id"]}, media_type=JSON)

    async def img2img(self, request: Request) -> Response:
        """A refusal, always."""
        return await self._desk.aside(request, self._refuse, respond)

    async def _refuse(self, request: Request, ticket: Ticket) -> Response:
        ticket.client = self._access.client(request)
        text = "There is no img2img here, as only the edges of an image count: send it to /sdapi/v1/txt2img, as the"
        raise wrong("init_images", f"{text} image of a ControlNet unit with module 'canny'.")

    async def _answer(self, request: Request, ticket: Ticket) -> Response:
        ticket.client = self._access.client(request)
        what = await self._asked(request, ticket.client)
        steps = self._maker.rules.resolved(what.params.options).steps
        job = Job(what.request.force_task_id or ticket.name, ticket.name, what.params.number_of_images, steps)
        pictures = ticket.pictures = await self._pictures(request, what, job, ticket)
        sent = pictures if what.request.send_images is not False else []
        answer = Txt2ImgAnswer(
            [pybase64.b64encode_as_string(picture.file) for picture in sent],
            what.request,
            msgspec.json.encode(info(what, pictures, self._settings, self._metadata, job)).decode(),
        )
        return Response(msgspec.json.encode(answer), media_type=JSON)

    async def _asked(self, request: Request, client: str) -> Asked:
        faults = Faults()
        body = await bodies.json_body(request, self._maker.rules, _json, faults=faults)
        size = sum(map(len, body.scripts.values()))
        what = await bodies.in_thread_if_large(size, asked, body, self._maker.rules, self._options, faults)
        del body  # with the text of its images
        for mask in what.masks:
            mask.check(*await self._finder.range_of(request, client, mask.file, mask.name))
        return replace(what, masks=())

    async def _pictures(self, request: Request, what: Asked, job: Job, ticket: Ticket) -> list[Picture]:
        with self._jobs.running(ticket.client, job):
            job.making = asyncio.ensure_future(self._maker.make(request, what.params, ticket, job.follow))
            try:
                return await unless_gone(request, job.making)
            except asyncio.CancelledError:
                if job.interrupted:
                    raise ClientGoneError from None
                raise
