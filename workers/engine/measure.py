"""What a step and all the rest of an image cost on this device: measured when a worker warms up and whenever it idles,
and steps again when they have become faster."""

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
from workers.engine.batch import Size
from workers.engine.config import Output
from workers.engine.contract import MAX_SIZES, OutOfMemoryError, Task

if TYPE_CHECKING:
    from workers.engine.engine import DiffusionEngine, Prepared

Part: TypeAlias = tuple[Size, int]  # a size, and a bucket of it
Clock: TypeAlias = Callable[[Iterable[Callable[[], object]]], float]

_log = logging.getLogger(__name__)

_REPEATS = 3  # at most
_IDLE_REPEATS = 20  # at most: a GPU that has idled needs some steps until its clock is up
_ENOUGH_S = 0.2  # spent on one figure; a device that needs more of it for two calls is a slow one, and steadier
_LONG_S = 1.0  # for a call that is not repeated: the first of a shape chooses kernels, which takes some tenths of this
_PATIENCE_S = 0.5  # for all steps: it is part of the start. On a slow device those that are left are estimated
_OTHERS_S = 1.0  # spent on other sizes whenever the engine idles; the next time goes on with those that are left


class _NeededError(Exception):
    """Somebody needs the engine."""


class Measurements:
    """What was measured of images of `side` x `side` pixels: one step of each bucket, and all that is not a step.

    And one step of other sizes, where that takes no memory for long (`DiffusionEngine.rehearsable`).
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
        """As the scheduler wants them. Images that fill no bucket cost as much as those that do."""
        if self._costs is None:  # asked for with every step, and seldom new
            steps = tuple(self._nominal(self._bucket(n)) for n in range(1, self._buckets[-1] + 1))
            sizes = tuple(self._costs_of(size) for size in sorted({size for size, _ in self._others}))
            fixed = self._host_seconds + self._device_seconds
            self._costs = Costs(self._engine.calls, steps, fixed, self._device_seconds, sizes)
        return self._costs

    def take_all(self) -> None:
        """Measure all but the steps of an image, then steps while patience lasts; log which buckets it left out."""
        self._host_seconds = self._seconds(self._on_host())
        self._device_seconds = self._seconds(self._on_device())
        deadline = time.perf_counter() + _PATIENCE_S
        first, *rest = dict.fromkeys((self._buckets[0], self._buckets[-1], *self._buckets))
        self.take(first)
        # The ends first: between them the rest can be estimated. What other sizes take can be less well.
        others = self._engine.rehearsable()
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
            _log.info("step time measured for %s images together, estimated for %s", known, estimated)

    def take(self, bucket: int, size: Size | None = None) -> None:
        """Measure a step of a bucket, of the nominal size by default, with whatever runs standing still.

        Where it fails, as for want of memory, what was known or estimated stays; while nothing is, it raises the error.
        """
        try:
            seconds = self._seconds([self._engine.rehearsal(bucket, size)] * _REPEATS)
        except Exception as error:
            if not self._step_seconds:
                raise
            _log.warning("a step of %d images cannot be measured: %s", bucket, error)
        else:
            self._note(bucket, size, seconds)
        self._costs = None

    def _note(self, bucket: int, size: Size | None, seconds: float) -> None:
        """Keep a figure, and of other sizes those measured last."""
        if size is None:
            self._step_seconds[bucket] = seconds
            return
        self._others.pop((size, bucket), None)
        self._others[size, bucket] = seconds
        kept = list(dict.fromkeys(each for each, _ in reversed(self._others)))[:MAX_SIZES]
        self._others = {part: seconds for part, seconds in self._others.items() if part[0] in kept}

    def refresh(self, is_idle: Callable[[], bool]) -> bool:
        """Measure everything again. False, and nothing has changed, if the engine is needed before that is done.

        Other work on the machine can only slow it: so the fastest of the runs counts. Each figure is measured by
        itself, as other work does not slow all of them alike: what is not a step is the processor's, on a GPU. One
        that there is no memory for stays as it was.

        Other sizes come last, those first that were measured longest ago. They are extra: what of them is not measured
        before the engine is needed, or `_OTHERS_S` have passed, is taken to have changed as the nominal size has.
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
            if bucket in steps or bucket * steps[first] <= _PATIENCE_S:
                with suppress(torch.OutOfMemoryError):
                    steps[bucket] = fastest([self._engine.rehearsal(bucket)] * _IDLE_REPEATS)
        change = steps[first] / self._step_seconds[first]
        host, device = self._host_seconds, self._device_seconds
        with suppress(OutOfMemoryError, torch.OutOfMemoryError):
            host = fastest(self._on_host())
        if device > _LONG_S:  # an image that comes now would wait so long: take it to have changed as steps have
            device *= change
        else:
            with suppress(OutOfMemoryError, torch.OutOfMemoryError):
                device = fastest(self._on_device())
        self._step_seconds, self._host_seconds, self._device_seconds, self._costs = steps, host, device, None
        self._others = {part: change * seconds for part, seconds in self._others.items()}

    def _refresh_others(self, fastest: Clock) -> None:
        until, age = time.perf_counter() + _OTHERS_S, {part: n for n, part in enumerate(self._others)}
        for size, bucket in sorted(self._engine.rehearsable(), key=lambda part: age.get(part, -1)):
            if self._expected(bucket, size) <= _PATIENCE_S:
                with suppress(torch.OutOfMemoryError):
                    self._note(bucket, size, fastest([self._engine.rehearsal(bucket, size)] * _REPEATS))
                    self._costs = None
            if time.perf_counter() > until:
                break

    def _bucket(self, images: int) -> int:
        return next(each for each in self._buckets if each >= images)

    def _expected(self, bucket: int, size: Size | None) -> float:
        """About how long a step takes, or longer: as if a batch gained nothing."""
        return bucket * self._step_seconds[self._buckets[0]] * (1.0 if size is None else self._key(size).work)

    def _nominal(self, images: float) -> float:
        """Seconds of a step of so many nominal images.

        Buckets that were not measured are interpolated between those that were; beyond the largest, a step is taken to
        cost as much per image as that one, which is what a device without idle units does.
        """
        known = sorted(self._step_seconds)
        if images > known[-1]:
            return self._step_seconds[known[-1]] * images / known[-1]
        return float(np.interp(images, known, [self._step_seconds[each] for each in known]))

    def _costs_of(self, size: Size) -> tuple[BatchKey, tuple[float, ...]]:
        """Steps of a size: as measured, and in other buckets as they grow with as much work of the nominal size."""
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
        """What codec threads do for an image, beside the steps of others."""

        def read_and_write(task: Task) -> None:
            self._engine.prepare(task)
            self._engine.encode(self._pixels)

        return [partial(read_and_write, task) for task in self._tasks]

    def _on_device(self) -> Iterable[Callable[[], object]]:
        """What keeps the device from the steps of others: an image is admitted and decoded.

        On a CPU that is done between two steps, by the thread that takes them. On a GPU the VAE runs beside the steps,
        but is taken to keep the device as busy as they do: then each delays the other by as long as it takes itself.
        """

        def admit_and_decode(prepared: "Prepared") -> None:
            self._engine.admit(0, prepared)
            self._engine.discard(0)
            self._engine.decode(prepared.noise[0])

        return (partial(admit_and_decode, self._engine.prepare(task)) for task in self._tasks)

    def _seconds(self, actions: Iterable[Callable[[], object]]) -> float:
        """The median time of actions; the first is warm-up, but where it takes long it is the only one and counts."""
        times = self._times(actions)
        return median(times[1:] or times)

    def _times(self, actions: Iterable[Callable[[], object]]) -> list[float]:
        """How long each action takes, until enough is spent on them."""
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
    """Noise, blurred enough to have edges but not to be nothing but edges."""
    coarse = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    return codec.encode(codec.resize(coarse, side, side), Output(format="png"))
