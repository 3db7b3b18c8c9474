"""Requests in hand, and how far each is."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, assert_never

import pybase64

from app.compat.automatic.structs import ProgressAnswer, State
from scheduler.messages import Standing
from workers.watching import Advanced, News, Previewed, Started

IDLE = ProgressAnswer(0.0, 0.0, State())


class Job:
    """A request for so many pictures, of so many steps each, that `making` makes."""

    def __init__(self, images: int, steps: int) -> None:
        self.timestamp = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
        self.interrupted = False
        self.making: asyncio.Future[Any] | None = None
        self._steps = steps
        self._done = [0] * images
        self._running_since: float | None = None
        self._standing: Standing | None = None
        self._preview: bytes | None = None

    def follow(self, image: int, news: News) -> None:
        """Something is new."""
        match news:
            case Standing():
                self._standing = news
            case Started():
                self._standing = None
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
        return ProgressAnswer(share, self._seconds_left(share), state, image, self._text())

    def _seconds_left(self, share: float) -> float:
        """As long as before for as much as before; while it waits, until it starts, as far as that can be told."""
        if self._running_since is None or not share:
            return (self._standing and self._standing.seconds) or 0.0
        return (time.monotonic() - self._running_since) * (1 - share) / share

    def _text(self) -> str | None:
        return None if self._standing is None else f"It waits; {self._standing.position} start before it."


class Jobs:
    """Those in hand, by whose they are, in the order in which they came."""

    def __init__(self) -> None:
        self._running: defaultdict[str, list[Job]] = defaultdict(list)

    @contextmanager
    def running(self, client: str, job: Job) -> Iterator[None]:
        """It is in hand meanwhile."""
        self._running[client].append(job)
        try:
            yield
        finally:
            self._running[client].remove(job)
            if not self._running[client]:
                del self._running[client]

    def latest(self, client: str) -> Job | None:
        """A client's, if there is one."""
        jobs = self._running.get(client)
        return jobs[-1] if jobs else None
