"""Measures what a step and the rest of an image cost on this device: at warm-up, whenever the worker idles, and steps
again after they have become faster."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from scheduler.messages import BatchKey, Costs
from workers.engine import codec
from workers.engine.config import Output
from workers.engine.contract import MAX_SIZES, OutOfMemoryError, Task
from workers.engine.plan import Size

if TYPE_CHECKING:
    from workers.engine.engine import DiffusionEngine, Prepared

Part: TypeAlias = tuple[Size, int]  # a size, and a bucket of it
Clock: TypeAlias = Callable[[Iterable[Callable[[], object]]], float]

_log = logging.getLogger(__name__)

_REPEATS = 3  # at most
_IDLE_REPEATS = 20  # at most: an idle GPU needs some steps to raise its clock
_ENOUGH_S = 0.2  # per figure; a device that needs more for two calls is slow, and so steadier
_LONG_S = 1.0  # a longer call is not repeated. The first of a shape chooses kernels, in some tenths of this
_STEPS_S = 0.5  # for all steps at warm-up; on a slow device the rest is estimated
_OTHERS_S = 1.0  # for other sizes whenever the engine idles; the next time continues with the rest


class _NeededError(Exception):
    """The engine is needed."""


class Measurements:
    """Measures images of `side` x `side` pixels: one step of each bucket, and all that is not a step.

    And one step of other sizes, where that takes no memory for good (`DiffusionEngine.dummy_runs`).
    """

    def __init__(self, engine: "DiffusionEngine", side: int, buckets: Sequence[int]) -> None:
        self._engine = engine
        self._side = side
        self._buckets = tuple(buckets)
        image = _image(side)
        self._pixels = codec.decode(image)
        self._tasks = [Task(image, f"image {n}", n) for n in range(_REPEATS)]
        self._host_seconds = self._device_seconds = 0.0  # of all but the steps
        self._step_seconds: dict[int, float] = {}
        self._others: dict[Part, float] = {}  # steps of other sizes, the latest measured last
        self._costs: Costs | None = None

    def costs(self) -> Costs:
        """The costs for the scheduler. A bucket costs the same however full it is."""
        if self._costs is None:  # asked for at every step, and rarely new
            steps = tuple(self._nominal(self._bucket(n)) for n in range(1, self._buckets[-1] + 1))
            sizes = tuple(self._costs_of(size) for size in sorted({size for size, _ in self._others}))
            fixed = self._host_seconds + self._device_seconds
            self._costs = Costs(self._engine.calls, steps, fixed, self._device_seconds, sizes)
        return self._costs

    def take_all(self) -> None:
        """Measure all but the steps of an image, then steps while time lasts; log the buckets that are left out."""
        self._host_seconds = self._seconds(self._on_host())
        self._device_seconds = self._seconds(self._on_device())
        deadline = time.perf_counter() + _STEPS_S
        first, *rest = dict.fromkeys((self._buckets[0], self._buckets[-1], *self._buckets))
        self.take(first)
        # The ends first: the rest can be interpolated, other sizes less well.
        others = self._engine.dummy_runs()
        for size, bucket in (
            *((None, bucket) for bucket in rest[:1]),
            *(part for part in others if part[1] == first),
            *((None, bucket) for bucket in rest[1:]),
            *(part for part in others if part[1] != first),
        ):
            if time.perf_counter() + self._expected(bucket, size) <= deadline:
                self.take(bucket, size)
        known = sorted(self._step_seconds)
        if estimated := [bucket for bucket in self._buckets if bucket not in known]:
            lists = [", ".join(map(str, buckets)) for buckets in (known, estimated)]
            _log.info("Measured steps of batches of %s; estimated those of %s", *lists)

    def take(self, bucket: int, size: Size | None = None) -> None:
        """Measure a step of a bucket, of the nominal size by default, while running images wait.

        If that fails, for lack of memory say, the former figure or estimate stays; without any, raise the error.
        """
        try:
            seconds = self._seconds([self._engine.dummy_run(bucket, size)] * _REPEATS)
        except Exception as error:
            if not self._step_seconds:
                raise
            _log.warning("Cannot measure a step of %d images: %s", bucket, error)
        else:
            self._note(bucket, size, seconds)
        self._costs = None

    def _note(self, bucket: int, size: Size | None, seconds: float) -> None:
        """Keep a figure; of other sizes only the latest."""
        if size is None:
            self._step_seconds[bucket] = seconds
            return
        self._others.pop((size, bucket), None)
        self._others[size, bucket] = seconds
        kept = list(dict.fromkeys(each for each, _ in reversed(self._others)))[:MAX_SIZES]
        self._others = {part: seconds for part, seconds in self._others.items() if part[0] in kept}

    def refresh(self, is_idle: Callable[[], bool]) -> bool:
        """Measure everything again. Return False, with nothing changed, if the engine is needed before the end.

        Other work on the machine only slows a run, so the fastest counts. It does not slow all parts alike: on a GPU,
        all but the steps depends on the CPU. So each figure is measured by itself; one without memory stays as it was.

        Other sizes come last, the oldest figures first. Those not measured before the engine is needed, or before
        `_OTHERS_S` have passed, change in proportion to the nominal size.
        """

        def unless_needed(action: Callable[[], object]) -> None:
            if not is_idle():
                raise _NeededError
            action()

        def fastest(actions: Iterable[Callable[[], object]]) -> float:
            return min(self._times(partial(unless_needed, action) for action in actions))

        try:
            self._refresh_nominal(fastest)
        except _NeededError:
            return False
        with suppress(_NeededError):
            self._refresh_others(fastest)
        return True

    def _refresh_nominal(self, fastest: Clock) -> None:
        first, steps = self._buckets[0], dict(self._step_seconds)
        for bucket in self._buckets:
            if bucket in steps or bucket * steps[first] <= _STEPS_S:
                with suppress(torch.OutOfMemoryError):
                    steps[bucket] = fastest([self._engine.dummy_run(bucket)] * _IDLE_REPEATS)
        change = steps[first] / self._step_seconds[first]
        host, device = self._host_seconds, self._device_seconds
        with suppress(OutOfMemoryError, torch.OutOfMemoryError):
            host = fastest(self._on_host())
        if device > _LONG_S:  # an image that arrives would wait for this: assume the change of a step
            device *= change
        else:
            with suppress(OutOfMemoryError, torch.OutOfMemoryError):
                device = fastest(self._on_device())
        self._step_seconds, self._host_seconds, self._device_seconds, self._costs = steps, host, device, None
        self._others = {part: change * seconds for part, seconds in self._others.items()}

    def _refresh_others(self, fastest: Clock) -> None:
        until, age = time.perf_counter() + _OTHERS_S, {part: n for n, part in enumerate(self._others)}
        for size, bucket in sorted(self._engine.dummy_runs(), key=lambda part: age.get(part, -1)):
            if self._expected(bucket, size) <= _STEPS_S:
                with suppress(torch.OutOfMemoryError):
                    self._note(bucket, size, fastest([self._engine.dummy_run(bucket, size)] * _REPEATS))
                    self._costs = None
            if time.perf_counter() > until:
                break

    def _bucket(self, images: int) -> int:
        return next(each for each in self._buckets if each >= images)

    def _expected(self, bucket: int, size: Size | None) -> float:
        """An upper estimate of a step's seconds: as if batching gained nothing."""
        return bucket * self._step_seconds[self._buckets[0]] * (1.0 if size is None else self._key(size).work)

    def _nominal(self, images: float) -> float:
        """Seconds of a step of so many nominal images.

        Buckets are interpolated between measured ones. Beyond the largest, a step costs as much per image as that one,
        as on a fully used device.
        """
        known = sorted(self._step_seconds)
        if images > known[-1]:
            return self._step_seconds[known[-1]] * images / known[-1]
        return float(np.interp(images, known, [self._step_seconds[each] for each in known]))

    def _costs_of(self, size: Size) -> tuple[BatchKey, tuple[float, ...]]:
        """Steps of a size: as measured, and other buckets in proportion to as much work of the nominal size."""
        key = self._key(size)
        measured = {bucket: seconds for (each, bucket), seconds in self._others.items() if each == size}
        known = sorted(measured)
        factors = [measured[bucket] / self._nominal(key.work * bucket) for bucket in known]
        buckets = map(self._bucket, range(1, self._buckets[-1] + 1))
        return key, tuple(self._nominal(key.work * n) * float(np.interp(n, known, factors)) for n in buckets)

    def _key(self, size: Size) -> BatchKey:
        width, height = self._engine.pixels(size)
        return BatchKey(width * height / self._side**2, (width, height))

    def _on_host(self) -> Iterable[Callable[[], object]]:
        """The work of codec threads for an image, beside the steps of others."""

        def read_and_write(task: Task) -> None:
            self._engine.prepare(task)
            self._engine.encode(self._pixels)

        return [partial(read_and_write, task) for task in self._tasks]

    def _on_device(self) -> Iterable[Callable[[], object]]:
        """The work that delays the steps of others: admitting and decoding an image.

        On a CPU that happens between two steps. On a GPU the VAE runs beside the steps, but we assume that it uses as
        much of the device as they do, so that each delays the other by its own time.
        """

        def admit_and_decode(prepared: "Prepared") -> None:
            self._engine.admit(0, prepared)
            self._engine.discard(0)
            self._engine.decode(prepared.noise[0])

        return (partial(admit_and_decode, self._engine.prepare(task)) for task in self._tasks)

    def _seconds(self, actions: Iterable[Callable[[], object]]) -> float:
        """The median time of actions without the first, the warm-up, unless that takes long and is the only one."""
        times = self._times(actions)
        return median(times[1:] or times)

    def _times(self, actions: Iterable[Callable[[], object]]) -> list[float]:
        """The seconds of each action, until enough time is spent."""
        times = []
        for action in actions:
            start = time.perf_counter()
            action()
            self._engine.synchronize()
            times.append(time.perf_counter() - start)
            if sum(times) > _ENOUGH_S and (len(times) > 1 or times[0] > _LONG_S):
                break
        return times


def _image(side: int) -> bytes:
    """Blurred noise: some edges, but not only edges."""
    coarse = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    return codec.encode(codec.resize(coarse, side, side), Output(format="png"))
