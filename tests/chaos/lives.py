"""The server, one life after another: started, signalled, waited for, and what it left behind."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.chaos import late
from tests.chaos.footprint import Identity, family
from tests.chaos.profiles import DRAIN_SECONDS, Profile
from tests.chaos.records import FOREVER, Scrape
from tests.service.asking import get
from tests.service.running import Service
from workers.engine.faults import INJECTED

READY_SECONDS = 90.0
GONE_SECONDS = 10.0  # after the server's end, for its descendants
CLOSING_SECONDS = 25.0  # over the drain: answers are written, workers end, a slow machine
ASKING_SECONDS = 10.0  # for /readyz and /metrics
LOOKS_SECONDS = 0.1


class ChaosService(Service):
    """The server whose workers answer twice by chance."""

    module = "tests.chaos.server"


@dataclass(slots=True)
class Life:
    """One process of the server. `doomed`: when it was told to end, `gone`: when it had ended."""

    number: int
    service: Service
    began: float
    doomed: float = FOREVER
    gone: float = FOREVER
    end: str = ""
    exit_code: int | None = None
    survivors: list[Identity] = field(default_factory=list)
    scrapes: list[Scrape] = field(default_factory=list)

    @property
    def engine_faults(self) -> Counter[str]:
        """What its workers did to themselves, by their log."""
        return Counter(re.findall(rf"{INJECTED}: (\w+)", "".join(self.service.log)))


class Lives:
    """Starts and ends servers. Times are seconds since the run began, at `origin` (time.monotonic)."""

    def __init__(self, profile: Profile, seed: int) -> None:
        self.origin = time.monotonic()
        self.all: list[Life] = []
        self._profile = profile
        self._seed = seed

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.origin

    @property
    def current(self) -> Life:
        """The last one."""
        return self.all[-1]

    async def begin(self, *, faults: bool = True) -> Life:
        """Start a server; its port is bound then."""
        overrides = dict(self._profile.overrides)
        if faults:
            chances = {"SEED": self._seed + len(self.all), **self._profile.faults}
            overrides |= {f"ENGINE__FAULTS__{name}": value for name, value in chances.items()}
        os.environ[late.CHANCE] = str(self._profile.late if faults else 0.0)
        began = self.now
        service = await asyncio.to_thread(partial(ChaosService, self._profile.config, **overrides))
        self.all.append(Life(len(self.all), service, began))
        return self.current

    async def until_ready(self, *, workers: int) -> None:
        """Wait for so many workers."""
        deadline = self.now + READY_SECONDS
        while sum(worker["state"] == "ready" for worker in (await self.readiness())["workers"]) < workers:
            assert self.now < deadline, f"life {self.current.number} is not ready after {READY_SECONDS:g} s"
            await asyncio.sleep(LOOKS_SECONDS)

    async def readiness(self) -> dict[str, Any]:
        """The body of /readyz. Raises ConnectionError and TimeoutError."""
        async with asyncio.timeout(ASKING_SECONDS):
            answer = await get(self.current.service.url, "/readyz")
        body: dict[str, Any] = json.loads(answer.body)
        return body

    async def scrape(self) -> Scrape:
        """Read /metrics, and keep what they say. Raises ConnectionError and TimeoutError."""
        life, asked = self.current, self.now
        async with asyncio.timeout(ASKING_SECONDS):
            answer = await get(life.service.url, "/metrics")
        scrape = _scrape(answer.body.decode(), asked, self.now)
        life.scrapes.append(scrape)
        return scrape

    async def finish(self, sig: signal.Signals) -> None:
        """Signal the server, wait until it is gone, and see what of it is left."""
        life = self.current
        below = family(life.service.process.pid)
        life.doomed, life.end = self.now, sig.name
        life.service.process.send_signal(sig)
        life.exit_code = await asyncio.to_thread(_wait, life.service.process, DRAIN_SECONDS + CLOSING_SECONDS)
        life.gone = self.now
        life.survivors = await _survivors(below)
        await asyncio.to_thread(life.service.__exit__, None, None, None)


async def _survivors(below: list[Identity]) -> list[Identity]:
    """Who is still there after a while."""
    for _ in range(round(GONE_SECONDS / LOOKS_SECONDS)):
        if not any(each.there for each in below):
            break
        await asyncio.sleep(LOOKS_SECONDS)
    return [each for each in below if each.there]


def _wait(process: "subprocess.Popen[str]", seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _scrape(text: str, asked: float, answered: float) -> Scrape:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(name: str) -> int:
        return int(sum(sample.value for sample in samples if sample.name == name))

    requests = {
        sample.labels["outcome"]: int(sample.value) for sample in samples if sample.name == "contour_requests_total"
    }
    return Scrape(asked, answered, requests, total("contour_worker_losses_total"), total("contour_retries_total"))
