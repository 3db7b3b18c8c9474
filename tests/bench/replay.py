"""The simulation against the real pool: both serve the same requests, and their latencies are compared.

    python -m tests.bench.replay [--seconds 60] [--seeds 1 2 3 4 5] [--loads 0.5 0.8 1.2] [--out FILE.json]

The pool has its worker processes, sockets and shared memory. The workers' engine is `echo`, which sleeps for as long as
a step of a simulated device takes, so four of them fit on two cores. For each load and seed, the same requests are
simulated and replayed.

`difference` is real less simulated: of a latency as a part of the simulated one, of a share of requests as it is. A
step that takes a little longer changes all decisions after it, so simulations differ from each other as well: the
simulated figure is the median of five, and the largest difference of one of them from it is given too.

On a machine that does other work, start it with real-time priority (`chrt -f 5 python -m ...`): else the sleeps of the
workers end late, and the figures tell of that.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from scheduler import messages as m
from scheduler.simulation.arrivals import Arrival, Traffic
from scheduler.simulation.bounds import Window, counted, counts
from scheduler.simulation.devices import FIXED_SECONDS, NOMINAL_STEPS, Machine
from scheduler.simulation.experiment import QUEUE, Experiment, contour, drawn
from scheduler.simulation.report import REFUSALS, percentile
from scheduler.simulation.simulator import Run, Simulator
from tests.bench.environment import environment
from tests.service.running import png
from workers.devices import DeviceSpec
from workers.engine.config import Echo, EngineConfig, Sizing
from workers.engine.contract import EngineOptions, Task
from workers.pool import Pool
from workers.shared_memory import SlotLayout
from workers.worker_main import WorkerSetup

MACHINE = Machine(devices=4)
ENGINE = EngineConfig(
    kind="echo",
    slots=MACHINE.slots,
    size=Sizing(long_side=1152),
    echo=Echo(
        steps=NOMINAL_STEPS, batch_seconds=list(MACHINE.costs.step_seconds), fixed_seconds=FIXED_SECONDS, reencode=False
    ),
)
SIZES = {1.0: (512, 512), 2.25: (1152, 512)}  # by work; the short side is the nominal one, as of every image served
IMAGES = {size: png(*size) for size in SIZES.values()}
DEADLINES = (3.0, 10.0)
SIMULATIONS = 5  # of the same requests: each has steps of slightly other durations, and so other decisions
LATENCIES = ("mean", "p50", "p99")
FIGURES = (*LATENCIES, "refused", "late")
ROOM = 2**16  # bytes of a slot
PATIENCE = 60.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, replay, compare, and print JSON; all times in seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each replay; the first fifth is not counted")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.2])
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args(arguments)
    result = {
        "workers": MACHINE.devices,
        "slots": MACHINE.slots,
        "seconds": options.seconds,
        "deadlines": DEADLINES,
        "real-time priority": os.sched_getscheduler(0) in {os.SCHED_FIFO, os.SCHED_RR},
        "loads": [_load(load, options.seconds, options.seeds) for load in options.loads],
        "environment": environment(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def _load(load: float, seconds: float, seeds: Sequence[int]) -> dict[str, Any]:
    runs = [compare(experiment(load, seconds, seed)) for seed in seeds]
    apart = {name: round(median([run["difference"][name] for run in runs]), 4) for name in FIGURES}
    return {"load": load, "median difference": apart, "runs": runs}


def experiment(load: float, seconds: float, seed: int) -> Experiment:
    """Requests at random, of sizes that the echo engine gives back."""
    found = drawn(MACHINE, Traffic(seconds=seconds, deadlines=DEADLINES), load, seed)
    return replace(found, arrivals=[replace(each, size=SIZES[each.work]) for each in found.arrivals])


def compare(one: Experiment) -> dict[str, Any]:
    """The figures of both ways to serve the same requests."""
    simulators = [Simulator(contour, one.machine, one.arrivals, seed, one.queue) for seed in range(SIMULATIONS)]
    simulated = [figures(each.run(), one.arrivals, one.window) for each in simulators]
    expected = {name: median([each[name] for each in simulated]) for name in FIGURES}
    before = os.getloadavg()[0]
    found = figures(asyncio.run(replay(one.arrivals)), one.arrivals, one.window)
    return {
        "seed": one.seed,
        "requests": len(counted(one.arrivals, one.window)),
        "simulated": expected,
        "real": found,
        "difference": _difference(expected, found),
        "largest difference of a simulation": {
            name: max([_difference(expected, each)[name] for each in simulated], key=abs) for name in FIGURES
        },
        "load average before": round(before, 2),
    }


def _difference(expected: Mapping[str, float], found: Mapping[str, float]) -> dict[str, float]:
    """Of latencies, relative; of shares, as they are."""
    return {
        name: round((found[name] - expected[name]) / (expected[name] if name in LATENCIES else 1), 4)
        for name in FIGURES
    }


def figures(run: Run, arrivals: Sequence[Arrival], window: Window) -> dict[str, float]:
    """Latencies of images that were done, the share of requests refused, and of those accepted and not done in time."""
    answers = [(each, *run.answers[job]) for job, each in enumerate(arrivals) if counts(each, window)]
    done = [(each, seconds - each.seconds) for each, seconds, outcome in answers if isinstance(outcome, m.Done)]
    refused = sum(isinstance(outcome, REFUSALS) for *_, outcome in answers)
    in_time = sum(seconds <= each.deadline for each, seconds in done)
    latencies = sorted([seconds for _, seconds in done])
    values = (fmean(latencies), percentile(latencies, 0.5), percentile(latencies, 0.99))
    shares = (refused / len(answers), (len(answers) - refused - in_time) / len(answers))
    return {name: round(value or 0.0, 4) for name, value in zip(FIGURES, (*values, *shares), strict=True)}


async def replay(arrivals: Sequence[Arrival]) -> Run:
    """Let a pool serve the requests, each when it arrives."""
    names = [f"cpu{index}" for index in range(MACHINE.devices)]
    setups = [WorkerSetup(DeviceSpec(name, "cpu", None), ENGINE, threads=1) for name in names]
    starting, ready = set(names), asyncio.Event()

    def observe(event: m.Event, commands: Sequence[m.Command]) -> None:
        if isinstance(event, m.WorkerReady):
            starting.remove(event.worker)
            if not starting:
                ready.set()

    pool = Pool(setups, contour(names, QUEUE), SlotLayout(MACHINE.slots, ROOM, ROOM), observe)
    serving = asyncio.create_task(pool.run())
    await asyncio.wait_for(ready.wait(), PATIENCE)
    run, began = Run(), time.monotonic()
    await asyncio.gather(*(_ask(pool, run, job, each, began) for job, each in enumerate(arrivals)))
    pool.drain(PATIENCE)
    await serving
    return run


async def _ask(pool: Pool, run: Run, job: m.JobId, arrival: Arrival, began: float) -> None:
    await asyncio.sleep(max(0.0, began + arrival.seconds - time.monotonic()))
    task = Task(IMAGES[arrival.size], "", job, EngineOptions(steps=arrival.steps))
    deadline, relative_steps = began + arrival.seconds + arrival.deadline, arrival.steps / NOMINAL_STEPS
    asked = m.Job(0, deadline, arrival.work, arrival.client, relative_steps, arrival.priority, size=arrival.size)
    answer = await pool.generate(task, asked)
    run.answers[job] = time.monotonic() - began, answer.outcome


if __name__ == "__main__":
    main()
