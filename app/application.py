"""The service as an ASGI application: its parts, its routes, and its workers, which live as long as its lifespan.

`app.cli.serve` puts an HTTP server around it; example/ray does without.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.api.automatic1111.routes import routes as automatic1111_routes
from app.api.edges import EdgeFinder, Edges
from app.api.generation import Generation
from app.api.health import Health
from app.api.metrics import MetricsEndpoint
from app.api.openai.images import routes as openai_routes
from app.api.page import SettingsEndpoint
from app.errors import on_exception
from app.generator import ImageGenerator
from app.http.access import Access, read_keys
from app.http.middleware import middlewares
from app.http.static_files import DOCS, PAGE, StaticFolder
from app.lifecycle import RequestLifecycle
from app.metrics import DeviceCollector, EngineCollector, Metrics, PoolCollector
from app.openapi import Description
from app.params import Rules
from app.settings import Settings
from app.startup import StartError, build_pool, check_runtime, runtime_in_words
from app.tracing import Tracing, tracing
from scheduler import messages as m
from workers.devices import DeviceChoice, Gpu, choose_devices
from workers.edge_process import EdgeService, EdgeSetup, edge_layout
from workers.engine.config import EngineConfig, rows_of
from workers.logs import suitable
from workers.machine import memory_limit
from workers.nvml import Nvml, driver_fault
from workers.pool import NothingServedError

log = logging.getLogger("contour")


class Application:
    """The service: `asgi` is what a server serves, lifespan included; the workers live as long as the lifespan.

    `environ` says which devices are used, by its CUDA_VISIBLE_DEVICES; their workers share `cores`. The lifespan is
    to run on a thread that stays: the kernel ends the workers with the thread that started them. `ended` is called
    when the pool has ended, drained or not.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        nvml: Nvml | None,
        cores: int,
        ended: Callable[[], None] = lambda: None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.failure: BaseException | None = None  # why the pool has ended, if not by a drain
        self._settings = settings
        self._nvml = nvml
        self._ended = ended
        self._ready: Callable[[], None] | None = ready
        self.placement = placement = choose_devices(environ, nvml, settings.workers.cpu_workers)
        check_runtime(settings, placement)
        self.metrics = Metrics(*_runtime(settings.engine, placement))
        self.pool = build_pool(settings, placement, cores, self._observe)
        self._devices = None if nvml is None else DeviceCollector(self.pool, nvml)
        for collector in (PoolCollector(self.pool), EngineCollector(self.pool), self._devices):
            if collector is not None:
                self.metrics.registry.register(collector)
        self._tracing = _tracing(environ)
        self._edges = _edge_service(settings)
        server = settings.server
        access = Access(read_keys(server.api_key, server.api_key_file))
        self.lifecycle = RequestLifecycle(self.metrics, access, self._tracing, log_requests=server.log_requests)
        self.asgi = Starlette(
            routes=list(_with_slash(self._routes())),
            middleware=middlewares(settings, self.lifecycle, access),
            exception_handlers={HTTPException: self.lifecycle.on_routing_error, Exception: on_exception},
            lifespan=self._lifespan,
        )
        self.asgi.router.redirect_slashes = False  # a path answers directly with a slash at its end and without
        _announce(settings, placement)
        if placement.on_gpu and (fault := driver_fault(nvml)) is not None:
            log.error(fault)

    def _routes(self) -> Iterator[Route]:
        """All endpoints, with the parts that they share."""
        settings, metrics, lifecycle = self._settings, self.metrics, self.lifecycle
        rules, core = Rules.of(settings), self.pool.core
        generator = ImageGenerator(self.pool, rules, settings.server, metrics)
        finder = EdgeFinder(self._edges, rules, lambda: core.draining)
        runtime = runtime_in_words(settings.engine, cuda=self.placement.on_gpu)
        health = Health(self.pool, self.placement.reason, runtime)
        page, docs = StaticFolder(PAGE), StaticFolder(DOCS)
        yield Route("/generation", Generation(lifecycle, generator).respond, methods=["POST"])
        yield Route("/edges", Edges(lifecycle, finder, metrics).respond, methods=["POST"])
        yield Route("/healthz", health.alive)
        yield Route("/readyz", health.ready)
        yield Route("/metrics", MetricsEndpoint(metrics.registry, self._devices).respond)
        yield Route("/openapi.json", Description(settings).respond)
        yield Route("/settings.json", SettingsEndpoint(settings).respond)
        yield Route("/", page.respond)
        yield Route("/page/{name}", page.respond)
        yield Route("/docs", docs.respond)
        yield Route("/docs/", _to_docs)
        yield Route("/docs/{name}", docs.respond)
        yield from openai_routes(lifecycle, generator, finder, settings.server.model_name)
        yield from automatic1111_routes(lifecycle, generator, finder, metrics, settings)

    def _observe(self, event: m.Event, commands: Sequence[m.Command]) -> None:
        self.metrics.observe(event, commands)
        if self._ready is not None and isinstance(event, m.WorkerReady | m.WorkerExited) and self._has_started():
            # Later: what else the worker has reported by now belongs to the start, and is logged before.
            asyncio.get_running_loop().call_soon(self._ready)
            self._ready = None

    def _has_started(self) -> bool:
        """Whether a worker is ready, and none is still to load for the first time."""
        loading = (m.WorkerState.NEW, m.WorkerState.LOADING)
        core = self.pool.core
        first = any(view.state in loading and not view.restarts for view in core.workers())
        return core.ready and not core.draining and not first

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """The pool runs beside the server, which need not wait for any model."""
        running = asyncio.create_task(self._run())
        running.add_done_callback(self._note_end)
        if self._nvml is not None:
            self._nvml.run(partial(self._alarm, asyncio.get_running_loop()))
        yield
        self.pool.drain(0.0)
        await asyncio.wait([running])
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _run(self) -> None:
        try:
            await self.pool.run()
        finally:
            await self._edges.close()

    def _note_end(self, running: "asyncio.Task[None]") -> None:
        self.failure = running.exception()
        if isinstance(self.failure, NothingServedError):
            log.error("All workers have failed; shutting down: %s", self.failure)
        elif self.failure is not None:
            log.error("An internal error stopped the scheduling of jobs; shutting down", exc_info=self.failure)
        self._ended()

    def _alarm(self, loop: asyncio.AbstractEventLoop, gpu: Gpu, xid: int) -> None:
        """In NVML's thread: a GPU has had an error."""
        if xid not in self._settings.workers.harmless_xids:
            uuids, reason = {gpu.uuid, *(gpu.instances or ())}, f"GPU {gpu.uuid} reports XID {xid}"
            with suppress(RuntimeError):  # the loop may have ended
                loop.call_soon_threadsafe(self.pool.fault, uuids, reason)


