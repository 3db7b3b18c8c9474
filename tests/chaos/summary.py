"""A run in figures."""

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.chaos.records import Record
from tests.chaos.run import Run

CLIENTS = ("slow sender", "slow reader", "half-closed", "leaves", "leaves in its body", "huge")  # faults of clients


def summary(run: Run) -> dict[str, Any]:
    """What a result file holds."""
    requests, lives = run.sheet.requests, run.lives.all
    engine = sum((life.engine_faults for life in lives), Counter[str]())
    outside = Counter(fault.kind for fault in run.sheet.faults)
    return {
        "profile": run.profile,
        "seed": run.seed,
        "seconds": run.seconds,
        "requests": len(requests),
        "faults": sum(outside.values()) + sum(engine.values()),
        "broken promises": list(run.sheet.violations),
        "requests by kind and end": _by_kind(requests),
        "faults from outside": dict(outside.most_common()),
        "faults of engines": dict(engine.most_common()),
        "faults of clients": {kind: sum(record.kind == kind for record in requests) for kind in CLIENTS},
        "attacks": sum(record.kind.startswith("attack: ") for record in requests),
        "servers": dict(Counter(life.end for life in lives)),
        "workers lost, at least": sum(life.scrapes[-1].losses for life in lives if life.scrapes),
        "images started again, at least": sum(life.scrapes[-1].retries for life in lives if life.scrapes),
        "seconds to the answer, good requests": _latency(requests),
        "before": run.before and dataclasses.asdict(run.before),
        "after": run.after and dataclasses.asdict(run.after),
    }


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """For people."""
    for name, value in result.items():
        if isinstance(value, Mapping):
            yield f"{name}:"
            yield from (f"    {inner}: {each}" for inner, each in value.items())
        elif not isinstance(value, list):
            yield f"{name}: {value}"


def _by_kind(requests: Sequence[Record]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in requests:
        found[record.kind][record.outcome] += 1
    return {kind: dict(counts.most_common()) for kind, counts in sorted(found.items())}


def _latency(requests: Sequence[Record]) -> dict[str, float]:
    seconds = [
        record.seconds
        for record in requests
        if record.kind == "good" and record.outcome == "done" and record.seconds is not None
    ]
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100)
    return {"median": round(cuts[49], 3), "p99": round(cuts[98], 3), "longest": round(max(seconds), 3)}
