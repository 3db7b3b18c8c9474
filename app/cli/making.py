"""Pictures through a pool of our own, several at a time, until all are made or somebody has had enough."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.cli import results
from app.cli.plan import Item, Plan
from app.cli.progress import Progress, hand_over, say
from app.errors import Problem
from app.making import error_of
from app.params import RequestFields
from app.pictures import effort, measured
from app.rules import Rules
from app.settings import Settings
from app.start import build_pool
from scheduler import messages as m
from workers.devices import Placement
from workers.folders import replace_file
from workers.pool import NothingServedError, Pool
from workers.secrets import forget_secrets

LONG = 10 * 365 * 86400.0  # seconds: nobody sets a deadline here
TICK_SECONDS = 0.5
NAMED = 10  # pictures in a message


class HopelessError(Exception):
    """No picture can be made any more; the message says why."""


class InterruptedByError(Exception):
    """A signal has ended it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal = signal_number


@dataclass(slots=True)
class Tally:
    """How it went, by the pictures' names."""

    made: int = 0
    skipped: int = 0
    failed: list[Path] = field(default_factory=list)


class Maker:
    """Makes the pictures of a plan; of a folder those that are not there, or all of them `again`."""

    def __init__(self, settings: Settings, plan: Plan, fields: RequestFields, *, again: bool) -> None:
        self.tally = Tally()
        self.folder = plan.folder
        self._rules = Rules.of(settings)
        self._recipe = results.Recipe(settings, fields, plan.file_format)
        self._warned: dict[str, dict[Path, None]] = {}  # and the pictures, each once, in order
        if plan.folder is not None:
            results.tidy(plan.folder, {item.target.name for item in plan.items})
        everything = again or plan.folder is None
        self._items = [item for item in plan.items if everything or self._is_wanted(item)]

    def __len__(self) -> int:
        return len(self._items)

    async def run(self, pool: Pool, width: int, progress: Progress) -> None:
        """Make all that are not there, `width` at a time."""
        items = iter(self._items)
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(self._work(items, pool, progress))
        self._warn_rest()

    def _is_wanted(self, item: Item) -> bool:
        """Whether a picture is to be made; one that cannot be is told of."""
        if not item.target.exists():
            return True
        if (told := results.read(item.target)) is None:
            self._fail(item, f"{item.target} is not from here, or was changed: move it, or replace it by --again")
            return False
        try:
            is_there = self._recipe.made(told, item.source.read_bytes(), item.seed)
        except OSError as error:
            self._fail(item, error.strerror or str(error))
            return False
        self.tally.skipped += is_there
        return not is_there

    async def _work(self, items: Iterator[Item], pool: Pool, progress: Progress) -> None:
        for item in items:
            try:
                if not await self._make(item, pool, progress):
                    return
            except Problem as problem:
                self._fail(item, problem.detail)
            except OSError as error:
                self._fail(item, error.strerror or str(error))
            progress.ended(item)

    async def _make(self, item: Item, pool: Pool, progress: Progress) -> bool:
        """Make a picture; False if the pool has ended. Raises Problem and OSError."""
        picture = await asyncio.to_thread(item.source.read_bytes)
        task = self._recipe.task(picture, item.seed)
        steps = self._rules.resolved(task.options).steps
        work, length, size = effort(measured(picture, self._rules, None), steps, self._rules)
        job = m.Job(0, time.monotonic() + LONG, work, length=length, size=size)
        answer = await pool.generate(task, job, progress.watch(item))
        if isinstance(answer.outcome, m.Draining):
            return False
        if not isinstance(answer.outcome, m.Done):
            raise error_of(answer.outcome, None)
        self._warn(item, answer.outcome.image.warnings)
        await asyncio.to_thread(replace_file, item.target, answer.image)
        self.tally.made += 1
        hand_over(item.target)
        return True

    def _warn(self, item: Item, warnings: Sequence[str]) -> None:
        """Tell what a person should know of a picture; the same of others is told by `_warn_rest`."""
        for warning in warnings:
            sources = self._warned.setdefault(warning, {})
            if not sources:
                say(f"{item.source}: {warning}")
            sources[item.source] = None

    def _warn_rest(self) -> None:
        """Name the other pictures that the same was to be said of."""
        for warning, (_, *others) in self._warned.items():
            if others:
                names = ", ".join(map(str, others[:NAMED])) + ", ..." * (len(others) > NAMED)
                say(f"The same goes for {names}: {warning}")

    def _fail(self, item: Item, reason: str) -> None:
        say(f"{item.source}: {reason}")
        self.tally.failed.append(item.source)


