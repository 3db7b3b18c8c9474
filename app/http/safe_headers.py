"""Headers that every answer has, whoever made it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import SAFE_HEADERS

RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]  # as ASGI has them


class SafeHeaders:
    """ASGI middleware: no cache keeps what was made for one client, no browser guesses another type.

    What an answer says itself stays as it is: the page's files are cached on purpose.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the headers."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                missing = [header for header in RAW_HEADERS if header[0] not in names]
                message["headers"] = [*message["headers"], *missing]
            await send(message)

        await self._app(scope, receive, send_safely)
