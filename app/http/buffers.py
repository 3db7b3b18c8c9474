"""One budget for the bytes of all bodies, and of the images in them, while their requests are answered.

Each request may be small enough, and all of them together may still be more than there is memory for. A client may
hold at most as many bytes as it leaves free, so that one client alone cannot take all of the budget.
"""

from collections import Counter
from collections.abc import Callable

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Error, Problem

# A body is kept until it is read, and so is the image decoded from it, until its request is answered.
COPIES = 2
# Of each body, not counted, so that a client that has used its share can still ask for progress and cancel jobs.
FREE_BYTES = 2**14
RETRY_SECONDS = 2.0  # a guess: there is room when some request is answered


def needed(body_bytes: int) -> int:
    """The least budget in which a client that is alone can send a body of `body_bytes`."""
    return 2 * COPIES * body_bytes  # half of it is always left free for others


class BodyBuffers:
    """ASGI middleware that counts the bytes of bodies as they arrive, and forgets them when the request is answered.

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
                self._take(client, taken := COPIES * (length - FREE_BYTES) - held)
                held += taken
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._give_back(client, held)

    def _take(self, client: str, taken: int) -> None:
        total, own = self._total + taken, self._held[client] + taken
        if own > self._most - total:
            detail = f"Too many bytes of unfinished requests are in memory. Try again in {RETRY_SECONDS:g} s."
            raise Problem(Error.BUSY, detail, retry_after=RETRY_SECONDS)
        self._total, self._held[client] = total, own

    def _give_back(self, client: str, held: int) -> None:
        self._total -= held
        self._held[client] -= held
        if not self._held[client]:
            del self._held[client]
