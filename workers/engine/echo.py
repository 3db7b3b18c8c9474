"""An engine without a model, which returns its input: for tests, and for benchmarks of everything else."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scheduler.messages import NOMINAL, BatchKey, Costs
from workers.engine import codec
from workers.engine.budget import DecodeBudget
from workers.engine.codec import Pixels
from workers.engine.config import EngineConfig
from workers.engine.contract import (
    AS_CONFIGURED,
    EngineOptions,
    EngineStatus,
    StepProgress,
    Task,
    ignore,
    resolved,
)
from workers.engine.header import output_size, read_header
from workers.machine import memory_limit

_WARM_UP_SEED = 0


@dataclass(frozen=True, eq=False, slots=True)
class Echoed:
    """An image (RGB uint8 [h, w, 3], or the input's bytes, unread) to return after so many steps."""

    image: Pixels | bytes
    steps: int
    key: BatchKey = NOMINAL
    warnings: tuple[str, ...] = ()
    thresholds: None = None  # it finds no edges


class EchoEngine:
    """Returns the input image after the steps that its task asks for, by default `config.echo.steps`.

    All running images share the time of a step; with `batch_seconds`, all of a size do.
    """

    def __init__(self, config: EngineConfig) -> None:
        echo = config.echo
        self.slots = config.slots
        self._config = config
        by_size = echo.batch_seconds or [echo.step_seconds]
        self._step_seconds = tuple(by_size[min(n, len(by_size) - 1)] for n in range(config.slots))
        self._budget = DecodeBudget(config.decode_budget(memory_limit()))
        self._running: dict[int, tuple[Echoed, StepProgress]] = {}
        self._fixed_seconds = echo.fixed_seconds
        self._busy_until = 0.0  # time.monotonic, of the imaginary device

    def warm_up(self) -> Costs:
        """Measure the codec on a nominal image, unless images stay unread."""
        if self._config.echo.reencode:
            self._fixed_seconds = self._measure() + self._config.echo.fixed_seconds / 2  # the configured time to decode
        return self.costs()

    def costs(self) -> Costs:
        """The configured costs, and the codec's."""
        echo = self._config.echo
        return Costs(echo.steps, self._step_seconds, self._fixed_seconds, echo.fixed_seconds / 2)

    def measure_again(self, is_idle: Callable[[], bool]) -> bool:
        """Measure the codec again: the configuration has the rest."""
        self.warm_up()
        return True

    def prepare(self, task: Task, on_draft: Callable[[Any], object] = ignore) -> Echoed:
        """Decode the image, or keep its bytes unread.

        Raises BadImageError.
        """
        echo = self._config.echo
        image = self._decode(task.image) if echo.reencode else bytes(task.image)
        key = self._key(task.image) if echo.batch_seconds else NOMINAL
        _sleep(echo.fixed_seconds / 2 * key.work)
        return Echoed(image, resolved(task.options, self._config).steps, key)

    def _key(self, data: bytes | memoryview) -> BatchKey:
        header, sizing = read_header(data), self._config.size
        width, height = output_size(header.width, header.height, sizing)
        return BatchKey(width * height / sizing.short_side**2, (width, height))

    def _decode(self, data: bytes | memoryview) -> Pixels:
        header = read_header(data)
        with self._budget.spend_on(header, (header.width, header.height)):
            return codec.decode(data)

    def begin(self, slot: int, draft: Any) -> None:
        """Never called: `prepare` has no drafts."""

    def admit(self, slot: int, prepared: Echoed) -> None:
        """Put an image into a free slot. Raises ValueError when the slot is taken or not there."""
        if not 0 <= slot < self.slots or slot in self._running:
            raise ValueError(f"slot {slot} is not free")
        self._running[slot] = (prepared, StepProgress(slot, 0, prepared.steps))

    def step(self) -> list[StepProgress]:
        """Spend the time of a step for every unfinished image."""
        unfinished = [slot for slot, (_, stepped) in self._running.items() if stepped.done < stepped.total]
        counts = Counter([self._running[slot][0].key for slot in unfinished])
        seconds = sum([self._step_seconds[n - 1] * key.work for key, n in counts.items()])
        self._pass(seconds, idle=not any(self._running[slot][1].done for slot in unfinished))
        return [self._advance(slot) for slot in unfinished]

    def _pass(self, seconds: float, *, idle: bool = False) -> None:
        """Spend time of the device.

        Like a GPU, which gets its next step during the last one, it does not wait for the host between steps.
        """
        now = time.monotonic()
        began = now if idle else max(self._busy_until, now - seconds)
        self._busy_until = began + seconds
        _sleep(self._busy_until - now)

    def finish(self, slot: int) -> Pixels | bytes:
        """Return the image. Raises ValueError while it has steps to take."""
        echoed, stepped = self._running_image(slot)
        if stepped.done < stepped.total:
            raise ValueError(f"slot {slot} has steps to take")
        del self._running[slot]
        self._pass(self._config.echo.fixed_seconds / 2 * echoed.key.work)
        return echoed.image

    def discard(self, slot: int) -> None:
        """Drop the image in a slot. Raises ValueError when there is none."""
        self._running_image(slot)
        del self._running[slot]

    def collect(self, decoding: object) -> object:
        return decoding

    def status(self) -> EngineStatus:
        return EngineStatus()

    def encode(self, pixels: object, options: EngineOptions = AS_CONFIGURED) -> bytes:
        if isinstance(pixels, bytes):
            return pixels
        return codec.encode(np.asarray(pixels, np.uint8), self._config.output, options.format, options.quality)

    def preview(self, slot: int) -> object | None:
        echoed, _ = self._running_image(slot)
        return None if isinstance(echoed.image, bytes) else echoed.image

    def draw(self, preview: object) -> bytes:
        return codec.thumbnail(np.asarray(preview, np.uint8))

    def _running_image(self, slot: int) -> tuple[Echoed, StepProgress]:
        if slot not in self._running:
            raise ValueError(f"slot {slot} is empty")
        return self._running[slot]

    def _advance(self, slot: int) -> StepProgress:
        echoed, stepped = self._running[slot]
        stepped = replace(stepped, done=stepped.done + 1)
        self._running[slot] = (echoed, stepped)
        return stepped

    def _measure(self) -> float:
        side = self._config.size.short_side
        noise = np.random.default_rng(_WARM_UP_SEED).integers(0, 256, (side, side, 3), np.uint8)
        task = Task(self.encode(noise), "", _WARM_UP_SEED)
        self.encode(self.prepare(task).image)  # the first time, libraries set themselves up
        start = time.perf_counter()
        self.encode(self.prepare(task).image)
        return time.perf_counter() - start


def _sleep(seconds: float) -> None:
    if seconds > 0:  # sleeping for no time takes 80 us, the kernel's timer slack and a switch of threads
        time.sleep(seconds)
