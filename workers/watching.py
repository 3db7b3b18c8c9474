"""Who follows a picture while it is made, and what they are told."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from scheduler.messages import JobId, Standing, Start, Stepped, WorkerId
from workers import wire

log = logging.getLogger("contour.watching")


@dataclass(frozen=True, slots=True)
class Started:
    """A worker begins with it; more than once if workers are lost."""


@dataclass(frozen=True, slots=True)
class Advanced:
    """`done` of its `total` denoising steps are taken."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Previewed:
    """What it looks like so far: a small JPEG."""

    jpeg: bytes


News: TypeAlias = Standing | Started | Advanced | Previewed  # Standing: it waits
Watch: TypeAlias = Callable[[News], None]


class Watching:
    """Knows which slot a watched job is in, and passes on what its worker reports."""

    def __init__(self) -> None:
        self._watches: dict[JobId, Watch] = {}
        self._tenants: dict[tuple[WorkerId, int], tuple[JobId, int]] = {}  # and the generation

    def __contains__(self, job: JobId) -> bool:
        return job in self._watches

    def add(self, job: JobId, watch: Watch) -> None:
        """Somebody follows a job from now on."""
        self._watches[job] = watch

    def drop(self, job: JobId) -> None:
        """The job is answered, or nobody waits for it any more."""
        self._watches.pop(job, None)

    def waits(self, job: JobId, standing: Standing) -> None:
        """A job has this place in the queue."""
        self._tell(job, standing)

    def started(self, start: Start) -> None:
        """A slot has a new tenant."""
        if start.job in self._watches:
            self._tenants[start.worker, start.slot] = start.job, start.generation
            self._tell(start.job, Started())
        else:
            self._tenants.pop((start.worker, start.slot), None)

    def stepped(self, report: Stepped) -> None:
        """Reports come in order and a slot is reused after its tenant has left: so they are about the present one."""
        for (slot, done), total in zip(report.done, report.totals, strict=True):
            if (tenant := self._tenants.get((report.worker, slot))) is not None:
                self._tell(tenant[0], Advanced(done, total))

    def previewed(self, worker: WorkerId, report: wire.Preview) -> None:
        """Drawn beside all else, one may come after its tenant has left."""
        job, generation = self._tenants.get((worker, report.slot), (None, None))
        if job is not None and generation == report.generation:
            self._tell(job, Previewed(report.jpeg))

    def _tell(self, job: JobId, news: News) -> None:
        if (watch := self._watches.get(job)) is None:
            return
        try:
            watch(news)
        except Exception:  # it is told in the middle of the pool's work, which is not to suffer from it
            log.exception("who watches job %d failed, and is told no more", job)
            self.drop(job)
