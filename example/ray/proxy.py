"""Middleware for Serve's proxies: a request whose replica was lost is sent to another one.

Serve tries no request again that a replica has begun; its client would read `Internal Server Error`. Here it may be
tried again, as whoever makes an image makes the same. In the environment of `ray start`, on each node:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=example.ray.proxy:middlewares
"""

import re
import time
from math import ceil

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Error, Problem, respond

ATTEMPTS = 2  # as `scheduler.attempts`: a request may be what ends replicas
KEPT_BYTES = 32 * 2**20  # of a body, as `server.max_body_bytes`; the service refuses more
WAIT = re.compile(rb"(?<![\w-])(wait\s*=\s*\"?)(\d{1,9})", re.IGNORECASE)  # in a Prefer header (RFC 7240)


def middlewares() -> list[Middleware]:
    """Serve calls this where it starts a proxy."""
    return [Middleware(Again)]


class Again:
    """ASGI middleware: what the application leaves without any answer is asked once more, then answered with 503.

    A second try has what is left of the seconds that a client asked for; one that asked for none has as many again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, request, answer = time.monotonic(), _Request(receive), _Response(send)
        for attempt in range(ATTEMPTS):
            spent = ceil(time.monotonic() - began) if attempt else 0
            await self._app(_later(scope, spent), request.reader(), answer)
            if answer.begun or request.gone:
                return
            if not request.whole:
                break
        detail = "The servers that had this request were lost; it may be sent again."
        await respond(Problem(Error.BUSY, detail, retry_after=1.0))(scope, receive, send)


class _Request:
    """A client's messages, kept as they are read so that they can be read again."""

    def __init__(self, receive: Receive) -> None:
        self.whole = True  # all that was read is kept
        self.gone = False
        self._receive = receive
        self._kept: list[Message] = []
        self._bytes = 0

    def reader(self) -> Receive:
        """An ASGI `receive` that begins at the beginning."""
        again = iter(list(self._kept))

        async def receive() -> Message:
            for message in again:
                return message
            return await self._next()

        return receive

    async def _next(self) -> Message:
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        self._bytes += len(message.get("body", b""))
        self.whole = self.whole and self._bytes <= KEPT_BYTES
        if not self.whole:
            self._kept.clear()
        elif not self.gone:
            self._kept.append(message)
        return message


class _Response:
    """An ASGI `send` that knows whether anything was sent. Serve adds an X-Request-Id; the service's own counts."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        self.begun = True
        if message["type"] == "http.response.start":
            message = {**message, "headers": _named_once(list(message["headers"]))}
        await self._send(message)


def _named_once(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    names = [number for number, (name, _) in enumerate(headers) if name.lower() == b"x-request-id"]
    return [header for number, header in enumerate(headers) if number not in names[1:]]


def _later(scope: Scope, spent: int) -> Scope:
    """The request as it is so many seconds after it came: a client that waits for a time has less of it left.

    A copy, as what is around an application may add to it.
    """

    def left(found: "re.Match[bytes]") -> bytes:
        return found[1] + str(max(0, int(found[2]) - spent)).encode()

    headers = [
        (name, WAIT.sub(left, value) if name.lower() == b"prefer" else value) for name, value in scope["headers"]
    ]
    return {**scope, "headers": headers}
