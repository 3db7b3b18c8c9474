"""The running txt2img requests and their progress, for `/progress` and `/interrupt`."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, assert_never

import pybase64

from app.api.automatic1111.structs import ProgressAnswer, State, wrong
from app.errors import quoted
from scheduler.messages import QueuePosition
from workers.jobs import Advanced, Previewed, ProgressEvent, Started

HOW = "Send id_task, which is the force_task_id of your txt2img request."
UNNAMED = (
    f"{HOW} Without it, your latest request is found only if the service has API keys or sets server.shared_progress."
)
UNKNOWN = f"You have no running request with that name. {HOW}"


class RunningRequest:
    """A txt2img request that is being answered; `generating` is the asyncio task to cancel.

    Its client may name it by the `task_id` that it chose, or by the `request_id` of the answer.
    """

    def __init__(self, task_id: str, request_id: str, images: int, steps: int) -> None:
        self.task_id = task_id
        self.names = {task_id, request_id}
        self.timestamp = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
        self.interrupted = False
        self.generating: asyncio.Future[Any] | None = None
        self._steps = steps
        self._done = [0] * images
        self._running_since: float | None = None
        self._queue_positions: dict[int, QueuePosition] = {}  # of the waiting images
        self._preview: bytes | None = None

    def on_progress(self, image: int, event: ProgressEvent) -> None:
        match event:
            case QueuePosition():
                self._queue_positions[image] = event
            case Started():
                self._queue_positions.pop(image, None)
                self._done[image] = 0  # it starts again if its worker exited
                self._running_since = self._running_since or time.monotonic()
            case Advanced(done, total):
                self._done[image], self._steps = done, total
            case Previewed(jpeg):
                self._preview = jpeg
            case _ as unreachable:
                assert_never(unreachable)

    def interrupt(self) -> None:
        self.interrupted = True
        if self.generating is not None:
            self.generating.cancel()

    def progress(self, *, with_image: bool) -> ProgressAnswer:
        share = sum(self._done) / (self._steps * len(self._done))
        finished = sum(done == self._steps for done in self._done)
        state = State(
            interrupted=self.interrupted,
            job=f"txt2img {self.timestamp}",
            job_count=len(self._done),
            job_timestamp=self.timestamp,
            job_no=finished,
            sampling_step=min(self._done),
            sampling_steps=self._steps,
        )
        image = pybase64.b64encode_as_string(self._preview) if with_image and self._preview else None
        return ProgressAnswer(share, self._seconds_left(share), state, image, self._text(), self.task_id)

    def _seconds_left(self, share: float) -> float:
        """Estimated from the time that the finished share took; while the request waits, the time until it starts."""
        if self._running_since is None or not share:
            return (self._queue_position and self._queue_position.seconds) or 0.0
        return (time.monotonic() - self._running_since) * (1 - share) / share

    @property
    def _queue_position(self) -> QueuePosition | None:
        """Of the image that starts first; None once one has started."""
        if self._running_since is not None:
            return None
        return min(self._queue_positions.values(), key=lambda queued: queued.position, default=None)

    def _text(self) -> str | None:
        queued = self._queue_position
        return None if queued is None else f"Waiting; {queued.position} images start before yours."


class RunningRequests:
    """Running requests by client, in the order in which they came.

    A client finds its requests by their names. Without a name it finds its latest, but only where `latest` allows that:
    where API keys tell clients apart, or the machine is private. One address may be that of many people.
    """

    def __init__(self, *, latest: bool) -> None:
        self._latest = latest
        self._running: defaultdict[str, list[RunningRequest]] = defaultdict(list)

    @contextmanager
    def register(self, client: str, request: RunningRequest) -> Iterator[None]:
        """Register a request. Raises Problem if another request of the client has its name."""
        if self._named(client, request.task_id) is not None:
            text = f"force_task_id is {quoted(request.task_id)}, which another running request has; choose a new one."
            raise wrong("force_task_id", text)
        self._running[client].append(request)
        try:
            yield
        finally:
            self._running[client].remove(request)
            if not self._running[client]:
                del self._running[client]

    def find(self, client: str, name: str) -> RunningRequest | None:
        """Find a client's request by name, or its latest if the name is empty."""
        if name:
            return self._named(client, name)
        requests = self._running.get(client)
        return requests[-1] if requests and self._latest else None

    def hint(self, name: str) -> str | None:
        """Advice for a client that found no request. It does not reveal whether other clients have any."""
        if name:
            return UNKNOWN
        return None if self._latest else UNNAMED

    def _named(self, client: str, name: str) -> RunningRequest | None:
        return next((request for request in self._running.get(client, ()) if name in request.names), None)
