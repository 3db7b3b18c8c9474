"""The loop around a scheduler: tells it what happens, and carries out its commands on simulated devices."""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, assert_never

from scheduler import messages as m
from scheduler.simulation.arrivals import Arrival
from scheduler.simulation.devices import NOMINAL_STEPS, Calendar, Device, Machine


class Core(Protocol):
    """The interface of a scheduler that can be simulated."""

    def handle(self, now: float, event: m.Event) -> list[m.Command]:
        """Process one event and return the commands to carry out."""
        ...

    @property
    def next_wakeup(self) -> float | None:
        """When to send the next `Tick`."""
        ...


MakeCore = Callable[[Sequence[m.WorkerId], int], Core]
"""Makes a scheduler from the names of its workers and the length of its queue."""


@dataclass(slots=True)
class Run:
    """The result of a simulation.

    The last answer to each arrival with its time, how often each was submitted, and microseconds for each decision.
    """

    answers: dict[m.JobId, tuple[float, m.Outcome]] = field(default_factory=dict)
    tries: Counter[m.JobId] = field(default_factory=Counter)
    decisions: "array[float]" = field(default_factory=lambda: array("d"))
    failures: int = 0


class Simulator:
    """Runs one scheduler on one list of arrivals. Job n is arrival n. The devices are ready at time 0.

    A client that is refused comes back when it was told to, `retries` times at most, with as much time as at first.
    """

    def __init__(
        self, make: MakeCore, machine: Machine, arrivals: Sequence[Arrival], seed: int, queue: int, retries: int = 0
    ) -> None:
        self._arrivals = arrivals
        self._retries = retries
        self._unanswered: set[m.JobId] = set()
        self._calendar = Calendar(-machine.load_seconds)
        self._devices: dict[m.WorkerId, Device] = {}
        steps_left: dict[m.JobId, int] = {}
        for index in range(machine.devices):
            name, slow = f"gpu{index}", machine.straggler if index == 0 else 1.0
            self._devices[name] = Device(name, machine, slow, seed, self._calendar, self._send, steps_left)
        self._core = make(list(self._devices), queue)
        self._run = Run()

    def run(self, on_arrival: Callable[[], None] = lambda: None) -> Run:
        """Simulate until every arrival has its answer.

        Raises:
            RuntimeError: the scheduler answered a job twice, or not at all, or used a slot that is taken.
        """
        calendar, core = self._calendar, self._core
        self._send(m.Opened())
        for job, arrival in enumerate(self._arrivals):
            calendar.at(arrival.seconds, partial(self._submit, job))
            calendar.at(arrival.seconds, on_arrival)
        while len(self._run.answers) < len(self._arrivals):
            wakeup = core.next_wakeup
            if wakeup is not None and wakeup < calendar.next_time:
                calendar.now = max(calendar.now, wakeup)
                self._send(m.Tick())
            elif calendar.next_time == float("inf"):
                raise RuntimeError(f"{len(self._arrivals) - len(self._run.answers)} jobs are never answered")
            else:
                calendar.advance()
        return self._run

    def _submit(self, job: m.JobId) -> None:
        arrival, now = self._arrivals[job], self._calendar.now
        self._unanswered.add(job)
        self._run.tries[job] += 1
        relative_steps = arrival.steps / NOMINAL_STEPS
        traits = arrival.work, arrival.client, relative_steps, arrival.priority
        self._send(m.Submitted(m.Job(job, now + arrival.deadline, *traits, size=arrival.size)))

    def _send(self, event: m.Event) -> None:
        began = time.thread_time_ns()
        commands = self._core.handle(self._calendar.now, event)
        self._run.decisions.append((time.thread_time_ns() - began) / 1000)
        self._run.failures += isinstance(event, m.WorkerExited)
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: m.Command) -> None:
        match command:
            case m.Start(job, worker):
                self._devices[worker].start(command, self._arrivals[job])
            case m.Cancel(worker):
                self._devices[worker].cancel(command)
            case m.Reply(job, outcome):
                self._answer(job, outcome)
            case m.Spawn(worker):
                self._devices[worker].spawn()
            case m.Kill(worker):
                self._devices[worker].kill()
            case m.Exit():
                pass  # those who come later are still answered
            case _ as unreachable:
                assert_never(unreachable)

    def _answer(self, job: m.JobId, outcome: m.Outcome) -> None:
        if job not in self._unanswered:
            raise RuntimeError(f"job {job} is answered twice")
        self._unanswered.remove(job)
        now = self._calendar.now
        if isinstance(outcome, m.Rejected | m.QuotaExceeded) and self._run.tries[job] <= self._retries:
            self._calendar.at(now + outcome.retry_after, partial(self._submit, job))
        else:
            self._run.answers[job] = now, outcome
