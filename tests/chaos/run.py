"""A run: the right images are learnt, then traffic and faults, then quiet, then all is held against the promises."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from tests.chaos import verdict
from tests.chaos.attacks import EDGES, LARGE_WEBP
from tests.chaos.footprint import Footprint, footprint
from tests.chaos.injector import Injector
from tests.chaos.lives import Lives
from tests.chaos.profiles import DEADLINE_SECONDS, PROFILES
from tests.chaos.records import Sheet
from tests.chaos.traffic import Traffic

WITH_ENDS = 0.4  # of the time the server itself is ended as well; the one that comes then lives through the rest
SCRAPE_SECONDS = 5.0
SCRAPES_TOLD = 12  # progress is told with every twelfth: once a minute
SCRAPES = 16  # at once: more than the threads that answer them
SETTLING_SECONDS = 2.0  # for sockets and threads to go
VANISHING_SECONDS = 10.0


@dataclass
class Run:
    """One run; `sheet`, `lives`, `before` and `after` are its result."""

    profile: str
    seed: int
    seconds: float
    sheet: Sheet = field(default_factory=Sheet)
    before: Footprint | None = None
    after: Footprint | None = None

    def __post_init__(self) -> None:
        self._profile = PROFILES[self.profile]
        self.lives = Lives(self._profile, self.seed)
        deadline = float(str(self._profile.overrides.get("SERVER__DEADLINE", DEADLINE_SECONDS)))
        self._traffic = Traffic(self.lives, self.sheet, random.Random(self.seed), deadline)
        self._injector = Injector(self._profile, self.lives, self._traffic, self.sheet, random.Random(-self.seed - 1))
        self._workers = int(str(self._profile.overrides["WORKERS__CPU_WORKERS"]))

    async def run(self) -> Sequence[str]:
        """All of it; what was violated."""
        named = set(os.listdir("/dev/shm"))
        try:
            await self._learn()
            await self.lives.begin()
            await self._storm(WITH_ENDS * self.seconds, ends=True)
            await self._count()
            await self.lives.finish(signal.SIGTERM)
            await self.lives.begin()
            self.before = await self._measure()
            await self._storm((1 - WITH_ENDS) * self.seconds, ends=False)
            self.after = await self._measure()
            self.sheet.violations += self.after.excess(over=self.before)
            await self._count()
        finally:
            if self.lives.all and self.lives.current.service.process.poll() is None:
                await self.lives.finish(signal.SIGTERM)
        left = await _left_in_shared_memory(named)
        self.sheet.violations += [f"/dev/shm has {name} that was not there" for name in sorted(left)]
        self.sheet.violations += verdict.violations(self.sheet.requests, self.lives.all)
        return self.sheet.violations

    async def _learn(self) -> None:
        await self.lives.begin(faults=False)
        await self.lives.until_ready(workers=self._workers)
        await self._traffic.learn()
        await self.lives.finish(signal.SIGTERM)

    async def _storm(self, seconds: float, *, ends: bool) -> None:
        """Traffic and faults together; afterwards nothing is under way."""
        until = self.lives.now + seconds
        scraping = asyncio.create_task(self._scrape())
        await asyncio.gather(
            self._traffic.run(self._profile.requests_per_second, until), self._injector.run(until, ends=ends)
        )
        scraping.cancel()
        await self._traffic.ended()

    async def _scrape(self) -> None:
        for number in count(1):
            await asyncio.sleep(SCRAPE_SECONDS)
            if number % SCRAPES_TOLD == 0:
                print(f"after {self.lives.now:.0f} s: {self.sheet.progress}", file=sys.stderr, flush=True)
            try:
                await self.lives.scrape()
            except (OSError, TimeoutError):
                continue

    async def _count(self) -> None:
        """Nothing is under way: the counts must be exact."""
        scrape = await self.lives.scrape()
        self.sheet.violations += verdict.totals(scrape, self.sheet.requests, self.lives.current.number)

    async def _measure(self) -> Footprint:
        await self.lives.until_ready(workers=self._workers)
        self._traffic.send("good", self._profile.flood)
        for kind in ("huge", EDGES, LARGE_WEBP):  # each process has had its peak, and the one for edges is there
            self._traffic.send(kind, self._workers)
        await self._traffic.ended()
        await asyncio.gather(*(self.lives.scrape() for _ in range(SCRAPES)))
        await self.lives.until_ready(workers=self._workers)
        await asyncio.sleep(SETTLING_SECONDS)
        return footprint(self.lives.current.service.process.pid)


async def _left_in_shared_memory(named: set[str]) -> set[str]:
    """Names in /dev/shm that were not there before, and stay."""
    for _ in range(round(VANISHING_SECONDS)):
        if not (left := set(os.listdir("/dev/shm")) - named):
            break
        await asyncio.sleep(1)
    return left
