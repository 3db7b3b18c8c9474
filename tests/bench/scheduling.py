"""The scheduler under simulated load, beside simpler schedulers and bounds: eight devices, mixed sizes, 20 clients.

    python -m tests.bench.scheduling [--seconds 80] [--seeds 1 2 3] [--out FILE.json] [--markdown FILE.md]

Each case is simulated for each seed; the figures are means over the seeds, but `late` and `fairness`, which are the
worst. See `python -m scheduler.simulation --help` for what they mean.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any

from scheduler.limits import Limits
from scheduler.simulation.arrivals import Traffic
from scheduler.simulation.devices import DEFAULT_SLOTS, Machine
from scheduler.simulation.experiment import QUEUE, drawn
from scheduler.simulation.report import BOUND, Row
from tests.bench import tables
from tests.bench.environment import environment

DEVICES = 8
FIGURES = ("mean", "p99", "throughput", "refused", "goodput", "decision_median_us", "decision_p99_us")


@dataclass(frozen=True)
class Case:
    """One setting that all schedulers are simulated in."""

    gain: str
    load: float
    deadline: float = 60.0
    clients: int = 20
    bursty: bool = False
    places: int = QUEUE

    @property
    def title(self) -> str:
        traffic = f"one client, bursts, {self.places} places, " if self.bursty else ""
        return f"{traffic}{self.gain} gain, load {self.load:g}, deadlines of {self.deadline:g} s"


CASES = (
    *[Case(gain, load) for gain in ("weak", "strong") for load in (0.5, 0.8, 1.2)],
    *[Case(gain, 1.2, deadline=3.0) for gain in ("weak", "strong")],
    Case("weak", 0.6, clients=1, bursty=True, places=Limits().max_queue),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate all cases, print the table, and write it where asked to."""
    options = tables.parser(__doc__, (1, 2, 3), 80.0).parse_args(arguments)
    result = measure(options.seconds, options.seeds, options.processes)
    tables.publish(options, result, markdown(result))


def measure(seconds: float, seeds: Sequence[int], processes: int = 1) -> dict[str, Any]:
    """Rows of all cases, with the environment that the decisions were timed in."""
    runs = [(case, seed) for case in CASES for seed in seeds]
    with ProcessPoolExecutor(processes) as pool:
        results = list(pool.map(partial(_simulate, seconds), *zip(*runs, strict=True)))
    cases = []
    for number, case in enumerate(CASES):
        by_scheduler = zip(*results[number * len(seeds) : (number + 1) * len(seeds)], strict=True)
        rows = [summary(rows) for rows in by_scheduler]
        cases.append({"title": case.title, **asdict(case), "rows": rows})
    return {"devices": DEVICES, "seconds": seconds, "seeds": list(seeds), "cases": cases, "environment": environment()}


def _simulate(seconds: float, case: Case, seed: int) -> list[Row]:
    machine = Machine(devices=DEVICES, gain=case.gain, slots=DEFAULT_SLOTS[case.gain])
    traffic = Traffic(seconds=seconds, deadlines=(case.deadline,), clients=case.clients, bursty=case.bursty)
    return drawn(machine, traffic, case.load, seed, case.places).compare()


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """One scheduler's rows of several seeds as one."""
    found: dict[str, Any] = {"scheduler": rows[0].scheduler, "requests": sum(row.requests for row in rows)}
    for figure in FIGURES:
        values = [value for row in rows if (value := getattr(row, figure)) is not None]
        found[figure] = round(fmean(values), 4) if values else None
    found["late"] = round(max(row.late or 0.0 for row in rows), 5)
    found["fairness"] = round(min(row.fairness if row.fairness is not None else 1.0 for row in rows), 4)
    return found


def markdown(result: dict[str, Any]) -> Iterator[str]:
    """One table for all cases."""
    yield "| case | scheduler | mean / p99, s | throughput, of bound | refused | broken promises | in time | Jain |"
    yield "|---|---|---|---|---|---|---|---|"
    for case in result["cases"]:
        yield from _lines(case["title"], case["rows"])


def _lines(title: str, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["scheduler"] == BOUND:
            cells = [f"{row['mean']:.2f}", "", "", "", f"{row['goodput']:.1%}", ""]
        else:
            shares = [f"{row[name]:.1%}" for name in ("throughput", "refused")]
            late = f"{row['late']:.2%}"
            cells = [f"{row['mean']:.2f} / {row['p99']:.1f}", *shares, late, f"{row['goodput']:.1%}"]
            cells.append(f"{row['fairness']:.3f}")
        yield "| " + " | ".join([title, row["scheduler"], *cells]) + " |"
        title = ""


if __name__ == "__main__":
    main()
