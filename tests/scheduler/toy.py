"""A deterministic toy of devices and a clock, to see whether what the scheduler predicts comes true."""

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from scheduler.messages import Command, Costs, Event, Finished, Job, Outcome, Reply, Start, Stepped, Submitted, Tick
from tests.scheduler.sums import step_seconds, steps_of
from tests.scheduler.words import IMAGE, Checked, ready, scheduler


@dataclass(slots=True)
class Device:
    """Batches whatever is prepared, step by step."""

    costs: Costs
    slower: float
    left: dict[int, int] = field(default_factory=dict)  # by slot
    work: dict[int, float] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    busy: bool = False

    def half(self, slot: int) -> float:
        """Seconds of half the fixed part."""
        return self.costs.fixed_seconds * self.work[slot] / 2 * self.slower

    def step(self) -> float:
        """Seconds of the next step."""
        return step_seconds(self.costs, [self.work[slot] for slot in self.left]) * self.slower


class Toy:
    """Carries out the scheduler's commands on devices that take as long as their costs say, or `slower` times that."""

    def __init__(self, *costs: Costs, slower: float = 1.0, **limits: Any) -> None:
        self.devices = {f"device{index}": Device(each, slower) for index, each in enumerate(costs)}
        workers = [ready(name, device.costs) for name, device in self.devices.items()]
        self.core: Checked = scheduler(*workers, **limits)
        self.now = 0.0
        self.outcomes: dict[int, tuple[float, Outcome]] = {}
        self.clients: dict[int, str] = {}
        self._ids = count(1)
        self._order = count()
        self._calendar: list[tuple[float, int, Callable[[], None]]] = []
        self._starts: dict[tuple[str, int], Start] = {}
        self.jobs: dict[int, Job] = {}
        self.started: dict[int, float] = {}

    def submit(
        self, seconds: float, work: float = 1.0, client: str = "", relative_steps: float = 1.0, priority: int = 0
    ) -> Outcome | None:
        """Ask for an image within so many seconds; returns the answer if that is given at once.

        Every job is another client's, unless `client` is given.
        """
        number = next(self._ids)
        self.clients[number] = client or f"client of {number}"
        self.jobs[number] = Job(number, self.now + seconds, work, self.clients[number], relative_steps, priority)
        self._tell(Submitted(self.jobs[number]))
        return self.outcomes[number][1] if number in self.outcomes else None

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            wakeup = self.core.next_wakeup
            times = [each for each in (wakeup, self._calendar[0][0] if self._calendar else None) if each is not None]
            if not times or min(times) > until:
                break
            self.now = max(self.now, min(times))
            if self._calendar and self._calendar[0][0] <= self.now:
                heappop(self._calendar)[2]()
            else:
                self._tell(Tick())
        self.now = until

    def _after(self, seconds: float, what: Callable[[], None]) -> None:
        heappush(self._calendar, (self.now + seconds, next(self._order), what))

    def _tell(self, event: Event) -> None:
        for command in self.core.handle(self.now, event):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Start(_, worker, slot):
                self._starts[worker, slot] = command
                device, job = self.devices[worker], self.jobs[command.job]
                device.work[slot], device.steps[slot] = job.work, steps_of(device.costs, job.relative_steps)
                self.started.setdefault(command.job, self.now)
                self._after(self.devices[worker].half(slot), lambda: self._prepared(command))
            case Reply(job, outcome):
                self.outcomes[job] = (self.now, outcome)
            case _:
                raise AssertionError(f"the toy knows no {command}")

    def _prepared(self, start: Start) -> None:
        device = self.devices[start.worker]
        device.left[start.slot] = device.steps[start.slot]
        if not device.busy:
            self._step(start.worker)

    def _step(self, worker: str) -> None:
        device = self.devices[worker]
        device.busy = bool(device.left)
        if device.busy:
            slots = list(device.left)
            self._after(device.step(), lambda: self._stepped(worker, slots))

    def _stepped(self, worker: str, slots: list[int]) -> None:
        device = self.devices[worker]
        # What was prepared during the step advances too, for nothing, as predictions know no step boundaries. It is not
        # reported with the others: the step was as long as theirs is.
        ended = list(device.left)
        for slot in ended:
            device.left[slot] -= 1
        self._tell(Stepped(worker, tuple((slot, device.steps[slot] - device.left[slot]) for slot in slots)))
        for slot in [slot for slot in ended if not device.left[slot]]:
            del device.left[slot]
            start = self._starts[worker, slot]
            report = Finished(worker, slot, start.generation, IMAGE)
            self._after(device.half(slot), lambda report=report: self._tell(report))  # type: ignore[misc]
        self._step(worker)
