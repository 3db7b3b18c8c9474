"""Who goes where, as numbers: how long pictures will take, whether to join a batch, and what a fleet gets done.

Predictions are in seconds from now. They take a device to be busy with steps alone: the fixed part of a picture
(prepare, decode, encode) delays that picture and not its neighbours.
"""

from bisect import bisect_right, insort_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import attrgetter
from typing import Annotated

import msgspec

from scheduler.messages import Costs

INSTANT = 1e-9  # seconds; stands for a measured zero, where it would be a divisor
ROUNDING = 1e-9  # relative; sums that differ by less are equal
CROWD = 10.0  # jobs behind each picture that runs, when admission matters: a deadline is ten pictures long by default
SOONEST_RETRY = 0.001  # seconds
ACCIDENTS = 5  # a worker ended from outside is hardly its jobs' doing: so many weigh as much as one that may be
NOTICEABLE = 1.03  # how far a worker's steps may be off, up or down, before its costs are corrected
MARGIN = 1.1  # on the wait in a queue: what is taken to the edge of its deadline would miss it by the least delay


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The queue, and when a worker is given up. Times in seconds."""

    max_queue: Annotated[int, msgspec.Meta(ge=1)] = 256
    """The most images that wait."""
    client_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5
    """The part of the free queue, in places and in time, that one client may take; 1 turns that off."""
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 2
    """How many workers an image may crash before it is given up; one that was ended from outside counts for a fifth."""
    silence_factor: Annotated[float, msgspec.Meta(ge=1)] = 8.0
    """A worker is killed when a step takes this many times as long as expected, and `silence_floor` at least."""
    silence_floor: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    """The shortest silence for which a worker is killed."""
    load_timeout: Annotated[float, msgspec.Meta(gt=0)] = 900.0
    """A worker is killed when it is not ready this long after its start."""
    restart_pause: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    """The pause before a worker that finished nothing is started again; it doubles each time."""
    restart_pause_max: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    """The longest such pause."""
    out_after: Annotated[int, msgspec.Meta(ge=1)] = 5
    """A worker that died so often without finishing an image is out of service; when all are, the service ends."""
    out_pause: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    """How long it is out of service before it is tried again; being ready for as long wins back all tries."""


class Wait(StrEnum):
    """Why the next job does not start now."""

    NO_WORKER = "no worker is ready"
    SLOTS_TAKEN = "every slot is taken"
    SLOWER = "joining would end later, in sum, than waiting for a place"
    DEADLINE = "joining would break the deadline of a running picture"
    SUSPECT = "a job that lost a worker runs alone there"
    NEEDS_EMPTY = "it lost a worker, so it waits for an empty one"


@dataclass(slots=True, eq=False)
class Picture:
    """A picture in a batch: its denoising steps left, its size relative to the nominal one, and when it is due."""

    left: int
    work: float
    deadline: float


_left = attrgetter("left")


# -------------------------------------------------------------------------------------------------------- one worker


def step_seconds(costs: Costs, count: int, work: float) -> float:
    """One denoising step of `count` pictures whose sizes add up to `work`."""
    return costs.step_seconds[count - 1] * work / count


def steps_of(costs: Costs, length: float) -> int:
    """The denoising steps of a picture that is so long."""
    return max(1, round(costs.steps * length))


def seconds_alone(costs: Costs, work: float = 1.0, length: float = 1.0) -> float:
    """One picture in an otherwise empty worker."""
    return (steps_of(costs, length) * costs.step_seconds[0] + costs.fixed_seconds) * work


def run_out(costs: Costs, batch: Sequence[Picture], taken: int = 0, busy: float = 0.0) -> tuple[list[float], float]:
    """How a batch ends that nobody joins: when each picture is done, and when the device has taken the last step.

    `batch` is sorted by the steps left. It starts `busy` seconds from now, with `taken` of these steps behind it.
    """
    ends, count, work = [], len(batch), sum([picture.work for picture in batch])
    for picture in batch:
        busy += (picture.left - taken) * step_seconds(costs, count, work)
        taken = picture.left
        ends.append(busy + costs.fixed_seconds * picture.work)
        count, work = count - 1, work - picture.work
    return ends, busy


@dataclass(frozen=True, slots=True)
class Joining:
    """What it means for a running batch if a new picture joins it now: all of it that no clock and no queue changes.

    `end` is when it is done then, and `step` what the next step takes. `others` are a deadline each, with when that
    picture is done alone and when together with the newcomer. `joined` and `waited` are all the ends added up if it
    joins, and if it waits for the next of them to leave; `joined_busy` and `waited_busy` are when the device has taken
    the last step then.
    """

    end: float
    step: float
    others: tuple[tuple[float, float, float], ...]
    joined: float
    joined_busy: float
    waited: float
    waited_busy: float

    def objection(self, now: float, behind: float) -> Wait | None:
        """Why it should not join; None if it should.

        The others' deadlines are to hold with a step to spare, as that is how far what is known of them lags behind.
        It should when the sum of the ends is then no later. Each of the `behind` jobs in the queue behind it ends as
        much later as the device is busy longer: the longer the queue, the more throughput counts.
        """
        for deadline, alone, together in self.others:
            if now + alone <= deadline < now + together + self.step:
                return Wait.DEADLINE
        joined, waited = self.joined + behind * self.joined_busy, self.waited + behind * self.waited_busy
        return None if joined <= waited * (1 + ROUNDING) else Wait.SLOWER


def joining(costs: Costs, batch: Sequence[Picture], work: float, steps: int) -> Joining:
    """Compare joining a batch with waiting; where nothing runs, nothing is against it."""
    newcomer = Picture(steps, work, 0.0)
    if not batch:
        [end], busy = run_out(costs, [newcomer])
        return Joining(end, step_seconds(costs, 1, work), (), end, busy, end, busy)
    batch = sorted(batch, key=_left)
    deadlines = [picture.deadline for picture in batch]
    apart, _ = run_out(costs, batch)
    waited, waited_busy = _if_it_waits(costs, batch, newcomer)
    place = bisect_right(batch, steps, key=_left)
    batch.insert(place, newcomer)
    joined, busy = run_out(costs, batch)
    total, end = sum(joined), joined.pop(place)
    step = step_seconds(costs, len(batch), sum([picture.work for picture in batch]))
    others = tuple(zip(deadlines, apart, joined, strict=True))
    return Joining(end, step, others, total, busy, waited, waited_busy)


def objection(costs: Costs, batch: Sequence[Picture], work: float, now: float, behind: float = 0.0) -> Wait | None:
    """Why a new picture of nominal length should not join a running batch now; None if it should."""
    return joining(costs, batch, work, costs.steps).objection(now, behind)


def _if_it_waits(costs: Costs, batch: list[Picture], newcomer: Picture) -> tuple[float, float]:
    """The sum of all ends, and of the last step, if a new picture takes the place of the first to leave.

    That place is free when the first is decoded. Until then the others have the device to themselves: that is left out.
    """
    first = batch[0]
    until = first.left * step_seconds(costs, len(batch), sum([picture.work for picture in batch]))
    decoded = costs.fixed_seconds * first.work
    others = batch[1:]
    insort_right(others, Picture(first.left + newcomer.left, newcomer.work, 0.0), key=_left)
    ends, busy = run_out(costs, others, first.left, until)
    return (until + decoded) + sum(ends) + decoded, busy


# --------------------------------------------------------------------------------------------------------- the fleet


@dataclass(frozen=True, slots=True)
class Pace:
    """How a worker does under load: `places` nominal pictures together, `seconds` for each.

    `step_share` is the part of a picture that one step is, `denoise_share` that all of them are. `grain` is how many
    seconds a count of steps can lag behind.
    """

    places: int
    seconds: float
    step_share: float
    denoise_share: float
    grain: float

    @property
    def throughput(self) -> float:
        """Nominal pictures per second."""
        return self.places / self.seconds


def pace(costs: Costs) -> Pace:
    """The pace that joining leads to, when pictures are spread evenly over their steps and a queue waits."""
    places = 1
    while places < len(costs.step_seconds) and objection(costs, _spread(costs, places), 1.0, 0.0, CROWD) is None:
        places += 1
    step = costs.step_seconds[places - 1]
    seconds = max(costs.steps * step + costs.fixed_seconds, INSTANT)
    return Pace(places, seconds, step / seconds, costs.steps * step / seconds, step + costs.fixed_seconds)


def _spread(costs: Costs, count: int) -> list[Picture]:
    forever = float("inf")
    return [Picture(costs.steps * (index + 1) // (count + 1), 1.0, forever) for index in range(count)]


@dataclass(slots=True)
class Slowdown:
    """How many times longer than expected a worker's steps take at present.

    Above 1: other work runs on the machine, or the device is throttled. Below 1: other work ran while the worker
    measured itself. It starts with one second of steps as expected. One step counts for at most HICCUP times what was
    expected, because a worker that was stopped for a while says little about its next step.
    """

    taken: float = 1.0
    expected: float = 1.0

    KEPT = 0.98  # of the past, with each step: about fifty steps count
    HICCUP = 5.0

    def add(self, taken: float, expected: float) -> None:
        """Count one more step: the seconds that it took, and those that it should have taken."""
        self.taken = self.KEPT * self.taken + min(taken, self.HICCUP * expected)
        self.expected = self.KEPT * self.expected + expected

    @property
    def factor(self) -> float:
        """1 if steps take as long as expected."""
        return self.taken / self.expected

    def accept(self) -> None:
        """From now on, expect steps to take as long as they do."""
        self.expected = self.taken


def scaled(costs: Costs, factor: float) -> Costs:
    """The costs of a worker on which everything takes `factor` times as long."""
    steps = tuple(seconds * factor for seconds in costs.step_seconds)
    return replace(costs, step_seconds=steps, fixed_seconds=costs.fixed_seconds * factor)


@dataclass(slots=True)
class Strength:
    """Several workers' paces added up."""

    workers: int = 0
    places: int = 0
    throughput: float = 0.0
    grains: float = 0.0
    denoising: float = 0.0

    def add(self, pace: Pace) -> None:
        """One more worker."""
        self.workers += 1
        self.places += pace.places
        self.throughput += pace.throughput
        self.grains += pace.throughput * pace.grain
        self.denoising += pace.throughput * pace.denoise_share

    def remove(self, pace: Pace) -> None:
        """One worker less."""
        self.workers -= 1
        self.places -= pace.places
        self.throughput -= pace.throughput
        self.grains -= pace.throughput * pace.grain
        self.denoising -= pace.throughput * pace.denoise_share
        if not self.workers:
            self.throughput = self.grains = self.denoising = 0.0  # else rounding would be all that is left

    def load(self, work: float, length: float) -> float:
        """A picture in nominal ones: only its steps are more or fewer, preparing and decoding it are what they were.

        Before a worker has measured which part that is, it is at most so much.
        """
        share = self.denoising / self.throughput if self.workers else float(length > 1)
        return work * (1 + share * (length - 1))

    @property
    def service(self) -> float:
        """Mean seconds of a picture in service: by Little's law, those that are in it over those per second."""
        return self.places / self.throughput

    @property
    def grain(self) -> float:
        """Mean of the paces' grains over pictures."""
        return self.grains / self.throughput


def retry_after(wait: float, service: float, grain: float, budget: float) -> float:
    """Seconds until a job is admitted that must end within `budget`, and now would wait for `wait` and run `service`.

    A budget below the service time of a busy worker needs an idle one: there is one when all that is here has ended.
    """
    spare = budget if budget >= service else 0.0
    return max(wait + service - spare + grain, grain, SOONEST_RETRY)
