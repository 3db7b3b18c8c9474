"""The middleware of the service, from the outside in, and the headers that every answer has."""

import logging
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import SAFE_HEADERS
from app.http.access import Access
from app.http.buffers import BodyBuffers
from app.http.origins import ANY, OriginGuard, is_loopback
from app.http.prefix import Proxied
from app.lifecycle import RequestLifecycle
from app.settings import ServerConfig, Settings

log = logging.getLogger("contour")

RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]  # as ASGI has them
# The headers that a page of another origin may read.
EXPOSED_HEADERS = ("ETag", "Retry-After", "Server-Timing", "X-Contour-Warning", "X-Request-Id")


def middlewares(settings: Settings, lifecycle: RequestLifecycle, access: Access) -> Sequence[Middleware]:
    """The middleware in order, the outermost first. Logs what is open to everybody."""
    server = settings.server
    origins = [each.lower() for each in server.allowed_origins]  # as browsers write them
    stack = [Middleware(SafeHeaders)]
    if server.trusted_proxies or server.root_path:
        stack.append(Middleware(Proxied, server.trusted_proxies, server.root_path))
    stack.append(Middleware(OriginGuard, hosts(server), origins, lifecycle.refuse))
    if origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=EXPOSED_HEADERS,
                allow_private_network=True,  # a page from the internet asks, as this machine is not on it
            )
        )
    return [*stack, Middleware(BodyBuffers, settings.max_buffered_bytes, access.client)]


def hosts(server: ServerConfig) -> Sequence[str]:
    """The names that are accepted in a Host header."""
    if not is_loopback(server.host) and not server.has_keys:
        log.warning("Listening on %s without API keys: anybody who can reach it can use it", server.host)
    if server.allowed_hosts or is_loopback(server.host):
        return [server.host, *(each.lower() for each in server.allowed_hosts)]
    log.info("Listening on %s: any Host header is accepted; server.allowed_hosts limits it to names", server.host)
    return [ANY]


class SafeHeaders:
    """ASGI middleware: adds headers that forbid caches to keep an answer and browsers to guess its type.

    A header that the answer has already stays: the page's files may be cached.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                missing = [header for header in RAW_HEADERS if header[0] not in names]
                message["headers"] = [*message["headers"], *missing]
            await send(message)

        await self._app(scope, receive, send_safely)
