"""Simulates several schedulers on the same arrivals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.core import Scheduler
from scheduler.limits import Limits
from scheduler.messages import WorkerId
from scheduler.simulation.arrivals import Arrival, Traffic, draw, mean_nominal_steps
from scheduler.simulation.baselines import LeastLoaded, OneAtATime, RequestBatching
from scheduler.simulation.bounds import Window, counted
from scheduler.simulation.devices import Machine
from scheduler.simulation.report import Row, bound_row, row
from scheduler.simulation.simulator import MakeCore, Simulator

WARMUP = 0.2  # part of a simulation that does not count
QUEUE = 256


def contour(workers: Sequence[WorkerId], queue: int) -> Scheduler:
    """The real scheduler, with the limits it has by default."""
    return Scheduler(workers, Limits(max_queue=queue))


SCHEDULERS: Mapping[str, MakeCore] = {
    "contour": contour,
    "one at a time": OneAtATime,
    "request batching": RequestBatching,
    "least loaded": LeastLoaded,
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Devices, and arrivals at one load."""

    machine: Machine
    arrivals: Sequence[Arrival]
    load: float
    window: Window
    seed: int = 1
    queue: int = QUEUE

    def compare(
        self, schedulers: Mapping[str, MakeCore] = SCHEDULERS, on_arrival: Callable[[], None] = lambda: None
    ) -> list[Row]:
        """Simulate each scheduler; the first row is the bound."""
        rows = [bound_row(self.load, self.arrivals, self.machine, self.window, self.queue)]
        for name, make in schedulers.items():
            run = Simulator(make, self.machine, self.arrivals, self.seed, self.queue).run(on_arrival)
            rows.append(row(name, self.load, run, self.arrivals, self.machine, self.window))
        return rows


def drawn(machine: Machine, traffic: Traffic, load: float, seed: int, queue: int = QUEUE) -> Experiment:
    """Arrivals at random. At load 1 their steps need all device time, each in the best batch of its size.

    Raises:
        ValueError: no request arrives in the time that counts.
    """
    rate = load * machine.devices * machine.step_rate / mean_nominal_steps()
    window = WARMUP * traffic.seconds, traffic.seconds
    arrivals = draw(traffic, rate, seed)
    if not counted(arrivals, window):
        raise ValueError("No request arrives in that time: take more --seconds, or more --load.")
    return Experiment(machine=machine, arrivals=arrivals, load=load, window=window, seed=seed, queue=queue)


def recorded(machine: Machine, arrivals: Sequence[Arrival], seed: int, queue: int = QUEUE) -> Experiment:
    """Recorded arrivals, all of which count."""
    end = arrivals[-1].seconds + 1e-9
    work = sum(each.work * each.steps for each in arrivals)
    load = work / (machine.devices * machine.step_rate * max(1.0, end))
    return Experiment(machine=machine, arrivals=arrivals, load=load, window=(0.0, end), seed=seed, queue=queue)
