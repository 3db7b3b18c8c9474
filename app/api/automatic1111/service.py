"""The paths of the API, and all endpoints but those that generate: progress, interrupt, options and lists."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app import bodies
from app.api.automatic1111 import options
from app.api.automatic1111.detect import Detect
from app.api.automatic1111.jobs import Jobs
from app.api.automatic1111.options import catalogue, present_options
from app.api.automatic1111.structs import MAX_ITEMS, InterruptAnswer, JobName, Name, ProgressAnswer, State, respond
from app.api.automatic1111.txt2img import JSON, Txt2Img
from app.api.edges import EdgeFinder
from app.generator import ImageGenerator
from app.http.access import Access
from app.lifecycle import RequestContext, RequestLifecycle
from app.metrics import Metrics
from app.rules import Rules
from app.settings import Settings

YES = ("true", "1", "yes", "on")
SMALL_BYTES = 64 * 2**10  # of a body that has no image in it

_settings = msgspec.json.Decoder(Annotated[dict[Name, Any], Meta(max_length=MAX_ITEMS)])
_job_name = msgspec.json.Decoder(JobName)


class Service:
    """The endpoints of the API."""

    def __init__(
        self,
        lifecycle: RequestLifecycle,
        access: Access,
        generator: ImageGenerator,
        finder: EdgeFinder,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._lifecycle = lifecycle
        self._access = access
        self._rules: Rules = generator.rules
        self._jobs = Jobs(latest=settings.server.shared_progress or settings.server.has_keys)
        self._options = present_options(settings)
        self._txt2img = Txt2Img(lifecycle, access, generator, finder, self._jobs, settings)
        self._detect = Detect(lifecycle, access, finder, generator.rules, metrics)
        self._catalogue = catalogue(settings)

    def routes(self) -> Sequence[Route]:
        return [
            Route("/sdapi/v1/txt2img", self._txt2img.txt2img, methods=["POST"]),
            Route("/sdapi/v1/img2img", self._txt2img.img2img, methods=["POST"]),
            Route("/controlnet/detect", self._detect.respond, methods=["POST"]),
            Route("/sdapi/v1/progress", self.progress),
            Route("/sdapi/v1/interrupt", self.interrupt, methods=["POST"]),
            Route("/sdapi/v1/options", self.options, methods=["GET", "POST"]),
            *(Route(path, self.listed) for path in self._catalogue),
        ]

    async def progress(self, request: Request) -> Response:
        return await self._look_up(request, self._progress)

    async def interrupt(self, request: Request) -> Response:
        return await self._look_up(request, self._interrupt)

    async def listed(self, request: Request) -> Response:
        return await self._look_up(request, self._listed)

    async def options(self, request: Request) -> Response:
        """Get the settings. Setting them to their present values is accepted, and anything else is refused."""
        return await self._lifecycle.serve_lookup(request, self._get_or_set, respond)

    async def _look_up(self, request: Request, found: Callable[[Request, str], Awaitable[Any]]) -> Response:
        async def work(request: Request, context: RequestContext) -> Response:
            context.client = self._access.client(request)
            return Response(msgspec.json.encode(await found(request, context.client)), media_type=JSON)

        return await self._lifecycle.serve_lookup(request, work, respond)

    async def _listed(self, request: Request, client: str) -> Any:
        return self._catalogue[request.scope["path"].rstrip("/")]

    async def _progress(self, request: Request, client: str) -> ProgressAnswer:
        query = bodies.query(request)
        name = bodies.converted(query, JobName).name
        if (job := self._jobs.find(client, name)) is None:
            return ProgressAnswer(0.0, 0.0, State(), textinfo=self._jobs.hint(name))
        return job.progress(with_image=query.get("skip_current_image", "").lower() not in YES)

    async def _interrupt(self, request: Request, client: str) -> InterruptAnswer:
        name = bodies.converted(bodies.query(request), JobName).name
        if _has_body(request):
            name = (await bodies.json_body(request, self._rules, _job_name, SMALL_BYTES)).name or name
        if (job := self._jobs.find(client, name)) is None:
            return InterruptAnswer(self._jobs.hint(name))
        job.interrupt()
        return InterruptAnswer()

    async def _get_or_set(self, request: Request, context: RequestContext) -> Response:
        context.client = self._access.client(request)
        if request.method != "POST":
            return Response(msgspec.json.encode(self._options), media_type=JSON)
        wanted = await bodies.json_body(request, self._rules, _settings, SMALL_BYTES)
        options.check(wanted, self._options)
        return Response(b"null", media_type=JSON)


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
