"""A clock for what an engine measures, which the test moves on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tests.workers.engine import demo
from workers.engine.measure import Measurements
from workers.engine.plan import Size

Part: TypeAlias = tuple[int, Size | None]  # a bucket, and a size unless it is the nominal one
TICK = 0.001


@dataclass
class Clock:
    """The time that a measurement reads: whatever an engine does takes a millisecond."""

    now: float = 0.0

    def perf_counter(self) -> float:
        self.now += TICK
        return self.now

    def later(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds
            action()

        return run


def measurements(clock: Clock, buckets: tuple[int, ...], seconds: Mapping[Part, float]) -> Measurements:
    """Measurements of steps of these parts, which take so long."""
    engine = demo.engine()

    def dummy_run(bucket: int, size: Size | None = None) -> Callable[[], None]:
        return clock.later(seconds[bucket, size] - TICK, lambda: None)

    engine.dummy_run = dummy_run  # type: ignore[method-assign]
    measured = Measurements(engine, 64, buckets)
    for part in seconds:
        measured.take(*part)
    return measured
