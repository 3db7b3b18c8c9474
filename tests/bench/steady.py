"""The long-run effects of some rules of the scheduler, compared with other rules, in simulation.

    python -m tests.bench.steady [--seeds 1 2] [--processes 2] [--out FILE.json] [--markdown FILE.md]

The figures are means over the seeds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from math import ceil
from operator import itemgetter
from statistics import fmean
from typing import Any
from unittest.mock import patch

from scheduler import placement
from scheduler.core import Scheduler
from scheduler.costs import JoinEffect
from scheduler.limits import Limits
from scheduler.messages import Command, Done, Event, Expired, WorkerId
from scheduler.queue import JobState
from scheduler.simulation.arrivals import Arrival, Traffic, draw
from scheduler.simulation.baselines import LeastLoaded
from scheduler.simulation.bounds import counts
from scheduler.simulation.devices import MAX_SLOTS, NOMINAL_STEPS, Machine
from scheduler.simulation.experiment import QUEUE, WARMUP, Experiment, contour, drawn
from scheduler.simulation.report import percentile
from scheduler.simulation.simulator import Simulator
from tests.bench import decision, tables
from tests.bench.environment import environment

Figures = dict[str, float | None]
AT_ONCE = "200 at once"
MACHINES = {
    "1 device, strong gain": Machine(devices=1, gain="strong", slots=8),
    "8 devices, strong gain": Machine(gain="strong", slots=8),
    "1 device, weak gain": Machine(devices=1, slots=8),
    "8 devices, weak gain, 4 slots": Machine(),
}
RULES: Mapping[str, Callable[[], AbstractContextManager[object]]] = {
    "contour": nullcontext,
    "always joins": lambda: patch.object(JoinEffect, "should_wait", lambda *_: False),
    "never joins": lambda: patch.object(JoinEffect, "should_wait", lambda *_: True),
    "fewest images": lambda: patch.object(placement, "TIE_FACTOR", 1e9),  # no worker costs more than another
    "least loaded": nullcontext,
}
RETRIES = 5
WORKERS, ROUNDS = 16, 2000


class Watched(Scheduler):
    """The real scheduler, which notes how many jobs wait, and may tell refused clients all the same time.

    HTTP says it in whole seconds, unless it is `exact`.
    """

    def __init__(
        self, depths: list[int], workers: Sequence[WorkerId], queue: int, *, same: bool = False, exact: bool = False
    ) -> None:
        super().__init__(workers, Limits(max_queue=queue))
        self._depths, self._same, self._exact = depths, same, exact

    def handle(self, now: float, event: Event) -> list[Command]:
        """Process one event."""
        commands = super().handle(now, event)
        self._depths.append(self.queue_depth)
        return commands

    def _staggered_retry(self, now: float, job: JobState, seconds: float) -> float:
        seconds = seconds if self._same else super()._staggered_retry(now, job, seconds)
        return seconds if self._exact else max(1, ceil(seconds))


def joining(machine: str, load: float | str, rule: str, *, seed: int, seconds: float = 120.0) -> Figures:
    """Images of one size and 20 steps, by the rule when to join a batch."""
    devices = MACHINES[machine].devices
    seconds /= devices**0.5
    like, begin = Arrival(0.0, 1.0, (512, 512), NOMINAL_STEPS), WARMUP * seconds
    if load == AT_ONCE:
        arrivals, begin = [replace(like, client=f"client {n % 20}") for n in range(200)], 0.0
    else:
        rate = float(load) * devices * MACHINES[machine].step_rate / NOMINAL_STEPS
        mixed = draw(Traffic(seconds=seconds), rate, seed)
        arrivals = [replace(like, seconds=each.seconds, client=each.client) for each in mixed]
    experiment = Experiment(machine=MACHINES[machine], arrivals=arrivals, load=0.0, window=(begin, seconds), seed=seed)
    with RULES[rule]():
        _, row = experiment.compare({rule: LeastLoaded if rule == "least loaded" else contour})
    # Those at once have no throughput, but a last one.
    throughput = None if load == AT_ONCE else row.throughput
    return {"mean, s": row.mean, "p99, s": row.p99, "throughput, of bound": throughput, "refused": row.refused}


def returning(deadline: float, traffic: str, load: float, told: str, *, seed: int, seconds: float = 80.0) -> Figures:
    """Refused clients come back when they were told to. What counts is asked for long before the last arrival."""
    drawn_traffic = Traffic(seconds=seconds, deadlines=(deadline,), bursty=traffic == "bursts")
    machine, depths = Machine(), list[int]()
    arrivals = drawn(machine, drawn_traffic, load, seed).arrivals
    make = partial(Watched, depths, same="same" in told, exact="exactly" in told)
    run = Simulator(make, machine, arrivals, seed, QUEUE, RETRIES).run()
    among = [job for job, each in enumerate(arrivals) if counts(each, (WARMUP * seconds, 0.7 * seconds))]
    done = [job for job in among if isinstance(run.answers[job][1], Done)]
    late = sum(isinstance(run.answers[job][1], Expired) for job in among)
    tries = sum(run.tries[job] for job in among)
    return {
        "tries per image": tries / len(done),
        "refusals per request": (tries - len(done) - late) / len(among),
        "goodput": len(done) / len(among),
        "first try to image, s": fmean(run.answers[job][0] - arrivals[job].seconds for job in done),
        "longest queue": max(depths),
    }


def lone(machine: str, load: float, places: int, *, seed: int, seconds: float = 80.0) -> Figures:
    """One client with bursts and deadlines of 60 s, by the places in the queue."""
    depths: list[int] = []
    asked = Traffic(seconds=seconds, clients=1, bursty=True)
    experiment = drawn(MACHINES[machine], asked, load, seed, places)
    bound, row = experiment.compare({"contour": partial(Watched, depths)})
    assert row.goodput is not None
    assert bound.goodput
    share = row.goodput / bound.goodput
    return {"goodput": row.goodput, "of bound": share, "mean, s": row.mean, "longest queue": max(depths)}


def decisions(clients: int, waiting: int, *, seed: int) -> Figures:
    """Microseconds of processor time of a decision, with 128 images that run."""
    with patch.object(decision, "CLIENTS", clients):
        world = decision.World(WORKERS, MAX_SLOTS + waiting / WORKERS, seed)
        world.live(ROUNDS)
    ordered = {event: sorted(values) for event, values in world.microseconds.items()}
    shares = {"median": 0.5, "p99": 0.99}
    return {
        f"{event}, {name}": percentile(ordered[event], shares[name])
        for event, name in product(("Submitted", "Finished", "Stepped"), shares)
    }


@dataclass(frozen=True)
class Study:
    """A function, and the settings that it measures, in all combinations. The values of the last share a row."""

    measure: Callable[..., Figures]
    settings: Mapping[str, Sequence[Any]]

    def combinations(self) -> list[dict[str, Any]]:
        """The settings of each run, but the seed."""
        return [dict(zip(self.settings, values, strict=True)) for values in product(*self.settings.values())]


STUDIES: Mapping[str, Study] = {
    "joining": Study(
        joining,
        {
            "machine": ["1 device, strong gain", "8 devices, strong gain", "1 device, weak gain"],
            "load": [0.5, 0.8, 1.0, 1.2, AT_ONCE],
            "rule": list(RULES),
        },
    ),
    "returning": Study(
        returning,
        {
            "deadline": [60.0, 3.0],
            "traffic": ["Poisson", "bursts"],
            "load": [1.0, 1.2, 1.5],
            "told": ["its own time", "the same", "the same exactly"],
        },
    ),
    "lone": Study(
        lone,
        {
            "machine": ["8 devices, weak gain, 4 slots", "1 device, strong gain"],
            "load": [0.6, 0.8, 1.0, 1.2],
            "places": [256, 512, 1024, 4096],
        },
    ),
    "decisions": Study(decisions, {"clients": [1, 100], "waiting": [256, 512, 1024]}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write them where asked to."""
    parser = tables.parser(__doc__, (1, 2))
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    options = parser.parse_args(arguments)
    with ProcessPoolExecutor(options.processes) as pool:
        found = {name: rows(STUDIES[name], options.seeds, pool) for name in options.studies}
    lines = [line for name in found for line in markdown(name, STUDIES[name], found[name])]
    tables.publish(options, {"seeds": options.seeds, **found, "environment": environment()}, lines)


