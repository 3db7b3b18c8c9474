"""The middleware of the service, from the outside in, and the headers that every answer has."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import SAFE_HEADERS, Error, Problem
from app.http.access import Access
from app.http.origins import ANY, OriginGuard, is_loopback
from app.http.prefix import Proxied
from app.lifecycle import RequestLifecycle
from app.settings import BODY_COPIES, ServerConfig, Settings

log = logging.getLogger("contour")

RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]  # as ASGI has them
# Of each body, not counted, so that a client that has used its share can still ask for progress and cancel jobs.
FREE_BYTES = 2**14
RETRY_SECONDS = 2.0  # a guess: there is room when some request is answered
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
        log.warning("Listening on %s without API keys: anyone who can reach it can use it", server.host)
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


class BodyBuffers:
    """ASGI middleware: one budget for the bytes of all bodies, and of the images in them, while they are answered.

    Each request may be small enough, and all of them together may still be more than there is memory for. A client may
    hold at most as many bytes as it leaves free, so that one client alone cannot take all of the budget.

    Reading a body raises Problem (503) when there is no room for more of it: in all, `most` bytes are held. `client`
    returns the client of a request.
    """

    def __init__(self, app: ASGIApp, most: int, client: Callable[[HTTPConnection], str]) -> None:
        self._app = app
        self._most = most
        self._client = client
        self._held: Counter[str] = Counter()  # bytes, by client
        self._total = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; what it sends is counted until it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client, length, held = "", 0, 0

        async def receive_counted() -> Message:
            nonlocal client, length, held
            message = await receive()
            length += len(message.get("body", b""))
            if length > FREE_BYTES:
                client = client or self._client(HTTPConnection(scope))
                self._take(client, taken := BODY_COPIES * (length - FREE_BYTES) - held)
                held += taken
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._give_back(client, held)

    def _take(self, client: str, taken: int) -> None:
        total, own = self._total + taken, self._held[client] + taken
        if own > self._most - total:
            detail = f"The unfinished requests take too much memory. Try again in {RETRY_SECONDS:g} s."
            raise Problem(Error.BUSY, detail, retry_after=RETRY_SECONDS)
        self._total, self._held[client] = total, own

    def _give_back(self, client: str, held: int) -> None:
        self._total -= held
        self._held[client] -= held
        if not self._held[client]:
            del self._held[client]
