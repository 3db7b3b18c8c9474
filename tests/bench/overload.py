"""Ten times more than can be done: what is done is done in time, the rest is told when to come back, truthfully.

    python -m tests.bench.overload [--seconds 60] [--times 10]

The echo engine takes 50 ms a step whatever runs, so the capacity is known: workers x slots / seconds of an image. When
the flood ends, those that were refused last come back when they were told to.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.environment import environment
from tests.bench.openloop import OpenLoop, Outcome
from tests.service.running import Service

WORKERS, SLOTS, STEPS, STEP_SECONDS = 2, 4, 20, 0.05
CAPACITY = WORKERS * SLOTS / (STEPS * STEP_SECONDS)  # images a second
DEADLINE_SECONDS = 10
FILLING_SECONDS = 2 * DEADLINE_SECONDS  # at the start, until the queue is as it stays
FOLLOWERS = 20  # of those refused last
SETTINGS = {
    "SCHEDULER__CLIENT_SHARE": 1,  # all clients have the same address
    "WORKERS__CPU_WORKERS": WORKERS,
    "ENGINE__SLOTS": SLOTS,
    "ENGINE__ECHO__STEPS": STEPS,
    "ENGINE__ECHO__STEP_SECONDS": STEP_SECONDS,
}


def main() -> None:
    """Measure, and print JSON; all times in seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10, help="the load, in capacities")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    with Service("echo", **SETTINGS) as service:
        service.wait_until_ready(WORKERS)
        outcomes, followers = asyncio.run(_flood(service.url, options.times * CAPACITY, options.seconds))
    result = {
        "load, requests per second": options.times * CAPACITY,
        "capacity, images per second": CAPACITY,
        **figures(outcomes, options.seconds),
        "who followed Retry-After": _followers(followers),
        "environment": environment(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


async def _flood(url: str, per_second: float, seconds: float) -> tuple[list[Outcome], list[Outcome]]:
    loop = OpenLoop(url, DEADLINE_SECONDS)
    began = time.monotonic()
    outcomes = await loop.run(per_second, seconds, lambda now: None)
    refused = [outcome for outcome in outcomes if outcome.retry_after is not None][-FOLLOWERS:]
    followers = await asyncio.gather(*(_follow(loop, outcome, began) for outcome in refused))
    return outcomes, followers


async def _follow(loop: OpenLoop, refused: Outcome, began: float) -> Outcome:
    """Come back when one was told to."""
    assert refused.retry_after is not None
    await asyncio.sleep(max(0.0, began + refused.ended + refused.retry_after - time.monotonic()))
    return await loop.one(began)


def figures(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Goodput between the filling and the end of the flood, and how requests ended."""
    window = seconds - FILLING_SECONDS
    done = [outcome for outcome in outcomes if outcome.status == 200]
    in_time = [outcome for outcome in done if outcome.seconds <= DEADLINE_SECONDS]
    inside = sum(FILLING_SECONDS <= outcome.ended < seconds for outcome in in_time)
    refused = [outcome for outcome in outcomes if outcome.status == 503]
    return {
        "requests": len(outcomes),
        "by status": dict(Counter(str(outcome.status) for outcome in outcomes)),
        "goodput, images per second": round(inside / window, 2),
        "goodput, share of capacity": round(inside / window / CAPACITY, 3),
        "done after the deadline": len(done) - len(in_time),
        "admitted and expired": sum(outcome.status == 504 for outcome in outcomes),
        "seconds to an image": spread([outcome.seconds for outcome in done]),
        "seconds to a refusal": spread([outcome.seconds for outcome in refused]),
        "Retry-After": spread([outcome.retry_after for outcome in refused if outcome.retry_after is not None]),
        "refused without Retry-After": sum(outcome.retry_after is None for outcome in refused),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and the largest."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {"median": round(cuts[49], 3), "p99": round(cuts[98], 3), "largest": round(max(values), 3)}


def _followers(followers: Sequence[Outcome]) -> dict[str, int]:
    return dict(Counter(str(outcome.status) for outcome in followers))


if __name__ == "__main__":
    main()
