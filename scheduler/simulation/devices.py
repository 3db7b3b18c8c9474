"""Simulated devices: each does what a worker process does, in simulated time.

A device prepares an image, takes its steps in the batch of its size, and decodes it. Its batches, one per size, run one
after the other, so a step takes the sum over the sizes. VAE decoding takes the device's time as well, between steps;
preparation does not. A device that fails loses all of its images, and loads its model again when it is spawned.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from heapq import heappop, heappush
from math import inf
from random import Random

from scheduler import messages as m
from scheduler.simulation.arrivals import Arrival

NOMINAL_STEPS = 20
# Seconds of one step of a CUDA graph, by its bucket. Batching gains little on a device that one image nearly fills.
STEP_SECONDS = {
    "weak": {1: 0.0055, 2: 0.0095, 4: 0.0175, 8: 0.034},
    "strong": {1: 0.0055, 2: 0.0070, 4: 0.0105, 8: 0.019},
}
MAX_SLOTS = 8
DEFAULT_SLOTS = {"weak": 4, "strong": 8}
FIXED_SECONDS = 0.008  # of a nominal image beside its steps: half of it is preparation, half is VAE decoding
JITTER = 0.02  # standard deviation of the logarithm of a step's duration
KILL_SECONDS = 0.05  # from `Kill` until the process is reaped
IMAGE = m.Image(100_000, 0.004, 0.1, 0.002, 0.002)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The devices of a simulation. All measure the same costs, but the first one is slower by `straggler`."""

    devices: int = 8
    gain: str = "weak"
    slots: int = 4
    straggler: float = 1.0
    failures_per_hour: float = 0.0
    """Of each device."""
    load_seconds: float = 6.0
    jitter: float = JITTER
    preemption_seconds: float = 0.0
    """Device time to drop a nominal image that goes on later, and again to go on; only for `preemption.py`."""

    @property
    def costs(self) -> m.Costs:
        """The costs that each worker reports when it is ready."""
        points = STEP_SECONDS[self.gain]
        seconds = [points[min(bucket for bucket in points if bucket >= n)] for n in range(1, self.slots + 1)]
        return m.Costs(NOMINAL_STEPS, tuple(seconds), FIXED_SECONDS, FIXED_SECONDS / 2)

    @property
    def step_rate(self) -> float:
        """The most nominal steps per second of one device."""
        return max(n / seconds for n, seconds in enumerate(self.costs.step_seconds, start=1))

    @property
    def speed(self) -> float:
        """The sum of all devices' speeds, as multiples of one that is not slower."""
        return self.devices - 1 + 1 / self.straggler

    def least_device_seconds(self, arrival: Arrival) -> float:
        """Device time that an image takes in the best batch."""
        return arrival.work * (arrival.steps / self.step_rate + FIXED_SECONDS / 2)


class Calendar:
    """The simulated clock and a list of future calls. Calls of the same time happen in the order they were added."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    @property
    def next_time(self) -> float:
        """The time of the next call; infinite if there is none."""
        return self._entries[0][0] if self._entries else inf

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Add a call."""
        self._count += 1
        heappush(self._entries, (seconds, self._count, action))

    def advance(self) -> None:
        """Advance to the next call and make it."""
        self.now, _, action = heappop(self._entries)
        action()


class Stage(Enum):
    """How far an image is."""

    PREPARING = auto()
    DENOISING = auto()
    DECODING = auto()


@dataclass(slots=True, eq=False)
class Occupant:
    """An image in a slot."""

    job: m.JobId
    slot: int
    generation: int
    key: m.BatchKey
    steps: int
    left: int
    stage: Stage = Stage.PREPARING
    cancelled: bool = False


