"""Server-sent events (WHATWG HTML, 9.2): the progress of an image while it is made."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias, assert_never

import msgspec
import pybase64
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import Error
from scheduler.messages import QueuePosition
from workers.jobs import Advanced, Previewed, ProgressEvent, Started

log = logging.getLogger("contour.events")

MEDIA_TYPE = "text/event-stream"
QUIET_SECONDS = 15.0  # after which a comment keeps proxies from taking the connection for dead


class QueuedEvent(msgspec.Struct, frozen=True):
    """An image waits: `position` others start before it, and it starts in about `seconds`, null if that is unknown."""

    image: int
    position: int
    seconds: float | None


class StartedEvent(msgspec.Struct, frozen=True):
    """Work on an image begins; it begins again if its worker exits."""

    image: int


class StepEvent(msgspec.Struct, frozen=True):
    """`done` of the `total` steps of an image are done."""

    image: int
    done: int
    total: int


class PreviewEvent(msgspec.Struct, frozen=True):
    """What an image looks like so far: a small JPEG in standard base64."""

    image: int
    jpeg_base64: str


Progress: TypeAlias = QueuedEvent | StartedEvent | StepEvent | PreviewEvent

# What an event is called. `image` counts from 0. Beside these there are `done` and `error`, of which one is the last.
NAMES: Mapping[type[Progress], str] = {
    QueuedEvent: "queued",
    StartedEvent: "started",
    StepEvent: "step",
    PreviewEvent: "preview",
}


def event(name: str, data: bytes) -> bytes:
    """One event; `data` is JSON on one line."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def told(progress: Progress) -> bytes:
    """One event of progress."""
    return event(NAMES[type(progress)], msgspec.json.encode(progress))


def told_of(image: int, news: ProgressEvent) -> bytes:
    """What is new of a picture, as one event."""
    return told(_progress(image, news))


class Feed:
    """What is new of some pictures and has not been sent: of each kind the latest, as a client that reads slowly needs
    no more. `told` makes an event of it."""

    def __init__(self, told: Callable[[int, ProgressEvent], bytes] = told_of) -> None:
        self._told = told
        self._pending: dict[tuple[int, type], ProgressEvent] = {}
        self._there = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._pending)

    def follow(self, image: int, news: ProgressEvent) -> None:
        """Something is new."""
        key = image, type(news)
        self._pending.pop(key, None)  # so that it comes after what came before it
        self._pending[key] = news
        self._there.set()

    async def wait(self) -> None:
        """Wait until there is something."""
        await self._there.wait()

    def take(self) -> bytes:
        """All that there is, as events."""
        events = b"".join(self._told(image, news) for (image, _), news in self._pending.items())
        self._pending.clear()
        self._there.clear()
        return events


class EventStream(Response):
    """Sends what is fed, until `making` is done; then its `last` event. A client that leaves cancels it.

    `last` makes the event, and the request's outcome, of the finished task. `ended` is called with the outcome.
    """

    def __init__(
        self,
        feed: Feed,
        making: "asyncio.Task[bytes]",
        last: "Callable[[asyncio.Task[bytes]], tuple[bytes, str]]",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # The type as a header, as Starlette would add a charset, and the format is UTF-8 by itself.
        super().__init__(headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", **(headers or {})})
        del self.headers["content-length"]
        self.ended: Callable[[str], None] = lambda outcome: None
        self._feed = feed
        self._making = making
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; until the end, or until the client leaves."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(disconnected(receive))
        outcome = "abandoned"
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                outcome = _outcome(sending)
        finally:
            for task in (sending, leaving, self._making):
                task.cancel()
            if self._making.done() and not self._making.cancelled():
                self._making.exception()  # it may be that nobody is left to be told
            self.ended(outcome)

    async def _send(self, send: Send) -> str:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while not self._making.done():
            news = asyncio.ensure_future(self._feed.wait())
            try:
                await asyncio.wait((news, self._making), timeout=QUIET_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
            if not self._making.done():
                await _body(send, self._feed.take() or b": still there\n\n", more=True)
        last, outcome = self._last(self._making)
        await _body(send, self._feed.take() + last, more=False)
        return outcome


def _outcome(sending: "asyncio.Task[str]") -> str:
    """How a stream ended. An error of ours is none of the client's, which it would look like if it were not told."""
    error = sending.exception()
    if error is None:
        return sending.result()
    if isinstance(error, OSError):  # how some servers tell that the client has left
        return "abandoned"
    log.error("a stream of events failed", exc_info=error)
    return Error.INTERNAL.slug


async def disconnected(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _progress(image: int, news: ProgressEvent) -> Progress:
    match news:
        case QueuePosition(position, seconds):
            return QueuedEvent(image, position, seconds)
        case Started():
            return StartedEvent(image)
        case Advanced(done, total):
            return StepEvent(image, done, total)
        case Previewed(jpeg):
            return PreviewEvent(image, pybase64.b64encode_as_string(jpeg))
        case _ as unreachable:
            assert_never(unreachable)
