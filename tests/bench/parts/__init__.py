"""The parts of the latency benchmark, by name, in the order in which they are worth most if time runs out."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.bench.parts import engines, pipelines, services, work
from tests.bench.parts.bench import Bench, Row


@dataclass(frozen=True, slots=True)
class Part:
    """What yields rows; a quick run does not begin it with less than `quick_seconds` left."""

    run: Callable[[Bench], Iterator[Row]]
    quick_seconds: float = 10.0


PARTS: Mapping[str, Part] = {
    "peak": Part(work.peak),
    "engine": Part(engines.engine),
    "http": Part(services.http, 30.0),
    "agreement": Part(pipelines.agreement),
    "eager": Part(pipelines.eager),
    "batches": Part(engines.batches),
    "joining": Part(engines.joining),
    "lcm": Part(engines.lcm),
    "profile": Part(work.kernels, 20.0),
    "compiled": Part(engines.compiled, 60.0),
    "startup": Part(services.startup, 60.0),
    "diffusers-compiled": Part(pipelines.compiled, 90.0),
}
