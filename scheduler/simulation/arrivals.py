"""The requests of a simulation: drawn at random, or read from a recording."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from scheduler.messages import BatchKey

NOMINAL_SIDE = 512  # pixels; `work` 1 is an image of this side
STEPS = ((4, 0.2), (20, 0.6), (50, 0.2))  # denoising steps, and the share of images that take them
LARGE_SIDE, LARGE_SHARE = 768, 0.2
BURST, PAUSE = 2.0, 6.0  # mean seconds
GREEDY_CLIENT, GREEDY_SHARE = "client 0", 0.5


@dataclass(frozen=True, slots=True)
class Arrival:
    """One image that a client asks for at `seconds`; it wants it within `deadline` seconds."""

    seconds: float
    work: float
    size: tuple[int, int]
    steps: int
    client: str = ""
    deadline: float = 60.0
    priority: int = 0

    @property
    def batch_key(self) -> BatchKey:
        """The size, which images in one batch share."""
        return BatchKey(self.work, self.size)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The traffic of clients. With several clients, one of them asks for half of all images.

    Bursty traffic has the same mean rate, and comes in bursts: all arrivals fall into phases of 2 s on average, with
    pauses of 6 s on average between them. Each of the `deadlines` is as frequent as the others.

    A share of all images, `background`, is background work: of negative priority, for as many clients of its own, and
    wanted within `background_deadline`.
    """

    seconds: float
    deadlines: tuple[float, ...] = (60.0,)
    clients: int = 20
    bursty: bool = False
    background: float = 0.0
    background_deadline: float = 600.0


def mean_nominal_steps() -> float:
    """The work of an image, in steps of a nominal image, on average."""
    large = _work(LARGE_SIDE, LARGE_SIDE)
    return (1 + LARGE_SHARE * (large - 1)) * sum(steps * share for steps, share in STEPS)


def draw(traffic: Traffic, rate: float, seed: int) -> list[Arrival]:
    """Draw arrivals of `rate` images per second on average."""
    random = Random(seed)  # noqa: S311
    times = _bursts(rate, random) if traffic.bursty else _poisson(rate, random)
    arrivals = []
    for seconds in times:
        if seconds > traffic.seconds:
            break
        arrivals.append(_draw_one(seconds, traffic, random))
    return arrivals


def _poisson(rate: float, random: Random) -> Iterator[float]:
    seconds = 0.0
    while True:
        seconds += random.expovariate(rate)
        yield seconds


def _bursts(rate: float, random: Random) -> Iterator[float]:
    seconds, end = 0.0, random.expovariate(1 / BURST)
    rate_in_burst = rate * (BURST + PAUSE) / BURST
    while True:
        seconds += random.expovariate(rate_in_burst)
        if seconds > end:  # the burst ended before: a Poisson process has no memory, so the next one draws anew
            seconds = end + random.expovariate(1 / PAUSE)
            end = seconds + random.expovariate(1 / BURST)
        else:
            yield seconds


def _draw_one(seconds: float, traffic: Traffic, random: Random) -> Arrival:
    [steps] = random.choices([steps for steps, _ in STEPS], [share for _, share in STEPS])
    side = LARGE_SIDE if random.random() < LARGE_SHARE else NOMINAL_SIDE
    client = GREEDY_CLIENT
    if traffic.clients > 1 and random.random() >= GREEDY_SHARE:
        client = f"client {random.randrange(1, traffic.clients)}"
    [deadline] = random.choices(traffic.deadlines)
    if traffic.background and random.random() < traffic.background:
        client = f"background {client}"
        return Arrival(seconds, _work(side, side), (side, side), steps, client, traffic.background_deadline, -1)
    return Arrival(seconds, _work(side, side), (side, side), steps, client, deadline)


def _work(width: int, height: int) -> float:
    return width * height / NOMINAL_SIDE**2


class Recorded(msgspec.Struct, forbid_unknown_fields=True):
    """A line of a recording. It has either `width` and `height`, in pixels, or `work`, in nominal images."""

    seconds: float
    width: int = 0
    height: int = 0
    work: float = 0.0
    steps: int = 20
    client: str = ""
    deadline: float = 60.0
    priority: int = 0

    def arrival(self) -> Arrival:
        """The same as an arrival."""
        work = self.work or _work(self.width, self.height)
        if work <= 0 or self.steps < 1 or self.seconds < 0 or self.deadline <= 0:
            raise ValueError
        return Arrival(
            self.seconds, work, (self.width, self.height), self.steps, self.client, self.deadline, self.priority
        )


def read(path: Path) -> list[Arrival]:
    """Read a recording: one JSON object per line.

    Raises:
        ValueError: a line is not what it should be. It says which one.
    """
    decoder, arrivals = msgspec.json.Decoder(Recorded), []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            arrivals.append(decoder.decode(line).arrival())
        except (msgspec.MsgspecError, ValueError):
            example = '{"seconds": 1.5, "width": 512, "height": 512, "steps": 20, "client": "a", "deadline": 60}'
            raise ValueError(f"Line {number} of {path} is not a recorded request. Example: {example}") from None
    if not arrivals:
        raise ValueError(f"{path} holds no recorded request.")
    return sorted(arrivals, key=lambda arrival: arrival.seconds)
