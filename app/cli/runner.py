"""Run the items of a plan through a pool of our own, several at a time, until all are done or a signal comes."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.cli import results
from app.cli.plan import Item, Plan
from app.cli.progress import Progress, hand_over, say
from app.errors import Problem
from app.generator import effort, error_of
from app.params import RequestFields, Rules
from app.parsing.input_image import measured
from app.settings import Settings
from app.startup import build_pool
from scheduler import messages as m
from workers.confinement import forget_secrets
from workers.devices import DeviceChoice
from workers.folders import replace_file
from workers.pool import NothingServedError, Pool

LONG = 10 * 365 * 86400.0  # seconds; requests of this command have no deadline
TICK_SECONDS = 0.5
NAMED = 10  # images in a message


def listed(paths: Sequence[Path]) -> str:
    """The first few paths, for a sentence."""
    return ", ".join(map(str, paths[:NAMED])) + ", ..." * (len(paths) > NAMED)


class NoWorkersError(Exception):
    """No worker can be started; the message says why."""


class InterruptedByError(Exception):
    """A signal has stopped the run."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal = signal_number


@dataclass(slots=True)
class Tally:
    """The counts of a run; `failed` has the names of the source images."""

    made: int = 0
    skipped: int = 0
    failed: list[Path] = field(default_factory=list)


class Runner:
    """Generates the images of a plan: in a folder those that are missing, or all of them with `again`."""

    def __init__(self, settings: Settings, plan: Plan, fields: RequestFields, *, again: bool) -> None:
        self.tally = Tally()
        self.folder = plan.folder
        self._rules = Rules.of(settings)
        self._shared_params = results.SharedParams(settings, fields, plan.file_format)
        self._warned: dict[str, dict[Path, None]] = {}  # by warning, the images that it is about, in order
        if plan.folder is not None:
            results.tidy(plan.folder, {item.target.name for item in plan.items})
        everything = again or plan.folder is None
        self._items = [item for item in plan.items if everything or self._is_wanted(item)]

    def __len__(self) -> int:
        return len(self._items)

    async def run(self, pool: Pool, width: int, progress: Progress) -> None:
        """Generate all missing images, `width` at a time."""
        items = iter(self._items)
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(self._work(items, pool, progress))
        self._warn_rest()

    def _is_wanted(self, item: Item) -> bool:
        """Whether an image must be generated. One that cannot be is reported."""
        if not item.target.exists():
            return True
        if (found := results.read(item.target)) is None:
            self._fail(
                item,
                f"{item.target} is not a result of this command, or was changed; move it, or replace it with --again",
            )
            return False
        try:
            is_there = self._shared_params.made(found, item.source.read_bytes(), item.seed)
        except OSError as error:
            self._fail(item, error.strerror or str(error))
            return False
        self.tally.skipped += is_there
        return not is_there

    async def _work(self, items: Iterator[Item], pool: Pool, progress: Progress) -> None:
        for item in items:
            try:
                if not await self._generate(item, pool, progress):
                    return
            except Problem as problem:
                self._fail(item, problem.detail)
            except OSError as error:
                self._fail(item, error.strerror or str(error))
            progress.ended(item)

    async def _generate(self, item: Item, pool: Pool, progress: Progress) -> bool:
        """Generate an image. Returns False if the pool has ended. Raises Problem and OSError."""
        image = await asyncio.to_thread(item.source.read_bytes)
        task = self._shared_params.task(image, item.seed)
        steps = self._rules.resolved(task.options).steps
        work, relative_steps, size = effort(measured(image, self._rules, None), steps, self._rules)
        job = m.Job(0, time.monotonic() + LONG, work, relative_steps=relative_steps, size=size)
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
        """Print a warning at the first image that it is about. `_warn_rest` names the others."""
        for warning in warnings:
            sources = self._warned.setdefault(warning, {})
            if not sources:
                say(f"{item.source}: {warning}")
            sources[item.source] = None

    def _warn_rest(self) -> None:
        """Name the other images that each warning is about."""
        for warning, (_, *others) in self._warned.items():
            if others:
                say(f"The same for {listed(others)}: {warning}")

    def _fail(self, item: Item, reason: str) -> None:
        say(f"{item.source}: {reason}")
        self.tally.failed.append(item.source)


# -------------------------------------------------------------------------------------------------------- the workers


async def run_plan(settings: Settings, placement: DeviceChoice, cores: int, runner: Runner) -> None:
    """Start the workers, generate everything, and stop them.

    Raises NoWorkersError, or InterruptedByError after a signal, which stops everything at once.
    """
    width = (settings.engine.slots + 1) * len(placement.devices)
    start = _StartWatch(len(placement.devices), asyncio.get_running_loop().create_future())
    with Progress(len(runner)) as progress, _interruptible() as interrupted:
        forget_secrets(os.environ)
        pool = build_pool(_alone(settings, width), placement, cores, start.observer(progress.loaded))
        running = asyncio.create_task(pool.run())
        work = asyncio.create_task(runner.run(pool, width, progress))
        ticking = asyncio.create_task(_tick(progress))
        try:
            await asyncio.wait((work, running, interrupted, start.failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ticking.cancel()
            pool.drain(0.0)
            if not work.done():
                work.cancel()
                pool.kill()  # they would finish their step first, which may take long
            await asyncio.wait((running, work))
    if interrupted.done():
        raise InterruptedByError(interrupted.result())
    if start.failed.done():
        raise NoWorkersError(start.failed.result())
    _pass_on(running, work)


async def _tick(progress: Progress) -> None:
    while True:
        await asyncio.sleep(TICK_SECONDS)
        progress.tick()


def _pass_on(running: "asyncio.Task[None]", work: "asyncio.Task[None]") -> None:
    """Raise the error of either task, if it has one."""
    if isinstance(error := running.exception(), NothingServedError):
        raise NoWorkersError(str(error))
    running.result()
    work.result()


def _alone(settings: Settings, width: int) -> Settings:
    """Give the only client the whole queue."""
    limits = settings.scheduler
    return replace(
        settings, scheduler=replace(limits, client_share=1.0, lone_share=1.0, max_queue=max(limits.max_queue, width))
    )


@dataclass(slots=True)
class _StartWatch:
    """Watches whether any worker starts. If all of them fail, `failed` has the reason."""

    workers: int
    failed: "asyncio.Future[str]"
    _lost: dict[str, str] = field(default_factory=dict)
    _ready: bool = False

    def observer(self, loaded: Callable[[], None]) -> Callable[[m.Event, Sequence[m.Command]], None]:
        """The pool's observer; `loaded` is called when a worker is ready."""

        def observe(event: m.Event, commands: Sequence[m.Command]) -> None:
            match event:
                case m.WorkerReady():
                    self._ready = True
                    loaded()
                case m.WorkerExited(worker, reason) if not self._ready:
                    self._lost[worker] = reason
                    if len(self._lost) == self.workers and not self.failed.done():
                        listed = "; ".join(f"{name}: {why}" for name, why in self._lost.items())
                        self.failed.set_result(f"no worker can be started ({listed})")

        return observe


@contextmanager
def _interruptible() -> "Iterator[asyncio.Future[int]]":
    """A future of the first SIGINT or SIGTERM; a second one ends the process at once."""
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
