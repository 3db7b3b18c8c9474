"""What a device takes for a step, when the images of a batch are done, and how many images a second that makes.

The engine advances all images of one size in one batch, whatever step each is at, and runs one batch per size after the
other. So a denoising step takes the sum over the sizes that run. An example: a step takes 10 ms for one image of the
nominal size and 12 ms for two, and an image of twice that size runs beside them: 12 + 2 * 10 = 32 ms.

Predictions are in seconds from now. They take a device to be busy with steps alone: what an image takes beside its
steps (to be prepared, decoded and encoded) delays that image and not its neighbours.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from math import exp, inf, log
from operator import attrgetter
from statistics import fmean

from scheduler.messages import NOMINAL, BatchKey, Costs, Job

INSTANT = 1e-9  # seconds; stands for a measured zero, where it would be a divisor
CROWD = 10.0  # jobs that wait for each running image, when a worker's capacity is judged: a deadline is ten images long
APART = 1.25  # times the work: from sizes closer to each other, nothing is concluded for those beyond
STEEPEST = 2.0  # exponent of work: attention compares all pixels with all
ROUNDING = 1e-9  # relative; sums that differ by less are equal


class Wait(StrEnum):
    """Why the next job does not start now."""

    NO_WORKER = "no worker is ready"
    SLOTS_TAKEN = "every slot is taken"
    SLOWER = "joining would end later, in sum, than waiting for a place"
    DEADLINE = "joining would break the deadline of a running image"
    SUSPECT = "a job that lost a worker runs alone there"
    NEEDS_EMPTY = "it lost a worker, so it waits for an empty one"


@dataclass(slots=True)
class Slowdown:
    """How many times longer than measured a worker's steps take at present.

    Above 1: other work runs on the machine, or the device is throttled. Below 1: other work ran while the worker
    measured itself. It starts with one second of steps as measured. One step counts for at most HICCUP times what was
    expected, because a worker that was stopped for a while says little about its next step.
    """

    taken: float = 1.0
    expected: float = 1.0
    factor: float = 1.0
    """1 if steps take as long as measured."""

    KEPT = 0.98  # of the past, with each step: about fifty steps count
    HICCUP = 5.0
    LEAST = 1e-3

    def add(self, taken: float, measured: float) -> None:
        """Count one more step: the seconds that it took, and those that it takes as measured.

        A step that takes no time, as those of an engine that does nothing, says nothing.
        """
        if measured < INSTANT:
            return
        taken = min(taken, self.HICCUP * measured * self.factor)
        self.taken = self.KEPT * self.taken + taken
        self.expected = self.KEPT * self.expected + measured
        self.factor = max(self.LEAST, self.taken / self.expected)


def power_law(work: float, known: Sequence[tuple[float, float]]) -> float:
    """Seconds of a step of so much work, from the steps that are known: (work, seconds), by ascending work.

    Between two known works, it is the power law through both. Beyond the last, the law goes on as between the last and
    the nearest that is at least `APART` times as far: two that lie closer tell more of noise than of growth. Without
    such a pair, seconds are proportional to work.
    """
    place = bisect_left(known, (work, 0.0))
    if 0 < place < len(known):
        edge, exponent = known[place], _exponent(known[place - 1], known[place])
    else:
        edge, *others = known if place == 0 else known[::-1]
        far = [each for each in others if max(each[0] / edge[0], edge[0] / each[0]) >= APART]
        exponent = min(max(_exponent(edge, far[0]), 0.0), STEEPEST) if far else 1.0
    return edge[1] * exp(exponent * log(work / edge[0]))


def _exponent(one: tuple[float, float], other: tuple[float, float]) -> float:
    if min(one[1], other[1]) < INSTANT:  # as of an engine that does nothing
        return 1.0
    return log(other[1] / one[1]) / log(other[0] / one[0])


@dataclass(slots=True)
class StepPrices:
    """What steps take on one device, by what runs on it.

    A worker measures batches of the nominal size before it is ready, and those of other sizes when it finds the time.
    The sizes that it did not measure are priced by a power law through those that it did. An example: a step of one
    image takes 10 ms, and one of twice the work 24 ms. Then 1.5 times the work takes 10 * 1.5 ** 1.26 = 16.7 ms. While
    only the nominal size is known, prices are proportional to work.

    Real steps correct the prices in two ways: the slowdown scales all of them and follows within some fifty steps; what
    another size takes compared with the nominal one is learned from steps that run nothing else, and kept until that
    size is measured again. More images in a batch never make it cheaper, whatever was measured: that could only be
    noise.
    """

    costs: Costs
    slowdown: Slowdown = field(default_factory=Slowdown)
    learned: dict[BatchKey, float] = field(default_factory=dict)
    """By size: how many times as long as the nominal one a step of one image takes, as real steps say."""
    seconds: tuple[float, ...] = field(init=False)
    """A step of n images of the nominal size, for n = 1, 2, ..."""
    by_size: dict[BatchKey, tuple[float, ...]] = field(init=False)
    """The same of each size that was asked for so far, with what was learned."""

    LEARNED = 0.02  # of the difference, with each step

    def __post_init__(self) -> None:
        self.seconds = tuple(accumulate(self.costs.step_seconds, max))
        self.by_size = {key: tuple(accumulate(steps, max)) for key, steps in self.costs.sizes}
        self.learned = {key: ratio for key, ratio in self.learned.items() if key not in self.by_size}

    def step(self, counts: Counter[BatchKey]) -> float:
        """Seconds of one step with so many images of each size."""
        return self.slowdown.factor * self._as_measured(counts)

    def _as_measured(self, counts: Counter[BatchKey]) -> float:
        by_size = self.by_size
        try:
            return sum([by_size[key][n - 1] for key, n in counts.items()])
        except KeyError:
            by_size.update({key: self._priced(key) for key in counts if key not in by_size})
            return self._as_measured(counts)

    def _priced(self, key: BatchKey) -> tuple[float, ...]:
        """The prices of a size that was not measured."""
        if key.work == NOMINAL.work:
            return self.seconds
        known: dict[float, list[Sequence[float]]] = {}
        for other, steps in self.costs.sizes:
            known.setdefault(other.work, []).append(steps)  # a size and the same turned by 90 degrees, say
        known[NOMINAL.work] = [self.seconds]
        means = [(work, [fmean(each) for each in zip(*steps, strict=True)]) for work, steps in sorted(known.items())]
        prices = [power_law(key.work, [(work, steps[n]) for work, steps in means]) for n in range(len(self.seconds))]
        if key in self.learned:
            factor = self.learned[key] * self.seconds[0] / max(prices[0], INSTANT)
            prices = [factor * seconds for seconds in prices]
        return tuple(accumulate(prices, max))

    def step_in_one_batch(self, counts: Counter[BatchKey]) -> float:
        """The same if all images could share one batch: then each has its part of a batch of its size."""
        self._as_measured(counts)  # prices the sizes
        images = counts.total()
        parts = [n / images * self.by_size[key][images - 1] for key, n in counts.items()]
        return self.slowdown.factor * sum(parts)

    def fixed(self, work: float) -> float:
        """Seconds that an image takes beside its steps."""
        return self.slowdown.factor * self.costs.fixed_seconds * work

    def steps(self, length: float) -> int:
        """Steps of an image that is `length` times as long as usual."""
        return max(1, round(self.costs.steps * length))

    def alone(self, job: Job) -> float:
        """Seconds that a job takes on the worker if nothing else runs there."""
        return self.steps(job.length) * self.step(Counter([job.batch_key])) + self.fixed(job.work)

    def learn(self, taken: float, counts: Counter[BatchKey]) -> None:
        """Correct the prices by a step that took `taken` seconds."""
        measured = self._as_measured(counts)
        if len(counts) == 1 and measured:
            [key] = counts
            if (prices := self.by_size[key]) is not self.seconds:
                off = min(max(taken / (measured * self.slowdown.factor), 0.5), 2.0)
                factor = 1 + self.LEARNED * (off - 1)
                self.by_size[key] = prices = tuple([factor * seconds for seconds in prices])
                self.learned[key] = prices[0] / max(self.seconds[0], INSTANT)
        self.slowdown.add(taken, measured)


@dataclass(slots=True, eq=False)
class BatchImage:
    """An image in a batch: its size, its denoising steps left, and when it is due."""

    key: BatchKey
    left: int
    deadline: float


steps_left = attrgetter("left")


def completion_times(
    prices: StepPrices, batch: Sequence[BatchImage], taken: int = 0, busy: float = 0.0
) -> tuple[list[float], float]:
    """When each image of a batch is done if nobody joins, and when the device has taken the last step.

    `batch` is sorted by the steps left. It starts `busy` seconds from now, with `taken` of these steps behind it.
    """
    ends, counts, fixed = [], Counter([image.key for image in batch]), prices.fixed(1.0)
    for image in batch:
        if image.left > taken:
            busy += (image.left - taken) * prices.step(counts)
            taken = image.left
        ends.append(busy + fixed * image.key.work)
        counts[image.key] -= 1
        if not counts[image.key]:
            del counts[image.key]
    return ends, busy


@dataclass(frozen=True, slots=True)
class Joining:
    """What it means for a running batch if a new image joins it now, or waits instead for the first of them to leave.

    `end` is when the new image is done if it joins, and `step` what the next step takes then. `others` are a deadline
    each, with when that image is done alone and when together with the new one. `joined` and `waited` are the sums of
    all completion times, and `joined_busy` and `waited_busy` when the device has taken the last step. `added` is how
    much the sum grows if the new image joins.
    """

    end: float
    step: float
    others: tuple[tuple[float, float, float], ...]
    joined: float
    joined_busy: float
    waited: float
    waited_busy: float
    added: float

    def reason_not_to_join(self, now: float, behind: float) -> Wait | None:
        """Why the new image should wait; None if it should join. `behind` jobs wait behind it."""
        if self.makes_late(now):
            return Wait.DEADLINE
        return Wait.SLOWER if self.is_slower(behind) else None

    def makes_late(self, now: float) -> bool:
        """Whether an image of the batch that is in time now would be late.

        With a step to spare, as what is known of the batch lags by up to a step.
        """
        return any(now + alone <= due < now + together + self.step for due, alone, together in self.others)

    def is_slower(self, behind: float) -> bool:
        """Whether waiting gives the smaller sum of completion times.

        Each of the `behind` jobs that wait behind this one ends as much later as the device is busy longer: the longer
        the queue, the more throughput counts.
        """
        joined, waited = self.joined + behind * self.joined_busy, self.waited + behind * self.waited_busy
        return joined > waited * (1 + ROUNDING)


def joining(prices: StepPrices, batch: Sequence[BatchImage], key: BatchKey, steps: int) -> Joining:
    """Compare joining a batch with waiting. Nothing speaks against joining an empty one."""
    new, batch = BatchImage(key, steps, 0.0), sorted(batch, key=steps_left)
    apart, _ = completion_times(prices, batch)
    waited, waited_busy, _ = if_it_waits(prices, batch, new) if batch else (0.0, 0.0, 0.0)
    deadlines = [image.deadline for image in batch]
    place = insort_place(batch, new)
    joined, busy = completion_times(prices, batch)
    total, end = sum(joined), joined.pop(place)
    step = prices.step(Counter([image.key for image in batch]))
    others = tuple(zip(deadlines, apart, joined, strict=True))
    if not apart:
        waited, waited_busy = total, busy
    return Joining(end, step, others, total, busy, waited, waited_busy, total - sum(apart))


def insort_place(batch: list[BatchImage], new: BatchImage) -> int:
    """Insert an image behind those that have as few steps left; returns where."""
    place = bisect_right(batch, new.left, key=steps_left)
    batch.insert(place, new)
    return place


def if_it_waits(prices: StepPrices, batch: Sequence[BatchImage], new: BatchImage) -> tuple[float, float, float]:
    """The sum of all completion times, the last step's and the new one's, if it takes the place of the first to leave.

    That place is free when the first is decoded. Until then the others have the device to themselves: that is left out.
    """
    first, *others = batch
    until = first.left * prices.step(Counter([image.key for image in batch]))
    decoded = prices.fixed(first.key.work)
    place = insort_place(others, BatchImage(new.key, first.left + new.left, 0.0))
    ends, busy = completion_times(prices, others, first.left, until)
    return (until + decoded) + sum(ends) + decoded, busy, ends[place] + decoded


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a worker does under load, as measured: `places` nominal images together, `seconds` for each.

    `step_share` is the part of an image that one step is, `steps_share` that all of them are. `lag` is how many seconds
    a count of steps can lag behind.
    """

    places: int
    seconds: float
    step_share: float
    steps_share: float
    lag: float

    @property
    def throughput(self) -> float:
        """Nominal images per second."""
        return self.places / self.seconds


def capacity(costs: Costs) -> Capacity:
    """The load that joining leads to, when images are spread evenly over their steps and a queue waits."""
    prices, places = StepPrices(costs), 1
    while places < len(costs.step_seconds):
        spread = [BatchImage(NOMINAL, costs.steps * (n + 1) // (places + 1), inf) for n in range(places)]
        if joining(prices, spread, NOMINAL, costs.steps).is_slower(CROWD):
            break
        places += 1
    step = costs.step_seconds[places - 1]
    seconds = max(costs.steps * step + costs.fixed_seconds, INSTANT)
    return Capacity(places, seconds, step / seconds, costs.steps * step / seconds, step + costs.fixed_seconds)
