"""Costs: how long a step takes, when the images of a batch are done, and the throughput that follows.

The engine runs all images of one size as one batch, whatever step each is at, and one batch per size after the other.
So the time of a denoising step is the sum over the sizes that run. An example: a step takes 10 ms for one image of the
nominal size and 12 ms for two. With an image of twice that size beside these two, it takes 12 + 2 * 10 = 32 ms.

Predictions are in seconds from now. Only steps and decoding occupy the device; the rest of an image (reading and
writing files) delays that image and not its neighbours.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate
from math import exp, inf, log
from operator import attrgetter
from statistics import fmean

from scheduler.messages import NOMINAL, BatchKey, Costs, Job

INSTANT = 1e-9  # seconds; stands for a measured zero, where it would be a divisor
CROWD = 10.0  # waiting jobs for each running image, when capacity is estimated: deadlines are some ten images long
APART = 1.25  # sizes must differ by this factor in work to extrapolate from them
STEEPEST = 2.0  # the largest exponent of work: attention compares all pixels with all
HOPE, CAUTION = 0.85, 1.05  # actual times are between these multiples of the prediction, as a rule
RELUCTANCE = 0.01  # joining must make the sum of completion times smaller by this part
MISSED = 3  # steps that pass until a free place is used, while one image is encoded and the next is prepared
ROUNDING = 1e-9  # relative; values that differ by less are equal


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
    """The factor by which a worker's steps take longer than measured at present.

    It is above 1 if other work runs on the machine or the device is throttled, and below 1 if other work ran during the
    measurement. It starts as if one second of steps had taken as long as measured. One step counts as at most HICCUP
    times its expected time, because a pause of the process says little about the next step.
    """

    taken: float = 1.0
    expected: float = 1.0
    factor: float = 1.0

    KEPT = 0.98  # of the past, with each step: about fifty steps count
    HICCUP = 5.0
    LEAST = 1e-3

    def add(self, taken: float, measured: float) -> None:
        """Count one more step: the seconds it took, and the seconds it takes as measured.

        Ignore steps without a measured time, as of an engine that does nothing.
        """
        if measured < INSTANT:
            return
        taken = min(taken, self.HICCUP * measured * self.factor)
        self.taken = self.KEPT * self.taken + taken
        self.expected = self.KEPT * self.expected + measured
        self.factor = max(self.LEAST, self.taken / self.expected)


def power_law(work: float, known: Sequence[tuple[float, float]]) -> float:
    """Seconds of a step of so much work, from known steps: pairs of (work, seconds), by ascending work.

    Between two known steps, interpolate by the power law through both. Beyond the last, extrapolate by the power law
    through the last and the nearest one that differs by a factor of at least `APART`: closer ones tell more about noise
    than about growth. Without such a pair, take seconds as proportional to work.
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
    """The prices of one device: what a step takes, by the images that run.

    A worker measures batches of the nominal size before it is ready, and other sizes later, when it is idle. Sizes that
    were not measured are priced by a power law through those that were. An example: a step takes 10 ms for one image,
    and 24 ms for one of twice the work. Then 1.5 times the work takes 10 * 1.5 ** 1.26 = 16.7 ms. While only the
    nominal size is known, prices are proportional to work.

    Real steps correct the prices in two ways. The slowdown scales all of them, and follows within some fifty steps. The
    price of another size relative to the nominal one is learned from steps that run nothing else, and kept until that
    size is measured. More images in a batch never make it cheaper, whatever was measured: that could only be noise.
    """

    costs: Costs
    slowdown: Slowdown = field(default_factory=Slowdown)
    learned: dict[BatchKey, float] = field(default_factory=dict)
    """By size: the price of one image relative to one of the nominal size, learned from real steps."""
    seconds: tuple[float, ...] = field(init=False)
    """Seconds of a step of n images of the nominal size, for n = 1, 2, ..."""
    by_size: dict[BatchKey, tuple[float, ...]] = field(init=False)
    """The same by size, for the sizes asked for so far, with what was learned."""
    guessed: dict[BatchKey, float] = field(init=False)
    """By size: the price of one image before anything was learned."""

    LEARNED = 0.02  # the part of a difference that one step corrects
    FAR = 3.0  # learned prices stay within this factor of the first guess

    def __post_init__(self) -> None:
        self.seconds = tuple(accumulate(self.costs.step_seconds, max))
        self.by_size = {key: tuple(accumulate(steps, max)) for key, steps in self.costs.sizes}
        self.guessed = {key: steps[0] for key, steps in self.by_size.items()}
        self.learned = {key: ratio for key, ratio in self.learned.items() if key not in self.by_size}

    def step(self, counts: Mapping[BatchKey, int]) -> float:
        """Seconds of one step with so many images of each size."""
        return self.slowdown.factor * self._as_measured(counts)

    def _as_measured(self, counts: Mapping[BatchKey, int]) -> float:
        return sum([self.of(key)[n - 1] for key, n in counts.items()])

    def of(self, key: BatchKey) -> tuple[float, ...]:
        """Seconds of a step of n images of a size, for n = 1, 2, ..., as learned, but without the slowdown."""
        known = self.by_size.get(key)
        if known is None:
            known = self.by_size[key] = self._priced(key)
        return known

    def _priced(self, key: BatchKey) -> tuple[float, ...]:
        """The prices of a size that was not measured, without the slowdown."""
        if key.work == NOMINAL.work:
            return self.seconds
        known: dict[float, list[Sequence[float]]] = {}
        for other, steps in self.costs.sizes:
            known.setdefault(other.work, []).append(steps)  # several sizes: 512 x 768 and 768 x 512, say
        known[NOMINAL.work] = [self.seconds]
        means = [(work, [fmean(each) for each in zip(*steps, strict=True)]) for work, steps in sorted(known.items())]
        prices = [power_law(key.work, [(work, steps[n]) for work, steps in means]) for n in range(len(self.seconds))]
        self.guessed[key] = prices[0]
        if key in self.learned:
            factor = self.learned[key] * self.seconds[0] / max(prices[0], INSTANT)
            prices = [factor * seconds for seconds in prices]
        return tuple(accumulate(prices, max))

    def step_in_one_batch(self, counts: Mapping[BatchKey, int]) -> float:
        """The same if images of all sizes could share one batch, each paying its part of a batch of its size."""
        images = sum(counts.values())
        parts = [n / images * self.of(key)[images - 1] for key, n in counts.items()]
        return self.slowdown.factor * sum(parts)

    def fixed(self, work: float) -> float:
        """Seconds that an image takes beside its steps."""
        return self.slowdown.factor * self.costs.fixed_seconds * work

    def decode(self, work: float) -> float:
        """The part of `fixed` in which the device takes no step."""
        return self.slowdown.factor * self.costs.decode_seconds * work

    def beside(self, work: float) -> float:
        """The part of `fixed` in which the device goes on with steps."""
        return self.fixed(work) - self.decode(work)

    def steps(self, length: float) -> int:
        """Steps of an image that is `length` times as long as usual."""
        return max(1, round(self.costs.steps * length))

    def alone(self, job: Job) -> float:
        """Seconds of a job if nothing else runs."""
        return self.steps(job.length) * self.step({job.batch_key: 1}) + self.fixed(job.work)

    def learn(self, taken: float, counts: Mapping[BatchKey, int], decoded: float) -> None:
        """Correct the prices by a step that ended `taken` seconds after the previous one.

        Between the two, `decoded` nominal images were decoded.
        """
        measured, beside = self._as_measured(counts), decoded * self.costs.decode_seconds
        if len(counts) == 1 and measured and not beside:
            [key] = counts
            if (prices := self.by_size[key]) is not self.seconds:
                off = min(taken / (measured * self.slowdown.factor), self.slowdown.HICCUP)
                # Steps of one size give only the product of its price and the slowdown: neither may run away.
                guess = self.guessed[key]
                price = min(max(prices[0] * (1 + self.LEARNED * (off - 1)), guess / self.FAR), guess * self.FAR)
                factor = price / max(prices[0], INSTANT)
                self.by_size[key] = prices = tuple([factor * seconds for seconds in prices])
                self.learned[key] = prices[0] / max(self.seconds[0], INSTANT)
        self.slowdown.add(taken, measured + beside)


