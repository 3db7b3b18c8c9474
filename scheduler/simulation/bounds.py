"""Bounds: figures that no scheduler can beat, even if it knows the future.

They take all devices as one whose work can be divided at will, always at its best rate. Refusing requests can beat the
bound on the mean latency, as that is for all of them.
"""

from bisect import insort
from collections.abc import Sequence
from itertools import accumulate
from math import inf

from scheduler.simulation.arrivals import Arrival
from scheduler.simulation.devices import FIXED_SECONDS, Machine

Window = tuple[float, float]
"""Requests that arrive from the first to the second time count. Those before find the devices empty."""


def counts(arrival: Arrival, window: Window) -> bool:
    """Whether an arrival counts."""
    return window[0] <= arrival.seconds < window[1]


def counted(arrivals: Sequence[Arrival], window: Window) -> list[Arrival]:
    """Arrivals that count."""
    return [each for each in arrivals if counts(each, window)]


def mean_latency(arrivals: Sequence[Arrival], machine: Machine, window: Window) -> float:
    """The least mean latency: each image alone on a device, or all by shortest remaining time, whichever is more."""
    step = machine.costs.step_seconds[0]
    alone = [each.work * (each.steps * step + FIXED_SECONDS) for each in counted(arrivals, window)]
    ends = shortest_remaining_time(arrivals, machine)
    together = [ends[number] - each.seconds for number, each in enumerate(arrivals) if counts(each, window)]
    return max(sum(alone), sum(together)) / len(alone)


def shortest_remaining_time(arrivals: Sequence[Arrival], machine: Machine, room: float = inf) -> dict[int, float]:
    """When each image is done if the one with the least work left always has all devices.

    That minimises the mean latency. Of more than `room` images, the one with the most work left is refused.
    """
    waiting: list[tuple[float, int]] = []  # seconds left, number of the arrival; sorted
    ends, now = {}, 0.0
    for ready, number in [*sorted((_prepared(each), number) for number, each in enumerate(arrivals)), (inf, -1)]:
        while waiting and now + waiting[0][0] <= ready:
            left, first = waiting.pop(0)
            now += left
            ends[first] = now
        if waiting:
            waiting[0] = waiting[0][0] - (ready - now), waiting[0][1]
        now = ready
        if number >= 0:
            insort(waiting, (machine.least_device_seconds(arrivals[number]) / machine.speed, number))
            del waiting[int(min(room, len(waiting))) :]
    return ends


def _prepared(arrival: Arrival) -> float:
    return arrival.seconds + FIXED_SECONDS / 2 * arrival.work


def device_seconds(arrivals: Sequence[Arrival], machine: Machine, end: float) -> float:
    """The most device time that can have gone into images by `end`: what was asked for, or what there was."""
    wanted = sum(machine.least_device_seconds(each) for each in arrivals if each.seconds < end)
    return min(wanted, machine.speed * end)


def goodput(arrivals: Sequence[Arrival], machine: Machine, window: Window, queue: int) -> float:
    """The largest share of images that can be done in time, by device time and by the places in the queue."""
    among = counted(arrivals, window)
    needs = sorted([machine.least_device_seconds(each) for each in among])
    time = machine.speed * (window[1] - window[0] + max(each.deadline for each in arrivals))
    in_time = sum(total <= time for total in accumulate(needs))
    ends = shortest_remaining_time(arrivals, machine, queue + machine.devices * machine.slots)
    with_room = sum(number in ends for number, each in enumerate(arrivals) if counts(each, window))
    return min(in_time, with_room) / len(among)