# -------------------------------------------------------------------------------------------------------- the workers


async def make(settings: Settings, placement: Placement, cores: int, maker: Maker) -> None:
    """Start the workers, make everything, and end them.

    Raises HopelessError, and InterruptedByError when a signal came: then all ends at once.
    """
    width = (settings.engine.slots + 1) * len(placement.devices)
    hope = _Hope(len(placement.devices), asyncio.get_running_loop().create_future())
    with Progress(len(maker)) as progress, _interruptible() as interrupted:
        forget_secrets(os.environ)
        pool = build_pool(_alone(settings, width), placement, cores, hope.observer(progress.loaded))
        running = asyncio.create_task(pool.run())
        work = asyncio.create_task(maker.run(pool, width, progress))
        ticking = asyncio.create_task(_tick(progress))
        try:
            await asyncio.wait((work, running, interrupted, hope.gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ticking.cancel()
            if not work.done():
                work.cancel()
                _kill(pool)  # they would finish their step first, which may take long
            await _end(pool, running, work)
    if interrupted.done():
        raise InterruptedByError(interrupted.result())
    if hope.gone.done():
        raise HopelessError(hope.gone.result())
    _pass_on(running, work)


async def _tick(progress: Progress) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        progress.tick()


async def _end(pool: Pool, running: "asyncio.Task[None]", work: "asyncio.Task[None]") -> None:
    pool.drain(0.0)
    await asyncio.wait((running, work))


def _pass_on(running: "asyncio.Task[None]", work: "asyncio.Task[None]") -> None:
    """Raises what went wrong, if anything did."""
    if isinstance(error := running.exception(), NothingServedError):
        raise HopelessError(str(error))
    running.result()
    work.result()


def _kill(pool: Pool) -> None:
    """End the workers at once; the pool reaps them."""
    for process in pool.processes.values():
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _alone(settings: Settings, width: int) -> Settings:
    """There is one client, who may have all there is."""
    limits = settings.scheduler
    return replace(
        settings, scheduler=replace(limits, client_share=1.0, lone_share=1.0, max_queue=max(limits.max_queue, width))
    )


@dataclass(slots=True)
class _Hope:
    """Whether any of the workers can be started at all; `gone` says why not."""

    workers: int
    gone: "asyncio.Future[str]"
    _lost: dict[str, str] = field(default_factory=dict)
    _ready: bool = False

    def observer(self, loaded: Callable[[], None]) -> Callable[[m.Event, Sequence[m.Command]], None]:
        """Who looks on; `loaded` is called when a worker is ready."""

        def observe(event: m.Event, commands: Sequence[m.Command]) -> None:
            match event:
                case m.WorkerReady():
                    self._ready = True
                    loaded()
                case m.WorkerExited(worker, reason) if not self._ready:
                    self._lost[worker] = reason
                    if len(self._lost) == self.workers and not self.gone.done():
                        listed = "; ".join(f"{name}: {why}" for name, why in self._lost.items())
                        self.gone.set_result(f"no worker can be started ({listed})")

        return observe


@contextmanager
def _interruptible() -> "Iterator[asyncio.Future[int]]":
    """A future of the first signal that asks for an end; a second one is obeyed on the spot."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[int] = loop.create_future()

    def note(number: int) -> None:
        if came.done():
            os._exit(128 + number)
        came.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, note, number)
    try:
        yield came
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
