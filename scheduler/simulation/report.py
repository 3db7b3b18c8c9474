"""The figures of a simulation: one row for each scheduler and load, as a table and as a plot."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from scheduler import messages as m
from scheduler.simulation import bounds
from scheduler.simulation.arrivals import Arrival
from scheduler.simulation.bounds import Window
from scheduler.simulation.devices import Machine
from scheduler.simulation.simulator import Run

BOUND = "bound"
REFUSALS = (m.Rejected, m.QuotaExceeded, m.Impossible, m.Draining)


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of a scheduler at one load, or, as `bound`, the best that any could reach.

    `mean` and `p99` are seconds of images done in time. `throughput` is device time that went into them, as a share of
    the bound. `refused` is a share of all requests, `late` of those that were not refused: each is a broken promise.
    `fairness` is Jain's index of what clients got, each relative to its fair share. `goodput` is the share of requests
    done in time. The microseconds are processor time of a decision; they differ from run to run.
    """

    scheduler: str
    load: float
    requests: int
    mean: float | None
    p99: float | None = None
    throughput: float | None = None
    refused: float | None = None
    late: float | None = None
    fairness: float | None = None
    goodput: float | None = None
    decision_median_us: float | None = field(default=None, compare=False)
    decision_p99_us: float | None = field(default=None, compare=False)


def bound_row(load: float, arrivals: Sequence[Arrival], machine: Machine, window: Window, queue: int) -> Row:
    """The figures of the bound."""
    mean, goodput = bounds.mean_latency(arrivals, machine, window), bounds.goodput(arrivals, machine, window, queue)
    count = len(bounds.counted(arrivals, window))
    return Row(BOUND, load, count, mean, throughput=1.0, refused=0.0, late=0.0, fairness=1.0, goodput=goodput)


def row(name: str, load: float, run: Run, arrivals: Sequence[Arrival], machine: Machine, window: Window) -> Row:
    """The figures of a scheduler."""
    counted = [(each, *run.answers[job]) for job, each in enumerate(arrivals) if bounds.counts(each, window)]
    done = [(each, seconds) for each, seconds, outcome in counted if _in_time(each, seconds, outcome)]
    refused = sum(isinstance(outcome, REFUSALS) for *_, outcome in counted)
    latencies = sorted([seconds - each.seconds for each, seconds in done])
    decisions = sorted(run.decisions)
    return Row(
        scheduler=name,
        load=load,
        requests=len(counted),
        mean=fmean(latencies) if latencies else None,
        p99=percentile(latencies, 0.99),
        throughput=_throughput(run, arrivals, machine, window),
        refused=refused / len(counted),
        late=(len(counted) - refused - len(done)) / max(1, len(counted) - refused),
        fairness=fairness([each for each, *_ in counted], [each for each, _ in done], machine),
        goodput=len(done) / len(counted),
        decision_median_us=percentile(decisions, 0.5),
        decision_p99_us=percentile(decisions, 0.99),
    )


def _in_time(arrival: Arrival, seconds: float, outcome: m.Outcome) -> bool:
    return isinstance(outcome, m.Done) and seconds <= arrival.seconds + arrival.deadline + 1e-9


def _throughput(run: Run, arrivals: Sequence[Arrival], machine: Machine, window: Window) -> float:
    """From the very start, as the bound holds only for what begins with empty devices."""
    done = [
        machine.least_device_seconds(arrivals[job])
        for job, (seconds, outcome) in run.answers.items()
        if seconds < window[1] and _in_time(arrivals[job], seconds, outcome)
    ]
    return sum(done) / bounds.device_seconds(arrivals, machine, window[1])


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value that so many of the values, in ascending order, do not exceed; None if there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def fairness(asked: Iterable[Arrival], done: Iterable[Arrival], machine: Machine) -> float | None:
    """Jain's index of the work done for each client, relative to its max-min fair share of all that was done.

    1 if all have their share; 1/n if one of n clients has everything.
    """
    demand, served = _by_client(asked, machine), _by_client(done, machine)
    shares = max_min_shares(demand, sum(served.values()))
    relative = [served.get(client, 0.0) / share for client, share in shares.items() if share > 0]
    squares = sum([value**2 for value in relative])
    return sum(relative) ** 2 / (len(relative) * squares) if squares else None


def _by_client(arrivals: Iterable[Arrival], machine: Machine) -> dict[str, float]:
    work: dict[str, float] = defaultdict(float)
    for each in arrivals:
        work[each.client] += machine.least_device_seconds(each)
    return work


def max_min_shares(demand: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Shares of a capacity: all the same, but nobody gets more than it asks for."""
    shares = {}
    for left, client in zip(range(len(demand), 0, -1), sorted(demand, key=demand.__getitem__), strict=True):
        shares[client] = min(demand[client], capacity / left)
        capacity -= shares[client]
    return shares


# --------------------------------------------------------------------------------------------------------------- output

COLUMNS = ("load", "scheduler", "mean s", "p99 s", "of bound", "refused", "late", "Jain", "median us", "p99 us")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, by COLUMNS."""
    shares = (row.throughput, row.refused, row.late)
    return (
        f"{row.load:.2f}",
        row.scheduler,
        *[_number(value, "{:.3f}") for value in (row.mean, row.p99)],
        *[_number(value, "{:.1%}") for value in shares],
        _number(row.fairness, "{:.3f}"),
        *[_number(value, "{:.0f}") for value in (row.decision_median_us, row.decision_p99_us)],
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Lines of a plain table."""
    lines = [COLUMNS, *[cells(row) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        texts = [
            f"{text:<{width}}" if n == 1 else f"{text:>{width}}"
            for n, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(texts).rstrip()


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw mean (solid) and p99 (dashed) latency against load.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # it takes a second to import

    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).subplots()
    for number, name in enumerate(dict.fromkeys(row.scheduler for row in rows)):
        color = "black" if name == BOUND else f"C{number}"
        own = sorted([row for row in rows if row.scheduler == name], key=lambda row: row.load)
        for values, style in (([row.mean for row in own], "-"), ([row.p99 for row in own], "--")):
            points = [(row.load, value) for row, value in zip(own, values, strict=True) if value is not None]
            if points:
                label = name if style == "-" else None
                axes.plot(*zip(*points, strict=True), style, marker="o", color=color, label=label)
    axes.set(xlabel="offered load", ylabel="latency in seconds: mean (solid), p99 (dashed)", yscale="log", title=title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