@dataclass(slots=True, eq=False)
class BatchImage:
    """An image in a batch: its size, the denoising steps left, and its deadline."""

    key: BatchKey
    left: int
    deadline: float


steps_left = attrgetter("left")


def counted(images: Iterable[BatchImage]) -> dict[BatchKey, int]:
    """The number of images of each size. (Making a Counter takes three times as long.)"""
    counts: dict[BatchKey, int] = {}
    for image in images:
        counts[image.key] = counts.get(image.key, 0) + 1
    return counts


def completion_times(
    prices: StepPrices, batch: Sequence[BatchImage], taken: int = 0, busy: float = 0.0
) -> tuple[list[float], float]:
    """When each image of a batch is done if no image joins, and when the device has nothing more to do.

    `batch` is sorted by steps left. Its steps start `busy` seconds from now, and `taken` of the steps are done by then.
    """
    ends, counts = [], counted(batch)
    factor, decode, beside, step = prices.slowdown.factor, prices.decode(1.0), prices.beside(1.0), prices.step(counts)
    steps = {key: (0.0, *prices.of(key)) for key in counts}
    for image in batch:
        key, left = image.key, image.left
        if left > taken:
            busy += (left - taken) * step
            taken = left
        busy += decode * key.work
        ends.append(busy + beside * key.work)
        n, seconds = counts[key], steps[key]
        counts[key] = n - 1
        step -= factor * (seconds[n] - seconds[n - 1])
    return ends, busy


