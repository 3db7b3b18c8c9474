"""The routes of the service."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from app.api.edges import Edges
from app.api.generation import Generation
from app.api.health import Health
from app.api.page import SettingsEndpoint
from app.errors import on_exception
from app.http.static_files import DOCS, PAGE, StaticFolder
from app.lifecycle import RequestLifecycle
from app.openapi import Description

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The endpoints. `compatible` are those of OpenAI's and AUTOMATIC1111's APIs."""

    generation: Generation
    edges: Edges
    health: Health
    description: Description
    page_settings: SettingsEndpoint
    compatible: Sequence[Route]


def create_app(
    lifecycle: RequestLifecycle,
    endpoints: Endpoints,
    registry: CollectorRegistry,
    lifespan: Lifespan,
    middleware: Sequence[Middleware],
    read_devices: Callable[[], None] = lambda: None,
) -> Starlette:
    """The ASGI application. `read_devices` is called in a thread before each scrape of `registry`.

    A path answers directly with a slash at its end and without. Only the page of `/docs` is redirected, as its links
    are relative.
    """

    async def metrics(request: Request) -> Response:
        await asyncio.to_thread(read_devices)  # NVML takes milliseconds per device, and requests must not wait for it
        # On the event loop: it reads the scheduler's state, which nothing else may change meanwhile.
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    page, docs = StaticFolder(PAGE), StaticFolder(DOCS)
    app = Starlette(
        routes=[
            Route("/", page.respond),
            Route("/docs", docs.respond),
            Route("/docs/", _to_docs),
            *with_slash(
                Route("/generation", endpoints.generation.respond, methods=["POST"]),
                Route("/edges", endpoints.edges.respond, methods=["POST"]),
                Route("/healthz", endpoints.health.alive),
                Route("/readyz", endpoints.health.ready),
                Route("/metrics", metrics),
                Route("/openapi.json", endpoints.description.respond),
                Route("/docs/{name}", docs.respond),
                Route("/page/{name}", page.respond),
                Route("/settings.json", endpoints.page_settings.respond),
                *endpoints.compatible,
            ),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: lifecycle.on_routing_error, Exception: on_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


async def _to_docs(request: Request) -> Response:
    """Remove the slash: the page's links are relative to a path without it. So is this, as a proxy may add a prefix."""
    return RedirectResponse("../docs", 308)


def with_slash(*routes: Route) -> Iterator[Route]:
    """Each route, and the same with a slash at its end, except those with parameters."""
    for route in routes:
        yield route
        if "{" not in route.path:
            yield Route(f"{route.path}/", route.endpoint, methods=sorted(route.methods or ()))
