"""What clients ask beside pictures: how far they are, to make no more of them, and what there is."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app import bodies
from app.access import Access
from app.compat.automatic import options
from app.compat.automatic.catalogue import catalogue
from app.compat.automatic.errors import respond
from app.compat.automatic.jobs import IDLE, Jobs
from app.compat.automatic.options import Options
from app.compat.automatic.structs import Nothing
from app.compat.automatic.txt2img import JSON, Txt2Img
from app.desk import Desk, Ticket
from app.fields import Rules
from app.making import Maker
from app.settings import Settings

YES = ("true", "1", "yes", "on")

_settings = msgspec.json.Decoder(dict[str, Any])


class Service:
    """All paths of the interface."""

    def __init__(self, desk: Desk, access: Access, maker: Maker, settings: Settings) -> None:
        self._desk = desk
        self._access = access
        self._rules: Rules = maker.rules
        self._jobs = Jobs()
        self._options = Options(sd_model_checkpoint=settings.server.model_name)
        self._txt2img = Txt2Img(desk, access, maker, self._jobs, settings)
        self._catalogue = catalogue(settings)

    def routes(self) -> Sequence[Route]:
        """What answers where."""
        return [
            Route("/sdapi/v1/txt2img", self._txt2img.txt2img, methods=["POST"]),
            Route("/sdapi/v1/img2img", self._txt2img.img2img, methods=["POST"]),
            Route("/sdapi/v1/progress", self.progress),
            Route("/sdapi/v1/interrupt", self.interrupt, methods=["POST"]),
            Route("/sdapi/v1/options", self.options, methods=["GET", "POST"]),
            *(Route(path, self.listed) for path in self._catalogue),
        ]

    async def progress(self, request: Request) -> Response:
        """How far the client's latest request is."""
        return await self._look_up(request, self._progress)

    async def interrupt(self, request: Request) -> Response:
        """Make no more of the client's latest request."""
        return await self._look_up(request, self._interrupt)

    async def listed(self, request: Request) -> Response:
        """What there is of something."""
        return await self._look_up(request, lambda request, client: self._catalogue[request.scope["path"]])

    async def options(self, request: Request) -> Response:
        """The settings; to set them to what they are changes nothing, and anything else is refused."""
        return await self._desk.aside(request, self._get_or_set, respond)

    async def _look_up(self, request: Request, found: Callable[[Request, str], Any]) -> Response:
        async def work(request: Request, ticket: Ticket) -> Response:
            ticket.client = self._access.client(request)
            return Response(msgspec.json.encode(found(request, ticket.client)), media_type=JSON)

        return await self._desk.aside(request, work, respond)

    def _progress(self, request: Request, client: str) -> Any:
        if (job := self._jobs.latest(client)) is None:
            return IDLE
        return job.progress(with_image=request.query_params.get("skip_current_image", "").lower() not in YES)

    def _interrupt(self, request: Request, client: str) -> Any:
        if (job := self._jobs.latest(client)) is not None:
            job.interrupt()
        return Nothing()

    async def _get_or_set(self, request: Request, ticket: Ticket) -> Response:
        ticket.client = self._access.client(request)
        if request.method != "POST":
            return Response(msgspec.json.encode(self._options), media_type=JSON)
        wanted = bodies.parsed_json(await bodies.read(request, self._rules), _settings)
        options.check(wanted, self._options)
        return Response(b"null", media_type=JSON)
