"""Costs: how long a step takes, when the images of a batch are done, and whether one more image should join it.

The engine runs all images of one size as one batch, whatever step each is at, and one batch per size after the other.
So the time of a denoising step is the sum over the sizes that run. An example: a step takes 10 ms for one image of the
nominal size and 12 ms for two. With an image of twice that size beside these two, it takes 12 + 2 * 10 = 32 ms.

An image that joins a batch slows the others down, and one that waits ends later itself. The rule compares the sums of
all completion times. An example: image A has 10 steps left, and image B, with 20 steps, may join it.

    | a step of one, of two | B joins: A, B end | sum    | B waits: A, B end | sum    | B     |
    |-----------------------|-------------------|--------|-------------------|--------|-------|
    | 10 ms, 12 ms          | 120 ms, 220 ms    | 340 ms | 100 ms, 300 ms    | 400 ms | joins |
    | 10 ms, 19 ms          | 190 ms, 290 ms    | 480 ms | 100 ms, 300 ms    | 400 ms | waits |

Predictions are in seconds from now. Only steps and decoding occupy the device; the rest of an image (reading and
writing files) delays that image and not the others.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from math import exp, inf, log
from operator import attrgetter

from scheduler.messages import NOMINAL, BatchKey, Costs, Job

MIN_SECONDS = 1e-9  # stands for a measured zero, where it would be a divisor
TOLERANCE = 1e-9  # relative; values that differ by less are equal
# Simulated figures are means of 3 seeds of 30 s each, on 8 devices with strong gain where nothing else is said.
BACKLOG_PER_IMAGE = 10.0
"""Waiting jobs for each running image, when the capacity is estimated. Deadlines matter then, and a default deadline is
some ten images long."""
OPTIMISTIC, PESSIMISTIC = 0.85, 1.05
"""Actual times are between these multiples of the prediction, as a rule. Simulated with deadlines of 3 s at 120% load,
0.01% of what is accepted is late; it is 0.07% with an OPTIMISTIC of 1."""
MIN_GAIN = 0.01
"""Joining must make the sum of completion times smaller by this part, as it also delays images that arrive later.
Simulated at 80% load, the mean latency is 0.80 s; it is 0.92 s with 0 and 0.93 s with 0.05."""
REFILL_STEPS = 3
"""Steps that pass until a free place is used, while one image is encoded and the next is prepared. Simulated on one
device at 120% load, 4.3% of the requests are refused; it is 9.9% with 0 and 5.9% with 6."""
MIN_WORK_RATIO = 1.25
"""Two sizes must differ by this factor in work to extrapolate from them: of closer ones, the difference is noise."""
MAX_EXPONENT = 2.0
"""The largest exponent of work in a power law: attention compares all pixels with all."""


@dataclass(slots=True)
class Slowdown:
    """The factor by which a worker's steps take longer than measured at present.

    It is above 1 if other work runs on the machine or the device is throttled, and below 1 if other work ran during the
    measurement. It starts as if one second of steps had taken as long as measured.
    """

    taken: float = 1.0
    expected: float = 1.0
    factor: float = 1.0

    DECAY = 0.98  # of the past, with each step: about fifty steps count
    MAX_RATIO = 5.0  # of one step to its expected time: a pause of the process says little about the next step
    MIN_FACTOR = 1e-3

    def add(self, taken: float, measured: float) -> None:
        """Count one more step: the seconds it took, and the seconds it takes as measured.

        Ignore steps without a measured time, as of an engine that does nothing.
        """
        if measured < MIN_SECONDS:
            return
        taken = min(taken, self.MAX_RATIO * measured * self.factor)
        self.taken = self.DECAY * self.taken + taken
        self.expected = self.DECAY * self.expected + measured
        self.factor = max(self.MIN_FACTOR, self.taken / self.expected)


def power_law(work: float, known: Sequence[tuple[float, float]]) -> float:
    """Seconds of a step of so much work, from known steps: pairs of (work, seconds), by ascending work.

    Between two known steps, interpolate by the power law through both. Beyond the last, extrapolate by the power law
    through the last and the nearest one that differs by a factor of at least MIN_WORK_RATIO. Without such a pair, take
    seconds as proportional to work.
    """
    place = bisect_left(known, (work, 0.0))
    if 0 < place < len(known):
        edge, exponent = known[place], _exponent(known[place - 1], known[place])
    else:
        edge, *others = known if place == 0 else known[::-1]
        far = [each for each in others if max(each[0] / edge[0], edge[0] / each[0]) >= MIN_WORK_RATIO]
        exponent = min(max(_exponent(edge, far[0]), 0.0), MAX_EXPONENT) if far else 1.0
    return edge[1] * exp(exponent * log(work / edge[0]))


def _exponent(one: tuple[float, float], other: tuple[float, float]) -> float:
    if min(one[1], other[1]) < MIN_SECONDS:  # as of an engine that does nothing
        return 1.0
    return log(other[1] / one[1]) / log(other[0] / one[0])


@dataclass(slots=True)
class CostModel:
    """Predicts how long a step takes on one device, by the images that run.

    A worker measures batches of the nominal size before it is ready, and other sizes later, when it is idle. A power
    law through the measured sizes estimates the others. An example: a step takes 10 ms for one image, and 24 ms for one
    of twice the work. Then 1.5 times the work takes 10 * 1.5 ** 1.26 = 16.7 ms. While only the nominal size is known,
    seconds are proportional to work.

    Real steps correct the predictions in two ways. The slowdown scales all of them, and follows within some fifty
    steps. The cost of another size relative to the nominal one is learned from steps that run nothing else, and kept
    until that size is measured. More images in a batch never make it cheaper, whatever was measured: that could only be
    noise.
    """

    costs: Costs
    slowdown: Slowdown = field(default_factory=Slowdown)
    learned: dict[BatchKey, float] = field(default_factory=dict)
    """By size: the cost of one image relative to one of the nominal size, learned from real steps."""
    nominal: tuple[float, ...] = field(init=False)
    """Seconds of a step of n images of the nominal size, for n = 1, 2, ..."""
    by_size: dict[BatchKey, tuple[float, ...]] = field(init=False)
    """The same by size, for the sizes asked for so far, with what was learned."""
    initial: dict[BatchKey, float] = field(init=False)
    """By size: seconds of a step of one image before anything was learned."""

    LEARNING_RATE = 0.02  # the part of a difference that one step corrects: about fifty steps count
    MAX_CORRECTION = 3.0  # learned seconds stay within this factor of the initial ones

    def __post_init__(self) -> None:
        self.nominal = tuple(accumulate(self.costs.step_seconds, max))
        self.by_size = {key: tuple(accumulate(seconds, max)) for key, seconds in self.costs.sizes}
        self.initial = {key: seconds[0] for key, seconds in self.by_size.items()}
        self.learned = {key: ratio for key, ratio in self.learned.items() if key not in self.by_size}

    def step_seconds(self, counts: Mapping[BatchKey, int]) -> float:
        """Seconds of one step with this number of images of each size."""
        return self.slowdown.factor * self._as_measured(counts)

    def _as_measured(self, counts: Mapping[BatchKey, int]) -> float:
        return sum([self.batch_seconds(key)[n - 1] for key, n in counts.items()])

    def batch_seconds(self, key: BatchKey) -> tuple[float, ...]:
        """Seconds of a step of n images of a size, for n = 1, 2, ..., as learned, but without the slowdown."""
        known = self.by_size.get(key)
        if known is None:
            known = self.by_size[key] = self._estimated(key)
        return known

    def _estimated(self, key: BatchKey) -> tuple[float, ...]:
        """The same for a size that was not measured."""
        if key.work == NOMINAL.work:
            return self.nominal
        known: dict[float, list[Sequence[float]]] = {}
        for other, measured in self.costs.sizes:
            known.setdefault(other.work, []).append(measured)  # several sizes: 512 x 768 and 768 x 512, say
        known[NOMINAL.work] = [self.nominal]
        means = [
            (work, [sum(each) / len(each) for each in zip(*sizes, strict=True)])
            for work, sizes in sorted(known.items())
        ]
        seconds = [power_law(key.work, [(work, mean[n]) for work, mean in means]) for n in range(len(self.nominal))]
        self.initial[key] = seconds[0]
        if key in self.learned:
            factor = self.learned[key] * self.nominal[0] / max(seconds[0], MIN_SECONDS)
            seconds = [factor * each for each in seconds]
        return tuple(accumulate(seconds, max))

    def step_seconds_in_one_batch(self, counts: Mapping[BatchKey, int]) -> float:
        """The same if images of all sizes could share one batch, each paying its part of a batch of its size."""
        images = sum(counts.values())
        parts = [n / images * self.batch_seconds(key)[images - 1] for key, n in counts.items()]
        return self.slowdown.factor * sum(parts)

    def fixed_seconds(self, work: float) -> float:
        """Seconds that an image takes beside its steps."""
        return self.slowdown.factor * self.costs.fixed_seconds * work

    def decode_seconds(self, work: float) -> float:
        """The part of the fixed seconds in which the device takes no step."""
        return self.slowdown.factor * self.costs.decode_seconds * work

    def overlapped_seconds(self, work: float) -> float:
        """The part of the fixed seconds in which the device goes on with steps."""
        return self.fixed_seconds(work) - self.decode_seconds(work)

    def step_count(self, relative_steps: float) -> int:
        """Steps of an image that has `relative_steps` times the usual number."""
        return max(1, round(self.costs.steps * relative_steps))

    def seconds_alone(self, job: Job) -> float:
        """Seconds of a job if nothing else runs."""
        steps = self.step_count(job.relative_steps)
        return steps * self.slowdown.factor * self.batch_seconds(job.batch_key)[0] + self.fixed_seconds(job.work)

    def learn(self, taken: float, counts: Mapping[BatchKey, int], decoded: float) -> None:
        """Correct the predictions by a step that ended `taken` seconds after the previous one.

        Between the two, `decoded` nominal images were decoded.
        """
        measured, decoding = self._as_measured(counts), decoded * self.costs.decode_seconds
        if len(counts) == 1 and measured and not decoding:
            [key] = counts
            if self.by_size[key] is not self.nominal:
                self._learn_size(key, taken / (measured * self.slowdown.factor))
        self.slowdown.add(taken, measured + decoding)

    def _learn_size(self, key: BatchKey, ratio: float) -> None:
        """Correct the cost of a size by the ratio of a real step to its prediction.

        Steps of one size give only the product of its cost and the slowdown, so neither may run away.
        """
        seconds, initial = self.by_size[key], self.initial[key]
        first = seconds[0] * (1 + self.LEARNING_RATE * (min(ratio, self.slowdown.MAX_RATIO) - 1))
        first = min(max(first, initial / self.MAX_CORRECTION), initial * self.MAX_CORRECTION)
        factor = first / max(seconds[0], MIN_SECONDS)
        self.by_size[key] = seconds = tuple([factor * each for each in seconds])
        self.learned[key] = seconds[0] / max(self.nominal[0], MIN_SECONDS)


@dataclass(slots=True, eq=False)
class BatchImage:
    """An image in a batch: its size, the denoising steps left, and its deadline."""

    key: BatchKey
    steps_left: int
    deadline: float


by_steps_left = attrgetter("steps_left")


def count_by_size(images: Iterable[BatchImage]) -> dict[BatchKey, int]:
    """The number of images of each size. (Making a Counter takes three times as long.)"""
    counts: dict[BatchKey, int] = {}
    for image in images:
        counts[image.key] = counts.get(image.key, 0) + 1
    return counts


def completion_times(
    model: CostModel, batch: Sequence[BatchImage], taken: int = 0, busy: float = 0.0
) -> tuple[list[float], float]:
    """When each image of a batch is done if no image joins, and when the device has nothing more to do.

    `batch` is sorted by steps left. Its steps start `busy` seconds from now, and `taken` of the steps are done by then.
    """
    ends, counts = [], count_by_size(batch)
    factor, step = model.slowdown.factor, model.step_seconds(counts)
    decode, overlapped = model.decode_seconds(1.0), model.overlapped_seconds(1.0)
    batch_seconds = {key: (0.0, *model.batch_seconds(key)) for key in counts}
    for image in batch:
        key, left = image.key, image.steps_left
        if left > taken:
            busy += (left - taken) * step
            taken = left
        busy += decode * key.work
        ends.append(busy + overlapped * key.work)
        n, seconds = counts[key], batch_seconds[key]
        counts[key] = n - 1
        step -= factor * (seconds[n] - seconds[n - 1])
    return ends, busy


@dataclass(frozen=True, slots=True)
class JoinEffect:
    """The effects if new images join a running batch now, compared with waiting for images to leave.

    `end` and `end_if_waiting` are when the last of the new images is done. If they join, the sum of all completion
    times grows by `sum_increase`.
    `late_windows` has two points in time for each image of the batch, sorted: joining after the first makes it late,
    and after the second it is late anyway. Waiting makes the sum smaller by `sum_saved_by_waiting`, and the device is
    done `busy_saved_by_waiting` seconds sooner.
    """

    end: float
    end_if_waiting: float
    sum_increase: float
    late_windows: tuple[tuple[float, float], ...]
    sum_saved_by_waiting: float
    busy_saved_by_waiting: float

    def makes_late(self, now: float) -> bool:
        """Whether joining makes an image late that can still be in time."""
        soonest = self.late_windows[0][0] if self.late_windows else inf
        return soonest < now and any(joined < now <= anyway for joined, anyway in self.late_windows)

    def should_wait(self, behind: float) -> bool:
        """Whether waiting gives a smaller sum of completion times. `behind` jobs wait behind the new ones.

        If the device is busy for longer, each job behind ends so much later: the longer the queue, the more throughput
        counts. A job that delays no image joins.
        """
        saved = self.sum_saved_by_waiting + behind * self.busy_saved_by_waiting
        return saved > 0 and self.sum_increase > self.end * (1 + TOLERANCE)


def effect_of_joining(
    model: CostModel,
    batch: Sequence[BatchImage],
    ends_without: Sequence[float],
    key: BatchKey,
    steps: int,
    group: int = 1,
) -> JoinEffect:
    """Compare joining a batch with waiting, for a `group` of equal images.

    `batch` is sorted by steps left, and its images are done at the times `ends_without` if no image joins. Joining an
    empty batch is always right.
    """
    place = bisect_right(batch, steps, key=by_steps_left)
    together = [*batch[:place], *[BatchImage(key, steps, 0.0)] * group, *batch[place:]]
    ends, busy = completion_times(model, together)
    total, end = sum(ends), ends[place]
    total_if_waiting, busy_if_waiting, end_if_waiting = (
        effect_of_waiting(model, batch, key, steps, group) if batch else (total, busy, end)
    )
    step = model.step_seconds(count_by_size(together))
    ends_with = [*ends[:place], *ends[place + group :]]
    # Predictions are off by some percent and out of date by up to a step. So joining must leave that much slack, and an
    # image that seems late by little is protected as well: without protection it would surely be late.
    late_windows = [
        (image.deadline - PESSIMISTIC * with_it - step, image.deadline - OPTIMISTIC * without)
        for image, without, with_it in zip(batch, ends_without, ends_with, strict=True)
        if with_it > without * (1 + TOLERANCE)
    ]
    return JoinEffect(
        end,
        end_if_waiting,
        sum_increase=total - sum(ends_without),
        late_windows=tuple(sorted(late_windows)),
        sum_saved_by_waiting=total - (1 - MIN_GAIN) * total_if_waiting,
        busy_saved_by_waiting=busy - busy_if_waiting,
    )


def effect_of_waiting(
    model: CostModel, batch: Sequence[BatchImage], key: BatchKey, steps: int, group: int = 1
) -> tuple[float, float, float]:
    """The effects of waiting: each image of a group takes the place of the next image to leave.

    Returns the sum of completion times, when the device has nothing more to do, and when the last of the group is done.
    A place becomes free when its image has been decoded; the device takes no step meanwhile. The REFILL_STEPS until the
    place is used run with one image less, and what they take longer per image is lost.
    """
    rest, total, taken, until, lost = list(batch), 0.0, 0, 0.0, 0.0
    for _ in range(group):
        step, first, others = model.step_seconds(count_by_size(rest)), rest[0], rest[1:]
        until += (first.steps_left - taken) * step + model.decode_seconds(first.key.work)
        step_of_others = model.step_seconds(count_by_size(others))
        lost += REFILL_STEPS * max(0.0, step_of_others - step * len(others) / len(rest))
        total, taken, rest = total + until + model.overlapped_seconds(first.key.work), first.steps_left, others
        new = BatchImage(key, taken + steps, 0.0)
        rest.insert(bisect_right(rest, new.steps_left, key=by_steps_left), new)
    ends, busy = completion_times(model, rest, taken, until)
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
    """A worker under load: it runs `batch_size` nominal images together, and each takes `image_seconds`.

    One step is `step_share` of an image, all its steps are `denoising_share`. The known progress of an image is out of
    date by up to `progress_lag` seconds.
    """

    batch_size: int
    image_seconds: float
    step_share: float
    denoising_share: float
    progress_lag: float

    @property
    def throughput(self) -> float:
        """Nominal images per second."""
        return self.batch_size / self.image_seconds


def estimate_capacity(costs: Costs) -> Capacity:
    """The capacity that the rules of joining lead to, with a long queue and images evenly spread over their steps."""
    model, size, slots = CostModel(costs), 1, len(costs.step_seconds)
    while size < slots:
        spread = [BatchImage(NOMINAL, costs.steps * (n + 1) // (size + 1), inf) for n in range(size)]
        ends, _ = completion_times(model, spread)
        groups = {1, best_group(model.nominal, size, min(slots - size, int(BACKLOG_PER_IMAGE) + 1))}
        effects = {n: effect_of_joining(model, spread, ends, NOMINAL, costs.steps, n) for n in groups}
        if all(effect.should_wait(BACKLOG_PER_IMAGE + 1 - n) for n, effect in effects.items()):
            break
        size += 1
    step = costs.step_seconds[size - 1]
    decoding_others = (size - 1) * costs.decode_seconds  # each other image is decoded once meanwhile
    seconds = max(costs.steps * step + costs.fixed_seconds + decoding_others, MIN_SECONDS)
    return Capacity(size, seconds, step / seconds, costs.steps * step / seconds, step + costs.fixed_seconds)
