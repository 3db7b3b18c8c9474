"""What a step and all the rest of a picture cost on this device: measured when a worker warms up and whenever it idles,
and steps again when they have become faster."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from scheduler.messages import Costs
from workers.engine import codec
from workers.engine.config import Output
from workers.engine.contract import OutOfMemoryError, Task

if TYPE_CHECKING:
    from workers.engine.engine import DiffusionEngine

_log = logging.getLogger(__name__)

_REPEATS = 3  # at most
_IDLE_REPEATS = 20  # at most: a GPU that has idled needs some steps until its clock is up
_ENOUGH_S = 0.2  # spent on one figure; a device that needs more of it for two calls is a slow one, and steadier
_LONG_S = 1.0  # for a call that is not repeated: the first of a shape chooses kernels, which takes some tenths of this
_PATIENCE_S = 0.5  # for all buckets: it is part of the start. On a slow device those that are left are estimated


class _NeededError(Exception):
    """Somebody needs the engine."""


class Measurements:
    """What was measured of pictures of `side` x `side` pixels: one step of each bucket, and all that is not a step."""

    def __init__(self, engine: "DiffusionEngine", side: int, buckets: Sequence[int]) -> None:
        self._engine = engine
        self._buckets = tuple(buckets)
        picture = _picture(side)
        self._tasks = [Task(picture, f"picture {n}", n) for n in range(_REPEATS)]
        self._fixed_seconds = 0.0
        self._step_seconds: dict[int, float] = {}
        self._costs: Costs | None = None

    def costs(self) -> Costs:
        """As the scheduler wants them. Pictures that fill no bucket cost as much as those that do.

        Buckets that were not measured are interpolated between those that were; beyond the largest, a step is taken to
        cost as much per picture as that one, which is what a device without idle units does.
        """
        if self._costs is None:  # asked for with every step, and seldom new
            steps = tuple(self._step(n) for n in range(1, self._buckets[-1] + 1))
            self._costs = Costs(self._engine.calls, steps, self._fixed_seconds)
        return self._costs

    def take_all(self) -> None:
        """Measure all but the steps of a picture, then a step of each bucket while patience lasts; log which not."""
        self._fixed_seconds = self._seconds([partial(self._all_but_steps, task) for task in self._tasks])
        start = time.perf_counter()
        # The ends first: between them the rest can be estimated.
        for bucket in dict.fromkeys((self._buckets[0], self._buckets[-1], *self._buckets)):
            slowest = bucket * self._step_seconds.get(1, 0.0)
            if self._step_seconds and time.perf_counter() - start + slowest > _PATIENCE_S:
                break
            self.take(bucket)
        known = sorted(self._step_seconds)
        if estimated := [bucket for bucket in self._buckets if bucket not in known]:
            _log.info("step time measured for %s pictures together, estimated for %s", known, estimated)

    def take(self, bucket: int) -> None:
        """Measure a step of a bucket, with whatever runs standing still.

        Where it fails, as for want of memory, what was known or estimated stays; while nothing is, it raises the error.
        """
        try:
            self._step_seconds[bucket] = self._seconds([partial(self._engine.rehearse, bucket)] * _REPEATS)
        except Exception as error:
            if not self._step_seconds:
                raise
            _log.warning("a step of %d images cannot be measured: %s", bucket, error)
        self._costs = None

    def refresh(self, is_idle: Callable[[], bool]) -> bool:
        """Measure everything again. False, and nothing has changed, if the engine is needed before that is done.

        Other work on the machine can only slow it: so the fastest of the runs counts. Each figure is measured by
        itself, as other work does not slow all of them alike: what is not a step is the processor's, on a GPU. One
        that there is no memory for stays as it was.
        """

        def unless_needed(action: Callable[[], object]) -> None:
            if not is_idle():
                raise _NeededError
            action()

        def fastest(actions: Iterable[Callable[[], object]]) -> float:
            return min(self._times(partial(unless_needed, action) for action in actions))

        steps, fixed = dict(self._step_seconds), self._fixed_seconds
        try:
            for bucket in self._buckets:
                if bucket in steps or bucket * steps[self._buckets[0]] <= _PATIENCE_S:
                    with suppress(torch.OutOfMemoryError):
                        steps[bucket] = fastest([partial(self._engine.rehearse, bucket)] * _IDLE_REPEATS)
            if fixed > _LONG_S:  # an image that comes now would wait so long: take it to have changed as steps have
                first = self._buckets[0]
                fixed *= steps[first] / self._step_seconds[first]
            else:
                with suppress(OutOfMemoryError, torch.OutOfMemoryError):
                    fixed = fastest([partial(self._all_but_steps, task) for task in self._tasks])
        except _NeededError:
            return False
        self._step_seconds, self._fixed_seconds, self._costs = steps, fixed, None
        return True

    def _step(self, pictures: int) -> float:
        bucket = next(each for each in self._buckets if each >= pictures)
        known = sorted(self._step_seconds)
        if bucket > known[-1]:
            return self._step_seconds[known[-1]] * bucket / known[-1]
        return float(np.interp(bucket, known, [self._step_seconds[each] for each in known]))

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

    def _all_but_steps(self, task: Task) -> None:
        engine = self._engine
        prepared = engine.prepare(task)
        engine.admit(0, prepared)
        engine.discard(0)
        engine.encode(engine.decode(prepared.noise[0]))


def _picture(side: int) -> bytes:
    """Noise, blurred enough to have edges but not to be nothing but edges."""
    coarse = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    return codec.encode(codec.resize(coarse, side, side), Output(format="png"))