def rows(study: Study, seeds: Sequence[int], pool: Executor) -> list[dict[str, Any]]:
    """Each combination of settings, with the means of its figures."""
    combinations = study.combinations()
    runs = [[pool.submit(study.measure, **each, seed=seed) for seed in seeds] for each in combinations]
    return [{**each, **_mean([run.result() for run in of])} for each, of in zip(combinations, runs, strict=True)]


def _mean(figures: Sequence[Figures]) -> Figures:
    known = {name: [value for each in figures if (value := each[name]) is not None] for name in figures[0]}
    return {name: round(fmean(values), 4) if values else None for name, values in known.items()}


def markdown(name: str, study: Study, found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One table. A cell holds a figure for each value of the last setting."""
    *settings, shared = study.settings
    figures = [key for key in found[0] if key not in study.settings]
    values = " / ".join(str(value) for value in study.settings[shared])
    yield f"\n**{name}**, by {shared}: {values}\n"
    yield "| " + " | ".join([*settings, *figures]) + " |"
    yield "|---" * (len(settings) + len(figures)) + "|"
    for _, group in groupby(found, key=itemgetter(*settings)):
        alike = list(group)
        cells = [" / ".join(_number(row[figure]) for row in alike) for figure in figures]
        named = [str(alike[0][each]) for each in settings]
        yield "| " + " | ".join([*named, *cells]) + " |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
