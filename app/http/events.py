"""Server-sent events (WHATWG HTML, 9.2): the progress of a request's images."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias, assert_never

import msgspec
import pybase64
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import Error
from app.http.answers import disconnected
from scheduler.messages import QueuePosition
from workers.jobs import Advanced, Previewed, ProgressEvent, Started

log = logging.getLogger("contour.events")

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE_SECONDS = 15.0  # then a comment is sent, so that proxies do not take the connection for dead


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
    """A preview of an unfinished image: a small JPEG in standard base64."""

    image: int
    jpeg_base64: str


Progress: TypeAlias = QueuedEvent | StartedEvent | StepEvent | PreviewEvent

# The names of events. `image` counts from 0. The last event of a stream is `done` or `error`.
NAMES: Mapping[type[Progress], str] = {
    QueuedEvent: "queued",
    StartedEvent: "started",
    StepEvent: "step",
    PreviewEvent: "preview",
}


def encode_event(name: str, data: bytes) -> bytes:
    """Encode an event; `data` is JSON on one line."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def encode_progress(image: int, event: ProgressEvent) -> bytes:
    """Encode the progress of an image as an event."""
    progress = _progress(image, event)
    return encode_event(NAMES[type(progress)], msgspec.json.encode(progress))


class Feed:
    """The progress that has not been sent yet. Of each image and kind of event it keeps the latest, so that a client
    that reads slowly costs no memory."""

    def __init__(self, encode: Callable[[int, ProgressEvent], bytes] = encode_progress) -> None:
        self._encode = encode
        self._pending: dict[tuple[int, type], ProgressEvent] = {}
        self._has_events = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._pending)

    def publish(self, image: int, event: ProgressEvent) -> None:
        key = image, type(event)
        self._pending.pop(key, None)  # to the end: events are sent in the order in which they came
        self._pending[key] = event
        self._has_events.set()

    async def wait(self) -> None:
        await self._has_events.wait()

    def take(self) -> bytes:
        """Encode and remove all that is pending."""
        events = b"".join(self._encode(image, event) for (image, _), event in self._pending.items())
        self._pending.clear()
        self._has_events.clear()
        return events


class EventStream(Response):
    """Sends the feed's events until the `generating` task is done, then the last event. A disconnect cancels the task.

    `last_event` makes the event, and the request's outcome, of the finished task. `ended` is called with the outcome.
    """

    def __init__(
        self,
        feed: Feed,
        generating: "asyncio.Task[bytes]",
        last_event: "Callable[[asyncio.Task[bytes]], tuple[bytes, str]]",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # As a header: given a media type, Starlette would add a charset, but the format is always UTF-8.
        super().__init__(headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", **(headers or {})})
        del self.headers["content-length"]
        self.ended: Callable[[str], None] = lambda outcome: None
        self._feed = feed
        self._generating = generating
        self._last_event = last_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(disconnected(receive))
        outcome = "abandoned"
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                outcome = _outcome(sending)
        finally:
            for task in (sending, leaving, self._generating):
                task.cancel()
            if self._generating.done() and not self._generating.cancelled():
                self._generating.exception()  # retrieved, or asyncio would complain
            self.ended(outcome)

    async def _send(self, send: Send) -> str:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while not self._generating.done():
            waiting = asyncio.ensure_future(self._feed.wait())
            try:
                await asyncio.wait(
                    (waiting, self._generating), timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                waiting.cancel()
            if not self._generating.done():
                await _body(send, self._feed.take() or b": still there\n\n", more=True)
        last, outcome = self._last_event(self._generating)
        await _body(send, self._feed.take() + last, more=False)
        return outcome


def _outcome(sending: "asyncio.Task[str]") -> str:
    """The outcome of a stream. An error of our own is logged, and does not count as the client's disconnect."""
    error = sending.exception()
    if error is None:
        return sending.result()
    if isinstance(error, OSError):  # how some servers report that the client has left
        return "abandoned"
    log.error("A stream of events failed", exc_info=error)
    return Error.INTERNAL.slug


async def _body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _progress(image: int, event: ProgressEvent) -> Progress:
    match event:
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
