"""The paths of the API, and all endpoints but those that generate: progress, interrupt, options and lists."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.api.automatic1111.detect import Detect
from app.api.automatic1111.options import Options, catalogue, check, present_options
from app.api.automatic1111.running import RunningRequests
from app.api.automatic1111.structs import MAX_ITEMS, InterruptAnswer, JobName, Name, ProgressAnswer, State, respond
from app.api.automatic1111.txt2img import JSON, Txt2Img
from app.api.edges import EdgeFinder
from app.generator import ImageGenerator
from app.lifecycle import RequestContext, RequestLifecycle
from app.metrics import Metrics
from app.params import Rules
from app.parsing import bodies
from app.settings import Settings
from app.startup import about
from workers.engine.metadata import Metadata

YES = ("true", "1", "yes", "on")
SMALL_BYTES = 64 * 2**10  # of a body that has no image in it

_settings = msgspec.json.Decoder(Annotated[dict[Name, Any], Meta(max_length=MAX_ITEMS)])
_job_name = msgspec.json.Decoder(JobName)


def routes(
    lifecycle: RequestLifecycle, generator: ImageGenerator, finder: EdgeFinder, metrics: Metrics, settings: Settings
) -> Iterator[Route]:
    """All paths of the API."""
    running = RunningRequests(latest=settings.server.shared_progress or settings.server.has_keys)
    present, metadata = present_options(settings), Metadata(settings.engine, about(settings))
    txt2img = Txt2Img(lifecycle, generator, finder, running, settings, present, metadata)
    lookups = Lookups(lifecycle, generator.rules, running, present, catalogue(settings))
    yield Route("/sdapi/v1/txt2img", txt2img.txt2img, methods=["POST"])
    yield Route("/sdapi/v1/img2img", txt2img.img2img, methods=["POST"])
    yield Route("/controlnet/detect", Detect(lifecycle, finder, metrics).respond, methods=["POST"])
    yield Route("/sdapi/v1/progress", lookups.progress)
    yield Route("/sdapi/v1/interrupt", lookups.interrupt, methods=["POST"])
    yield Route("/sdapi/v1/options", lookups.options, methods=["GET", "POST"])
    for path in lookups.catalogue:
        yield Route(path, lookups.listed)


@dataclass(frozen=True, slots=True)
class Lookups:
    """The endpoints that generate nothing. `present` are the web UI's settings, `catalogue` its lists by path."""

    lifecycle: RequestLifecycle
    rules: Rules
    running: RunningRequests
    present: Options
    catalogue: Mapping[str, Any]

    async def progress(self, request: Request) -> Response:
        return await self._look_up(request, self._progress)

    async def interrupt(self, request: Request) -> Response:
        return await self._look_up(request, self._interrupt)

    async def listed(self, request: Request) -> Response:
        return await self._look_up(request, self._listed)

    async def options(self, request: Request) -> Response:
        """Get the settings. Setting them to their present values is accepted, and anything else is refused."""
        return await self._look_up(request, self._get_or_set)

    async def _look_up(self, request: Request, found: Callable[[Request, str], Awaitable[Any]]) -> Response:
        async def work(request: Request, context: RequestContext) -> Response:
            return Response(msgspec.json.encode(await found(request, context.client)), media_type=JSON)

        return await self.lifecycle.serve_lookup(request, work, respond)

    async def _listed(self, request: Request, client: str) -> Any:
        return self.catalogue[request.scope["path"].rstrip("/")]

    async def _progress(self, request: Request, client: str) -> ProgressAnswer:
        query = bodies.query(request)
        name = bodies.converted(query, JobName).name
        if (current := self.running.find(client, name)) is None:
            return ProgressAnswer(0.0, 0.0, State(), textinfo=self.running.hint(name))
        return current.progress(with_image=query.get("skip_current_image", "").lower() not in YES)

    async def _interrupt(self, request: Request, client: str) -> InterruptAnswer:
        name = bodies.converted(bodies.query(request), JobName).name
        if _has_body(request):
            name = (await bodies.json_body(request, self.rules, _job_name, SMALL_BYTES)).name or name
        if (current := self.running.find(client, name)) is None:
            return InterruptAnswer(self.running.hint(name))
        current.interrupt()
        return InterruptAnswer()

    async def _get_or_set(self, request: Request, client: str) -> Options | None:
        if request.method != "POST":
            return self.present
        wanted = await bodies.json_body(request, self.rules, _settings, SMALL_BYTES)
        check(wanted, self.present)
        return None


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
