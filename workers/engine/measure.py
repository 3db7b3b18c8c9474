"""What a step and all the rest of a picture cost on this device: measured once, when a worker warms up."""

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from scheduler.messages import Costs
from workers.engine import codec
from workers.engine.config import Output
from workers.engine.contract import Task

if TYPE_CHECKING:
    from workers.engine.engine import DiffusionEngine

_log = logging.getLogger(__name__)

_REPEATS = 3
_PATIENCE_S = 5.0  # for all batch sizes; on a slow device those that are left are estimated


def measure(engine: "DiffusionEngine", side: int) -> Costs:
    """Run the engine on pictures of `side` x `side` pixels, at each batch size while patience lasts.

    Sizes that were not measured are interpolated between those that were; beyond the largest, a step is taken to cost
    as much per picture as that one, which is what a device without idle units does. Which they are is logged.
    """
    picture = _picture(side)
    tasks = [Task(picture, f"picture {n}", n) for n in range(_REPEATS)]
    fixed_seconds = _seconds(engine, [partial(_all_but_steps, engine, task) for task in tasks])
    measured = _measure_steps(engine, picture)
    sizes = range(1, engine.slots + 1)
    largest = max(measured)
    known = sorted(measured)
    estimated = [n for n in sizes if n not in measured]
    if estimated:
        _log.info("step time measured for %s pictures together, estimated for %s", known, estimated)
    between = {n: float(np.interp(n, known, [measured[k] for k in known])) for n in sizes if n <= largest}
    beyond = {n: measured[largest] * n / largest for n in sizes if n > largest}
    return Costs(engine.calls, tuple((between | beyond).values()), fixed_seconds)


def _measure_steps(engine: "DiffusionEngine", picture: bytes) -> dict[int, float]:
    prepared = engine.prepare(Task(picture, "", 0))
    start = time.perf_counter()
    measured: dict[int, float] = {}
    # The ends first: between them the rest can be estimated.
    for n in dict.fromkeys((1, engine.slots, *range(2, engine.slots))):
        slowest = n * measured.get(1, 0.0)
        if measured and time.perf_counter() - start + slowest > _PATIENCE_S:
            break
        for slot in range(n):
            engine.admit(slot, prepared)
        measured[n] = _seconds(engine, [engine.step] * max(1, min(_REPEATS, engine.calls - 1)))
        for slot in range(n):
            engine.discard(slot)
    return measured


def _seconds(engine: "DiffusionEngine", actions: Iterable[Callable[[], object]]) -> float:
    """The median time of actions; the first is warm-up, but where it takes long it is the only one and counts."""
    times = []
    for action in actions:
        start = time.perf_counter()
        action()
        engine.synchronize()
        times.append(time.perf_counter() - start)
        if times[0] > _PATIENCE_S / _REPEATS:
            break
    return median(times[1:] or times)


def _all_but_steps(engine: "DiffusionEngine", task: Task) -> None:
    prepared = engine.prepare(task)
    engine.admit(0, prepared)
    engine.discard(0)
    engine.encode(engine.decode(prepared.noise[0]))


def _picture(side: int) -> bytes:
    """Noise, blurred enough to have edges but not to be nothing but edges."""
    coarse = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    return codec.encode(codec.resize(coarse, side, side), Output(format="png"))
