"""Requests in hand, and how far each is."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, assert_never

import pybase64

from app.compat.automatic.errors import wrong
from app.compat.automatic.structs import ProgressAnswer, State
from app.errors import quoted
from scheduler.messages import QueuePosition
from workers.jobs import Advanced, Previewed, ProgressEvent, Started

HOW = "Send id_task, which is the force_task_id of your txt2img request."
UNNAMED = f"{HOW} Your latest job is found without it if the service has API keys or sets server.shared_progress."
UNKNOWN = f"You have no running job of that name. {HOW}"


class Job:
    """A request for so many images, of so many steps each, that `making` makes.

    Its client may name it as `task_id`, which is its own choice, or as `request_id`.
    """

    def __init__(self, task_id: str, request_id: str, images: int, steps: int) -> None:
        self.task_id = task_id
        self.names = {task_id, request_id}
        self.timestamp = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
        self.interrupted = False
        self.making: asyncio.Future[Any] | None = None
        self._steps = steps
        self._done = [0] * images
        self._running_since: float | None = None
        self._standings: dict[int, QueuePosition] = {}  # of the images that wait
        self._preview: bytes | None = None

    def follow(self, image: int, news: ProgressEvent) -> None:
        """Something is new."""
        match news:
            case QueuePosition():
                self._standings[image] = news
            case Started():
                self._standings.pop(image, None)
                self._done[image] = 0  # it may have run before, on a worker that was lost
                self._running_since = self._running_since or time.monotonic()
            case Advanced(done, total):
                self._done[image], self._steps = done, total
            case Previewed(jpeg):
                self._preview = jpeg
            case _ as unreachable:
                assert_never(unreachable)

    def interrupt(self) -> None:
        """Make no more of it."""
        self.interrupted = True
        if self.making is not None:
            self.making.cancel()

    def progress(self, *, with_image: bool) -> ProgressAnswer:
        """How far it is."""
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
        """As long as before for as much as before; while it waits, until it starts, as far as that can be told."""
        if self._running_since is None or not share:
            return (self._standing and self._standing.seconds) or 0.0
        return (time.monotonic() - self._running_since) * (1 - share) / share

    @property
    def _standing(self) -> QueuePosition | None:
        """The place of the image that starts first; None once one has started."""
        if self._running_since is not None:
            return None
        return min(self._standings.values(), key=lambda standing: standing.position, default=None)

    def _text(self) -> str | None:
        return None if self._standing is None else f"Waiting; {self._standing.position} images start before yours."


class Jobs:
    """Running jobs by client, in the order in which they came.

    A client finds its jobs by their names. Without a name it finds its latest, but only where `latest` allows that:
    where API keys tell clients apart, or the machine is private. One address may be that of many people.
    """

    def __init__(self, *, latest: bool) -> None:
        self._latest = latest
        self._running: defaultdict[str, list[Job]] = defaultdict(list)

    @contextmanager
    def running(self, client: str, job: Job) -> Iterator[None]:
        """It is in hand meanwhile. Raises Problem where another job of the client has its name."""
        if self._named(client, job.task_id) is not None:
            text = f"force_task_id is {quoted(job.task_id)}, which another running job has; choose a new one."
            raise wrong("force_task_id", text)
        self._running[client].append(job)
        try:
            yield
        finally:
            self._running[client].remove(job)
            if not self._running[client]:
                del self._running[client]

    def find(self, client: str, name: str) -> Job | None:
        """A client's job of that name; its latest if the name is empty."""
        if name:
            return self._named(client, name)
        jobs = self._running.get(client)
        return jobs[-1] if jobs and self._latest else None

    def hint(self, name: str) -> str | None:
        """How to name a job, for a client that found none. It is the same whether other clients have jobs or not."""
        if name:
            return UNKNOWN
        return None if self._latest else UNNAMED

    def _named(self, client: str, name: str) -> Job | None:
        return next((job for job in self._running.get(client, ()) if name in job.names), None)