@dataclass(frozen=True, slots=True)
class Joining:
    """What happens if new images join a running batch now, compared with waiting for images to leave.

    `end` and `end_if_waited` are when the last of the new images is done. If they join, the sum of all completion times
    grows by `added`.
    `others` has two points in time for each image of the batch, sorted: joining after the first makes it late, and
    after the second it is late anyway. Waiting makes the sum smaller by `gain`, and the device is done `sooner`.
    """

    end: float
    end_if_waited: float
    added: float
    others: tuple[tuple[float, float], ...]
    gain: float
    sooner: float

    def makes_late(self, now: float) -> bool:
        """Whether joining makes an image late that can still be in time."""
        soonest = self.others[0][0] if self.others else inf
        return soonest < now and any(joined < now <= anyway for joined, anyway in self.others)

    def is_slower(self, behind: float) -> bool:
        """Whether waiting gives a smaller sum of completion times. `behind` jobs wait behind the new ones.

        If the device is busy for longer, each job behind ends so much later: the longer the queue, the more throughput
        counts. A job that delays no image joins.
        """
        return self.gain + behind * self.sooner > 0 and self.added > self.end * (1 + ROUNDING)


def joining(
    prices: StepPrices, batch: Sequence[BatchImage], apart: Sequence[float], key: BatchKey, steps: int, group: int = 1
) -> Joining:
    """Compare joining a batch with waiting, for a `group` of equal images.

    `batch` is sorted by steps left, and its images are done at the times `apart` if no image joins. Joining an empty
    batch is always right.
    """
    place = bisect_right(batch, steps, key=steps_left)
    together = [*batch[:place], *[BatchImage(key, steps, 0.0)] * group, *batch[place:]]
    ends, busy = completion_times(prices, together)
    joined = sum(ends)
    waited, waited_busy, end = if_they_wait(prices, batch, key, steps, group) if batch else (joined, busy, ends[place])
    step = prices.step(counted(together))
    later = [*ends[:place], *ends[place + group :]]
    # Predictions are off by some percent and out of date by up to a step. So joining must leave that much slack, and an
    # image that seems late by little is protected as well: without protection it would surely be late.
    others = [
        (image.deadline - CAUTION * with_it - step, image.deadline - HOPE * alone)
        for image, alone, with_it in zip(batch, apart, later, strict=True)
        if with_it > alone * (1 + ROUNDING)
    ]
    gain = joined - (1 - RELUCTANCE) * waited  # joining must gain a little, as it also delays those who will come
    return Joining(ends[place], end, joined - sum(apart), tuple(sorted(others)), gain, busy - waited_busy)


def if_they_wait(
    prices: StepPrices, batch: Sequence[BatchImage], key: BatchKey, steps: int, group: int = 1
) -> tuple[float, float, float]:
    """The effects of waiting: each image of a group takes the place of the next image to leave.

    Returns the sum of completion times, when the device has nothing more to do, and when the last of the group is done.
    A place becomes free when its image has been decoded; the device takes no step meanwhile. The MISSED steps until the
    place is used run with one image less, and what they take longer per image is lost.
    """
    rest, total, taken, until, lost = list(batch), 0.0, 0, 0.0, 0.0
    for _ in range(group):
        step, first, others = prices.step(counted(rest)), rest[0], rest[1:]
        until += (first.left - taken) * step + prices.decode(first.key.work)
        lost += MISSED * max(0.0, prices.step(counted(others)) - step * len(others) / len(rest))
        total, taken, rest = total + until + prices.beside(first.key.work), first.left, others
        new = BatchImage(key, taken + steps, 0.0)
        rest.insert(bisect_right(rest, new.left, key=steps_left), new)
    ends, busy = completion_times(prices, rest, taken, until)
    return total + sum(ends), busy + lost, ends[rest.index(new)]


@lru_cache(4096)
def best_group(seconds: tuple[float, ...], images: int, most: int) -> int:
    """How many images, `most` at most, should join `images` others of their size so that a step costs each least.

    `seconds` are those of a step of 1, 2, ... images. An example: if a batch of five costs as much as one of eight, a
    fifth image alone would rather wait, but four together join.
    """
    return min(range(1, most + 1), key=lambda group: seconds[images + group - 1] / (images + group))


@dataclass(frozen=True, slots=True)
class Capacity:
    """A worker under load: it runs `places` nominal images together, and each takes `seconds`.

    One step is `step_share` of an image, all its steps are `steps_share`. The known progress of an image is out of date
    by up to `lag` seconds.
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
    """The capacity that the rules of joining lead to, with a long queue and images evenly spread over their steps."""
    prices, places = StepPrices(costs), 1
    while places < len(costs.step_seconds):
        spread = [BatchImage(NOMINAL, costs.steps * (n + 1) // (places + 1), inf) for n in range(places)]
        apart, _ = completion_times(prices, spread)
        group = best_group(prices.seconds, places, min(len(costs.step_seconds) - places, int(CROWD) + 1))
        if all(joining(prices, spread, apart, NOMINAL, costs.steps, n).is_slower(CROWD + 1 - n) for n in {1, group}):
            break
        places += 1
    step = costs.step_seconds[places - 1]
    others = (places - 1) * costs.decode_seconds  # each other image is decoded once meanwhile
    seconds = max(costs.steps * step + costs.fixed_seconds + others, INSTANT)
    return Capacity(places, seconds, step / seconds, costs.steps * step / seconds, step + costs.fixed_seconds)
