"""Faults from outside: signals to workers and to the server, and more requests at once than the queue takes."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable

from tests.chaos.attacks import EDGES, UNFINISHED
from tests.chaos.footprint import Identity, family
from tests.chaos.lives import Lives
from tests.chaos.profiles import Profile
from tests.chaos.records import Fault, Sheet
from tests.chaos.traffic import Traffic
from tests.service.running import named

BRIEFLY_SECONDS = 0.5  # that a stopped worker should survive
BODIES = 40  # unfinished at once: more than the budget has room for
PREFER_BUSY = 0.8  # the chance that a busy worker is hit, where there is one


class Injector:
    """Does something to the service every now and then."""

    def __init__(self, profile: Profile, lives: Lives, traffic: Traffic, sheet: Sheet, draw: random.Random) -> None:
        self._profile = profile
        self._lives = lives
        self._traffic = traffic
        self._sheet = sheet
        self._draw = draw
        self._stopped: set[asyncio.Task[None]] = set()

    async def run(self, until: float, *, ends: bool) -> None:
        """Until then; the server itself is among the victims if `ends`."""
        faults: dict[Callable[[], Awaitable[None]], float] = {
            self._kill_worker: 5,
            self._stop_worker: 4,
            self._stop_worker_briefly: 2,
            self._terminate_worker: 2,
            self._fill_queue: 2,
            self._fill_buffers: 1,
            self._flood_edges: 1,
        }
        if ends:
            faults |= {self._kill_server: 2, self._drain_server: 1}
        while (pause := self._draw.expovariate(1 / self._profile.pause_seconds)) + self._lives.now < until:
            await asyncio.sleep(pause)
            await self._draw.choices(list(faults), list(faults.values()))[0]()
        if self._stopped:
            await asyncio.wait(self._stopped)

    async def _kill_worker(self) -> None:
        await self._signal("SIGKILL of a worker", signal.SIGKILL)

    async def _terminate_worker(self) -> None:
        await self._signal("SIGTERM of a worker", signal.SIGTERM)

    async def _stop_worker(self) -> None:
        await self._stop("SIGSTOP of a worker", self._profile.stop_seconds)

    async def _stop_worker_briefly(self) -> None:
        await self._stop("SIGSTOP of a worker, briefly", BRIEFLY_SECONDS)

    async def _fill_queue(self) -> None:
        self._note("a full queue", None)
        self._traffic.send("good", self._profile.flood)

    async def _fill_buffers(self) -> None:
        self._note("unfinished bodies", None)
        self._traffic.send(UNFINISHED, BODIES)

    async def _flood_edges(self) -> None:
        self._note("a flood of edges", None)
        self._traffic.send(EDGES, self._profile.flood)

    async def _kill_server(self) -> None:
        await self._replace("SIGKILL of the server", signal.SIGKILL)

    async def _drain_server(self) -> None:
        await self._replace("SIGTERM of the server", signal.SIGTERM)

    async def _replace(self, kind: str, sig: signal.Signals) -> None:
        self._note(kind, self._lives.current.service.process.pid)
        await self._lives.finish(sig)
        await self._lives.begin()

    async def _stop(self, kind: str, seconds: float) -> None:
        worker = await self._signal(kind, signal.SIGSTOP)
        if worker is not None:
            task = asyncio.create_task(_continue(worker, seconds))
            self._stopped.add(task)
            task.add_done_callback(self._stopped.discard)

    async def _signal(self, kind: str, sig: signal.Signals) -> Identity | None:
        """Signal some worker, a busy one rather; None when there was none."""
        worker = await self._worker()
        if worker is None:
            return None
        self._note(kind, worker.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, sig)
        return worker

    async def _worker(self) -> Identity | None:
        try:
            workers = (await self._lives.readiness())["workers"]
        except (OSError, TimeoutError):
            return None
        below = family(self._lives.current.service.process.pid)
        processes = named(each.pid for each in below)
        busy = {processes.get(f"contour {worker['id']}") for worker in workers if worker["running"]} - {None}
        there = {processes.get(f"contour {worker['id']}") for worker in workers}
        pids = busy if busy and self._draw.random() < PREFER_BUSY else there
        found = [each for each in below if each.pid in pids]
        return self._draw.choice(found) if found else None

    def _note(self, kind: str, process: int | None) -> None:
        self._sheet.faults.append(Fault(self._lives.now, kind, self._lives.current.number, process))


async def _continue(worker: Identity, seconds: float) -> None:
    """One that had nothing to do is not missed while it is stopped, and goes on."""
    await asyncio.sleep(seconds)
    if worker.there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGCONT)