class Device:
    """One worker with its device. It reports by `send`."""

    def __init__(
        self,
        name: str,
        machine: Machine,
        slow: float,
        seed: int,
        calendar: Calendar,
        send: Callable[[m.Event], None],
        steps_left: dict[m.JobId, int],
    ) -> None:
        self.name = name
        self._machine = machine
        self._slow = slow
        self._step_seconds = machine.costs.step_seconds
        self._jitter = Random(f"{seed} {name} jitter")  # noqa: S311
        self._failures = Random(f"{seed} {name} failures")  # noqa: S311
        self._calendar = calendar
        self._send = send
        self._steps_left = steps_left  # of images that were dropped on any device
        self._process = 0  # changes with every spawn and exit: what a former process had planned does not happen
        self._forget()

    def _forget(self) -> None:
        self._slots: dict[int, Occupant] = {}
        self._batch: list[Occupant] = []  # the images of the step that runs now
        self._taken_until = -inf  # when the device has done all that is not a step

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        """Add a call that is dropped if the process ends before."""
        self._calendar.at(self._calendar.now + seconds, partial(self._if_alive, self._process, action))

    def _if_alive(self, process: int, action: Callable[[], None]) -> None:
        if process == self._process:
            action()

    # -------------------------------------------------------------------------------------------------------- commands

    def spawn(self) -> None:
        """Start the process: it loads the model. The time of its failure is drawn now."""
        self._process += 1
        self._after(self._machine.load_seconds, lambda: self._send(m.WorkerReady(self.name, self._machine.costs)))
        if self._machine.failures_per_hour:
            seconds = self._failures.expovariate(self._machine.failures_per_hour / 3600)
            self._after(seconds, lambda: self._exit("failed"))

    def kill(self) -> None:
        """End the process."""
        self._after(KILL_SECONDS, lambda: self._exit("killed"))

    def _exit(self, reason: str) -> None:
        self._process += 1
        self._forget()
        self._send(m.WorkerExited(self.name, reason))

    def start(self, command: m.Start, arrival: Arrival) -> None:
        """Put an image into a slot, and prepare it."""
        if command.slot in self._slots:
            raise RuntimeError(f"{command} names a slot that is taken")
        left = self._steps_left.pop(command.job, arrival.steps)
        occupant = Occupant(command.job, command.slot, command.generation, arrival.batch_key, arrival.steps, left)
        self._slots[command.slot] = occupant
        if left < arrival.steps:
            self._take_device(self._machine.preemption_seconds * arrival.work)
            self._after(0.0, lambda: self._prepared(occupant))
        else:
            self._after(FIXED_SECONDS / 2 * arrival.work * self._slow, lambda: self._prepared(occupant))

    def cancel(self, command: m.Cancel) -> None:
        """Drop an image at the next step boundary; once it is being decoded, it is finished instead."""
        occupant = self._slots.get(command.slot)
        if occupant is None or occupant.generation != command.generation:
            return
        occupant.cancelled = True
        if occupant.stage is Stage.DENOISING and occupant not in self._batch:
            self._after(0.0, lambda: self._drop(occupant))

    # ----------------------------------------------------------------------------------------------------------- stages

    def _drop(self, occupant: Occupant) -> None:
        if self._slots.get(occupant.slot) is occupant:
            del self._slots[occupant.slot]
            if occupant.left < occupant.steps:
                self._steps_left[occupant.job] = occupant.left
                self._take_device(self._machine.preemption_seconds * occupant.key.work)
            self._send(m.Released(self.name, occupant.slot, occupant.generation))

    def _prepared(self, occupant: Occupant) -> None:
        if occupant.cancelled:
            self._drop(occupant)
            return
        occupant.stage = Stage.DENOISING
        if not self._batch:
            self._step()

    def _step(self) -> None:
        self._batch = [each for each in self._slots.values() if each.stage is Stage.DENOISING and not each.cancelled]
        if not self._batch:
            return
        counts = Counter([each.key for each in self._batch])
        seconds = sum([self._step_seconds[n - 1] * key.work for key, n in counts.items()]) * self._slow
        seconds *= self._jitter.lognormvariate(0.0, self._machine.jitter)
        self._after(seconds + max(0.0, self._taken_until - self._calendar.now), self._stepped)

    def _stepped(self) -> None:
        batch, self._batch = self._batch, []
        for each in batch:
            each.left -= 1
        self._send(m.Stepped(self.name, tuple([(each.slot, each.steps - each.left) for each in batch])))
        for each in batch:
            if each.cancelled:
                self._drop(each)
            elif not each.left:
                self._decode(each)
        if not self._batch:
            self._step()

    def _decode(self, occupant: Occupant) -> None:
        occupant.stage = Stage.DECODING
        self._take_device(FIXED_SECONDS / 2 * occupant.key.work)
        self._after(self._taken_until - self._calendar.now, lambda: self._finished(occupant))

    def _take_device(self, seconds: float) -> None:
        """Use the device for something else than steps."""
        self._taken_until = max(self._calendar.now, self._taken_until) + seconds * self._slow

    def _finished(self, occupant: Occupant) -> None:
        del self._slots[occupant.slot]
        self._send(m.Finished(self.name, occupant.slot, occupant.generation, IMAGE))