async def _to_docs(request: Request) -> Response:
    """Remove the slash: the page's links are relative to a path without it. So is this, as a proxy may add a prefix."""
    return RedirectResponse("../docs", 308)


def _with_slash(routes: Iterable[Route]) -> Iterator[Route]:
    """Each route, and the same with a slash at its end, except those that have one, or end with a parameter."""
    routes = list(routes)
    paths = {route.path for route in routes}
    for route in routes:
        yield route
        if not route.path.endswith(("/", "}")) and f"{route.path}/" not in paths:
            yield Route(f"{route.path}/", route.endpoint, methods=sorted(route.methods or ()))


def _tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Raises StartError."""
    try:
        return tracing(environ)
    except ValueError as error:
        raise StartError(str(error)) from None


def _runtime(engine: EngineConfig, placement: DeviceChoice) -> tuple[str, str]:
    """The runtime and the number format, as labels of a metric."""
    if engine.kind == "echo":
        return engine.kind, ""
    return engine.runtime_on(cuda=placement.on_gpu), engine.dtype_on(cuda=placement.on_gpu)


def _edge_service(settings: Settings) -> EdgeService:
    server, engine = settings.server, settings.engine
    budget = engine.decode_budget(memory_limit())
    setup = EdgeSetup(server.log_level, suitable(server.log_format), decoding_bytes=budget)
    return EdgeService(edge_layout(server.max_image_bytes, engine.size), setup)


def _announce(settings: Settings, placement: DeviceChoice) -> None:
    engine = settings.engine
    if engine.kind == "echo":
        log.info("Serving echo: images come back as they are")
    elif engine.model is not None:
        log.info(
            "Serving %s: %s, %d steps, guidance %g, short side %d px",
            engine.model.path,
            engine.sampler.name,
            engine.sampler.steps,
            engine.guidance_scale,
            engine.size.short_side,
        )
        log.info("Networks run by %s", runtime_in_words(engine, cuda=placement.on_gpu))
        if engine.prompt.negative and rows_of(engine.guidance_scale) == 1:
            log.warning("engine.prompt.negative has no effect, as engine.guidance_scale is 1 or less")
    log.log(logging.INFO if placement.on_gpu else logging.WARNING, placement.reason)
