"""What may be concluded from times: medians with confidence intervals, comparisons in turns, when a device is warm.

An interval of a median is a pair of order statistics. Its coverage is exact whatever the distribution is, as each value
lies below the median with a chance of one half. Fewer than six values cannot reach 95%: of them the whole range is
given, with the coverage that it has.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from math import ceil, exp, lgamma, log
from typing import Any

COVERAGE = 0.95
CLEAR = 0.05  # an effect that one start can show; a smaller one takes several, as starts differ
STARTS = 5
_WINDOW, _STEADY = 5, 0.01


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The narrowest pair of order statistics that covers the median with at least 95%; and its coverage."""
    n = len(values)
    rank, below = 0, _chance(n, 0)  # the chance that at most `rank` values lie below the median
    while rank + 1 < n / 2 and 1 - 2 * (more := below + _chance(n, rank + 1)) >= COVERAGE:
        rank, below = rank + 1, more
    ordered = sorted(values)
    return ordered[rank], ordered[-1 - rank], 1 - 2 * below


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, its interval, least and most of times in seconds, in milliseconds."""
    low, high, coverage = interval(seconds)
    values = {"median": statistics.median(seconds), "low": low, "high": high, "min": min(seconds), "max": max(seconds)}
    result = {name: milliseconds(value) for name, value in values.items()} | {"n": len(seconds)}
    return result if coverage >= COVERAGE else result | {"coverage": round(coverage, 3)}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The 95th and 99th by rank, in milliseconds, where there are enough values."""
    ordered = sorted(seconds)
    ranks = {p: ceil(len(ordered) * p / 100) for p in (95, 99) if len(ordered) >= 100 // (100 - p)}
    return {f"p{p}": milliseconds(ordered[rank - 1]) for p, rank in ranks.items()}


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> dict[str, Any]:
    """Time two works in the order ours, theirs, theirs, ours: a device that slows down evenly slows both alike.

    `ratio` is that of their time to ours, the median of the rounds'.
    """
    times: tuple[list[float], list[float]] = [], []
    ratios = []
    for _ in range(rounds):
        first, second, third, fourth = ours(), theirs(), theirs(), ours()
        times[0].extend((first, fourth))
        times[1].extend((second, third))
        ratios.append((second + third) / (first + fourth))
    return {"ours": summary(times[0]), "theirs": summary(times[1]), "ratio": _ratio(ratios)}


def verdict(starts: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What several starts, each with its `ratio` of a changed time to the shipped one, say of the change."""
    found = _ratio([each["median"] for each in starts])
    enough = len(starts) >= STARTS
    if not enough:  # what differs between starts is not known: all that any of them leaves open is
        found |= {"low": min(each["low"] for each in starts), "high": max(each["high"] for each in starts)}
    if not enough and abs(found["median"] - 1) < CLEAR:
        text = f"undecided: less than {CLEAR:.0%} takes {STARTS} starts"
    elif not enough and min(each["coverage"] for each in starts) < COVERAGE:
        text = "undecided: too few rounds"
    elif found["low"] <= 1 <= found["high"]:
        text = "no difference found" if enough else "undecided"
    else:
        text = "slower" if found["low"] > 1 else "faster"
    return found | {"verdict": text}


def is_steady(seconds: Sequence[float]) -> bool:
    """Whether the last five times are as long as the five before: clocks and caches are warm."""
    if len(seconds) < 2 * _WINDOW:
        return False
    before, last = (statistics.median(each) for each in (seconds[-2 * _WINDOW : -_WINDOW], seconds[-_WINDOW:]))
    return abs(last / before - 1) <= _STEADY


def milliseconds(seconds: float) -> float:
    """To the microsecond."""
    return round(1e3 * seconds, 3)


def _chance(n: int, k: int) -> float:
    """Of exactly k of n values to lie below the median."""
    return exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2))


def _ratio(ratios: Sequence[float]) -> dict[str, Any]:
    low, high, coverage = interval(ratios)
    values = {"median": statistics.median(ratios), "low": low, "high": high, "coverage": coverage}
    return {name: round(value, 4) for name, value in values.items()} | {"n": len(ratios)}
