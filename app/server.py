"""Routes and lifespan, nothing else."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.docs import Docs
from app.edges import Edges
from app.errors import on_exception
from app.generation import Generation
from app.health import Health
from app.lifecycle import RequestLifecycle
from app.openapi import Description
from app.page import Page

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Who answers. `compatible` are the paths of interfaces that others have made."""

    generation: Generation
    edges: Edges
    health: Health
    description: Description
    docs: Docs
    page: Page
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
        await asyncio.to_thread(read_devices)  # NVML takes milliseconds a device, and requests are not to wait for it
        # On the event loop: it reads the scheduler's state, which nothing else may change meanwhile.
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    app = Starlette(
        routes=[
            Route("/", endpoints.page.respond),
            Route("/docs", endpoints.docs.respond),
            Route("/docs/", endpoints.docs.redirect),
            *with_slash(
                Route("/generation", endpoints.generation.respond, methods=["POST"]),
                Route("/edges", endpoints.edges.respond, methods=["POST"]),
                Route("/healthz", endpoints.health.alive),
                Route("/readyz", endpoints.health.ready),
                Route("/metrics", metrics),
                Route("/openapi.json", endpoints.description.respond),
                Route("/docs/{name}", endpoints.docs.respond),
                Route("/page/{name}", endpoints.page.respond),
                Route("/settings.json", endpoints.page.settings),
                *endpoints.compatible,
            ),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: lifecycle.on_routing_error, Exception: on_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def with_slash(*routes: Route) -> Iterator[Route]:
    """Each route, and the same with a slash at its end; but not those with parameters."""
    for route in routes:
        yield route
        if "{" not in route.path:
            yield Route(f"{route.path}/", route.endpoint, methods=sorted(route.methods or ()))
