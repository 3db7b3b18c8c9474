"""A steady load at 80% of capacity, for long: memory and latency must stay where they are.

    python -m tests.bench.soak [--seconds 600]

The echo engine takes 50 ms a step whatever runs, so the capacity is known. Every few seconds the memory, descriptors
and threads of all processes are read; a straight line through them, and the medians of the first and the last minute,
say whether anything grows.
"""

import argparse
import asyncio
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.environment import environment
from tests.bench.openloop import OpenLoop, Outcome
from tests.bench.overload import CAPACITY, DEADLINE_SECONDS, SETTINGS, WORKERS, spread
from tests.chaos.footprint import Footprint, footprint
from tests.service.running import Service

SHARE = 0.8  # of the capacity
SAMPLE_SECONDS = 5.0
WARM_UP_SECONDS = 30.0  # of the same load, before anything counts
MINUTE = 60.0
MIB = 2**20


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    with Service("echo", **SETTINGS) as service:
        service.wait_until_ready(WORKERS)
        loop = OpenLoop(service.url, DEADLINE_SECONDS)
        asyncio.run(loop.run(SHARE * CAPACITY, WARM_UP_SECONDS, lambda now: None))
        outcomes, samples = asyncio.run(_soak(loop, service.process.pid, options.seconds))
    result = {
        "load, requests per second": SHARE * CAPACITY,
        "capacity, images per second": CAPACITY,
        "requests": len(outcomes),
        "by status": dict(Counter(str(outcome.status) for outcome in outcomes)),
        "seconds to an image": latency(outcomes, options.seconds),
        "resident memory": memory(samples),
        "descriptors": _ends([(at, held.descriptors) for at, held in samples]),
        "threads": _ends([(at, held.threads) for at, held in samples]),
        "environment": environment(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


Samples = list[tuple[float, Footprint]]


async def _soak(loop: OpenLoop, server: int, seconds: float) -> tuple[list[Outcome], Samples]:
    samples: Samples = []

    def sample(now: float) -> None:
        if not samples or now >= samples[-1][0] + SAMPLE_SECONDS:
            samples.append((now, footprint(server)))

    outcomes = await loop.run(SHARE * CAPACITY, seconds, sample)
    return outcomes, samples


def latency(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Over all, in the first and the last minute, and how it goes up."""
    done = [outcome for outcome in outcomes if outcome.status == 200]
    first = [outcome.seconds for outcome in done if outcome.sent < MINUTE]
    last = [outcome.seconds for outcome in done if outcome.sent >= seconds - MINUTE]
    slope = statistics.linear_regression([each.sent for each in done], [each.seconds for each in done]).slope
    return {
        **spread([outcome.seconds for outcome in done]),
        "median of the first minute": round(statistics.median(first), 3),
        "median of the last minute": round(statistics.median(last), 3),
        "milliseconds more per hour": round(slope * 3600 * 1000, 1),
    }


def memory(samples: Samples) -> dict[str, float]:
    """Of all processes together, in MiB."""
    points = [(at, held.resident / MIB) for at, held in samples]
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    return {name: round(value, 1) for name, value in {**_ends(points), "MiB more per hour": slope * 3600}.items()}


def _ends(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    last = points[-1][0]
    return {
        "median of the first minute": statistics.median(value for at, value in points if at < MINUTE),
        "median of the last minute": statistics.median(value for at, value in points if at > last - MINUTE),
        "largest": max(value for _, value in points),
    }


if __name__ == "__main__":
    main()
