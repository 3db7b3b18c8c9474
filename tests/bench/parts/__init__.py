"""The parts of the latency benchmark, by name, in the order in which they are worth most if time runs out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.bench.parts import engines, pipelines, services, work
from tests.bench.parts.bench import Bench, Row


@dataclass(frozen=True, slots=True)
class Part:
    """What yields rows; it is not begun with less than `seconds` left."""

    run: Callable[[Bench], Iterator[Row]]
    seconds: float = 10.0


PARTS: Mapping[str, Part] = {
    "peak": Part(work.peak),
    "http": Part(services.http, 60.0),
    "devices": Part(services.devices, 30.0),
    "agreement": Part(pipelines.agreement, 30.0),
    "stages": Part(engines.stages, 60.0),
    "kernels": Part(work.kernels, 60.0),
    "peers": Part(pipelines.peers, 60.0),
    "settings": Part(services.settings, 90.0),
    "batches": Part(engines.batches, 60.0),
    "load": Part(services.under_load, 60.0),
    "fp8": Part(pipelines.fp8, 60.0),
    "sizes": Part(services.sizes, 60.0),
    "lcm": Part(engines.lcm, 60.0),
    "startup": Part(services.startup, 60.0),
}
