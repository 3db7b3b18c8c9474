"""Simulates the scheduler under load, beside simpler schedulers and bounds.

Every row is one scheduler at one load: mean and p99 latency of images done in time, throughput as a share of what is
possible, requests refused, promises broken (accepted, but not done in time), Jain's fairness index over clients, and
processor time of a decision. "bound" is what no scheduler can beat; a scheduler that refuses requests can have a lower
mean. At load 1 the denoising steps alone need all device time.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from scheduler.simulation import arrivals, experiment, report
from scheduler.simulation.devices import DEFAULT_SLOTS, MAX_SLOTS, STEP_SECONDS, Machine

LOADS = (0.5, 0.8, 1.2)
N = TypeVar("N")


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and print the table."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.trace and options.load:
        parser.error("--trace has a load of its own: leave out --load")
    try:
        experiments = _experiments(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    rows = _simulate(experiments)
    print("\n".join(report.table(rows)))
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in {"json", "plot", "trace"}}
        content = {**settings, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if options.plot:
        _plot(rows, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scheduler.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    machine = parser.add_argument_group("devices")
    machine.add_argument("--devices", type=_at_least(1), default=8)
    machine.add_argument("--gain", choices=sorted(STEP_SECONDS), default="weak", help="what batching gains")
    machine.add_argument("--slots", type=_at_least(1, MAX_SLOTS), help="of each device; 4 for weak gain, 8 for strong")
    machine.add_argument("--failures", type=_positive, default=0.0, metavar="PER_HOUR", help="of each device")
    machine.add_argument(
        "--straggler", type=_positive, default=1.0, metavar="FACTOR", help="the first device is slower"
    )
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument("--load", type=_positive, nargs="+", help="0.5 0.8 1.2 by default")
    traffic.add_argument("--deadline", type=_positive, nargs="+", default=[60.0], help="seconds; each as frequent")
    traffic.add_argument(
        "--seconds", type=_positive, default=80.0, help="simulated time; the first fifth is not counted"
    )
    traffic.add_argument("--clients", type=_at_least(1), default=20, help="the first one asks for half of all images")
    traffic.add_argument("--bursty", action="store_true", help="bursts of 2 s and pauses of 6 s on average")
    traffic.add_argument("--trace", type=Path, metavar="FILE", help="recorded arrivals: one JSON object per line")
    traffic.add_argument("--queue", type=_at_least(1), default=experiment.QUEUE, help="the most jobs that wait")
    traffic.add_argument("--seed", type=int, default=1)
    output = parser.add_argument_group("output")
    output.add_argument("--plot", type=Path, metavar="FILE.png", help="draw latency against load (needs matplotlib)")
    output.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    return parser


def _positive(text: str) -> float:
    value = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, and is {text}")
    return value


def _at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = _number(text, int)
        if value < least or (most is not None and value > most):
            limit = f"at least {least}" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {limit}, and is {text}")
        return value

    return parse


def _number(text: str, kind: Callable[[str], N]) -> N:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, and is {text!r}") from None


def _experiments(options: argparse.Namespace) -> list[experiment.Experiment]:
    options.slots = options.slots or DEFAULT_SLOTS[options.gain]
    machine = Machine(
        devices=options.devices,
        gain=options.gain,
        slots=options.slots,
        straggler=options.straggler,
        failures_per_hour=options.failures,
    )
    if options.trace:
        return [experiment.recorded(machine, arrivals.read(options.trace), options.seed, options.queue)]
    traffic = arrivals.Traffic(
        seconds=options.seconds, deadlines=tuple(options.deadline), clients=options.clients, bursty=options.bursty
    )
    return [experiment.drawn(machine, traffic, load, options.seed, options.queue) for load in options.load or LOADS]


def _simulate(experiments: Sequence[experiment.Experiment]) -> list[report.Row]:
    if not sys.stderr.isatty():
        return [row for each in experiments for row in each.compare()]
    from tqdm import tqdm

    total = len(experiment.SCHEDULERS) * sum(len(each.arrivals) for each in experiments)
    with tqdm(total=total, unit=" requests", leave=False) as bar:
        return [row for each in experiments for row in each.compare(on_arrival=bar.update)]


def _plot(rows: Sequence[report.Row], options: argparse.Namespace) -> None:
    title = f"{options.devices} devices, {options.gain} batching gain, {options.slots} slots"
    try:
        report.plot(rows, options.plot, title)
    except ImportError:
        sys.exit("The plot needs matplotlib, a development dependency. Install it: pip install matplotlib")


if __name__ == "__main__":
    main()
