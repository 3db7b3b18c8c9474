"""The cost of background work for interactive requests in simulation, and the effect of preemption.

    python -m tests.bench.priorities [--seconds 60] [--seeds 1 2 3] [--out FILE.json] [--markdown FILE.md]

Half of all images are background work of 20 clients, wanted within ten minutes; the others are wanted within one. Each
case is simulated for each seed; the figures are means over the seeds, but `late` and `fairness`, which are the worst.
`throughput` is device time, in the best batches, of the images that were done, as a share of all there was. See
`scheduler.simulation.preemption` for what is set aside; the real scheduler does not do it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from scheduler import messages as m
from scheduler.limits import Limits
from scheduler.simulation.arrivals import Arrival, Traffic
from scheduler.simulation.bounds import counts
from scheduler.simulation.devices import DEFAULT_SLOTS, Machine
from scheduler.simulation.experiment import Experiment, contour, drawn
from scheduler.simulation.preemption import Exclusive, Preemptive
from scheduler.simulation.report import REFUSALS, fairness, percentile
from scheduler.simulation.simulator import MakeCore, Run, Simulator
from tests.bench import tables
from tests.bench.environment import environment

DEVICES = 8
BACKGROUND = 0.5
ASIDE_SECONDS = 0.005
FIGURES = ("median", "mean", "p99", "queued_p99", "refused", "throughput")
NO_CLASSES = "no classes"
SCHEDULERS: dict[str, tuple[MakeCore, float]] = {
    NO_CLASSES: (contour, 0.0),
    "classes": (contour, 0.0),
    "and set aside for a place": (lambda workers, queue: Preemptive(workers, Limits(max_queue=queue)), 0.0),
    "the same, 5 ms each time": (lambda workers, queue: Preemptive(workers, Limits(max_queue=queue)), ASIDE_SECONDS),
    "and set aside beside interactive": (lambda workers, queue: Exclusive(workers, Limits(max_queue=queue)), 0.0),
}
COLUMNS = (
    *("gain, load", "scheduler", "interactive: median / p99, s", "queue, p99", "refused", "Jain"),
    *("background: mean / p99, s", "throughput", "refused", "Jain", "throughput of both"),
)
CASES = [(gain, load) for gain in ("weak", "strong") for load in (0.8, 0.95, 1.2, 2.4)]
FULL = 0.95  # the highest load at which images are set aside as well


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate all cases, print the table, and write it where asked to."""
    options = tables.parser(__doc__, (1, 2, 3), 60.0).parse_args(arguments)
    result = measure(options.seconds, options.seeds, options.processes)
    tables.publish(options, result, markdown(result))


def measure(seconds: float, seeds: Sequence[int], processes: int = 1) -> dict[str, Any]:
    """Rows of all cases: of each scheduler, what interactive and what background requests got."""
    kinds = [
        (gain, load, name)
        for gain, load in CASES
        for number, name in enumerate(SCHEDULERS)
        if number < 2 or load <= FULL
    ]
    runs = [(*kind, seed) for kind in kinds for seed in seeds]
    with ProcessPoolExecutor(processes) as pool:
        results = list(pool.map(partial(_simulate, seconds), *zip(*runs, strict=True)))
    rows = []
    for number, (gain, load, name) in enumerate(kinds):
        interactive, background = zip(*results[number * len(seeds) : (number + 1) * len(seeds)], strict=True)
        row = {"gain": gain, "load": load, "scheduler": name}
        rows.append({**row, "interactive": summary(interactive), "background": summary(background)})
    return {"devices": DEVICES, "seconds": seconds, "seeds": list(seeds), "rows": rows, "environment": environment()}


def _simulate(seconds: float, gain: str, load: float, name: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    make, aside = SCHEDULERS[name]
    machine = Machine(devices=DEVICES, gain=gain, slots=DEFAULT_SLOTS[gain], preemption_seconds=aside)
    experiment = drawn(machine, Traffic(seconds=seconds, background=BACKGROUND), load, seed)
    asked = experiment.arrivals
    if name == NO_CLASSES:
        asked = [replace(each, priority=0) for each in asked]
    run = Simulator(make, machine, asked, seed, experiment.queue).run()
    return figures(experiment, run, background=False), figures(experiment, run, background=True)


def figures(experiment: Experiment, run: Run, *, background: bool) -> dict[str, Any]:
    """What the requests of one class got."""
    machine, window = experiment.machine, experiment.window
    answers = [
        (each, *run.answers[job]) for job, each in enumerate(experiment.arrivals) if (each.priority < 0) == background
    ]
    counted = [answer for answer in answers if counts(answer[0], window)]
    done = [(each, seconds, end) for each, seconds, end in counted if isinstance(end, m.Done)]
    in_time = [each for each, seconds, _ in done if seconds <= each.seconds + each.deadline]
    latencies = sorted([seconds - each.seconds for each, seconds, _ in done])
    refused = sum(isinstance(end, REFUSALS) for *_, end in counted)
    work = sum([_work(machine, answer, window) for answer in answers])
    return {
        "requests": len(counted),
        "median": percentile(latencies, 0.5),
        "mean": fmean(latencies),
        "p99": percentile(latencies, 0.99),
        "queued_p99": percentile(sorted([end.queued for *_, end in done]), 0.99),
        "refused": refused / len(counted),
        "throughput": work / (machine.speed * (window[1] - window[0])),
        "late": (len(counted) - refused - len(in_time)) / len(counted),
        "fairness": fairness([each for each, *_ in counted], in_time, machine),
    }


def _work(machine: Machine, answer: tuple[Arrival, float, m.Outcome], window: tuple[float, float]) -> float:
    arrival, seconds, outcome = answer
    done = isinstance(outcome, m.Done) and window[0] <= seconds < window[1]
    return machine.least_device_seconds(arrival) if done else 0.0


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One class of several seeds."""
    found = {"requests": sum(run["requests"] for run in runs)}
    found |= {name: round(fmean([run[name] for run in runs]), 4) for name in FIGURES}
    found["late"] = round(max(run["late"] for run in runs), 5)
    found["fairness"] = round(min(run["fairness"] for run in runs), 4)
    return found


def markdown(result: dict[str, Any]) -> Iterator[str]:
    """One table for all cases."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    title = ""
    for row in result["rows"]:
        one, two = row["interactive"], row["background"]
        case = f"{row['gain']}, {row['load']:g}"
        cells = [
            case if case != title else "",
            row["scheduler"],
            f"{one['median']:.2f} / {one['p99']:.2f}",
            f"{one['queued_p99']:.2f}",
            f"{one['refused']:.1%}",
            f"{one['fairness']:.3f}",
            f"{two['mean']:.2f} / {two['p99']:.1f}",
            f"{two['throughput']:.1%}",
            f"{two['refused']:.1%}",
            f"{two['fairness']:.3f}",
            f"{one['throughput'] + two['throughput']:.1%}",
        ]
        title = case
        yield "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
