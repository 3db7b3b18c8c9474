"""What a step and all the rest of a picture cost on this device: measured when a worker warms up, and steps again when
they have become faster."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from scheduler.messages import Costs
from workers.engine import codec
from workers.engine.config import Output
from workers.engine.contract import Task

if TYPE_CHECKING:
    from workers.engine.engine import DiffusionEngine

_log = logging.getLogger(__name__)

_REPEATS = 3  # at most
_ENOUGH_S = 0.2  # spent on one figure; a device that needs more of it for two calls is a slow one, and steadier
_LONG_S = 1.0  # for a call that is not repeated: the first of a shape chooses kernels, which takes some tenths of this
_PATIENCE_S = 0.5  # for all buckets: it is part of the start. On a slow device those that are left are estimated


class Measurements:
    """What was measured of pictures of `side` x `side` pixels: one step of each bucket, and all that is not a step."""

    def __init__(self, engine: "DiffusionEngine", side: int, buckets: Sequence[int]) -> None:
        self._engine = engine
        self._buckets = tuple(buckets)
        self._picture = _picture(side)
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
        tasks = [Task(self._picture, f"picture {n}", n) for n in range(_REPEATS)]
        self._fixed_seconds = self._seconds([partial(self._all_but_steps, task) for task in tasks])
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

    def refresh(self) -> None:
        """Time a step of the smallest bucket again and scale all costs by the result, up or down.

        Other work on the machine slows everything by about the same factor, and can only slow it: so the fastest of
        the runs counts. Without memory for it, everything stays.
        """
        bucket = min(self._step_seconds)
        try:
            times = self._times([partial(self._engine.rehearse, bucket)] * _REPEATS)
        except torch.OutOfMemoryError:
            return
        factor = min(times) / self._step_seconds[bucket]
        self._costs = None
        self._fixed_seconds *= factor
        self._step_seconds = {each: seconds * factor for each, seconds in self._step_seconds.items()}

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
