"""Measures what one decision costs on a large, busy machine: `python -m tests.bench.decision --workers 16`.

It is processor time, garbage collection included: other processes on the machine do not count.
"""

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator

from scheduler.core import Scheduler
from scheduler.limits import Limits
from scheduler.messages import (
    Command,
    Costs,
    Event,
    Finished,
    Image,
    Job,
    Opened,
    Start,
    Stepped,
    Submitted,
    WorkerReady,
)

STEPS = 20
GPU = Costs(STEPS, (0.0045, 0.0057, 0.0075, 0.0091, 0.011, 0.013, 0.0152, 0.0171), 0.015)
IMAGE = Image(100_000, 0.005, 0.1, 0.005, 0.005)
TARGET = 50.0  # microseconds
WAITING = 256  # jobs, or a little more where slots stay empty
RELATIVE_STEPS = (0.4, 1.0, 1.0, 2.5)  # in nominal images' steps
PRIORITIES = (0, 0, 0, 5)
POSITION = "(position)"  # a question, no decision
CLIENTS = 100  # the first of them asks for half of all images


class World:
    """Workers that answer in a random order, and clients who keep `load` jobs per worker on their way."""

    def __init__(self, workers: int, load: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = [f"gpu{index}" for index in range(workers)]
        self.core = Scheduler(self.names, Limits(max_queue=2 * int(load * workers) + 1))
        self.now = 0.0
        self.submitted = 0
        self.running: list[Start] = []
        self.taken: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in self.names}
        self.steps: dict[int, int] = {}  # by job
        self.microseconds: dict[str, list[float]] = defaultdict(list)
        self.core.handle(self.now, Opened())
        for name in self.names:
            slower = self.random.uniform(1.0, 2.0)  # no two devices are alike
            costs = Costs(STEPS, tuple(slower * seconds for seconds in GPU.step_seconds), GPU.fixed_seconds)
            self.tell(WorkerReady(name, costs))
        for _ in range(int(load * workers)):
            self.submit()
        self.microseconds.clear()

    def tell(self, event: Event) -> None:
        began = time.thread_time_ns()
        commands = self.core.handle(self.now, event)
        self.microseconds[type(event).__name__].append((time.thread_time_ns() - began) / 1000)
        self.obey(commands)

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Start):
                self.running.append(command)
                self.taken[command.worker][command.slot] = 0, self.steps[command.job]

    def submit(self) -> None:
        client = max(0, self.random.randrange(-CLIENTS, CLIENTS))
        self.submitted += 1
        relative_steps, priority = self.random.choice(RELATIVE_STEPS), self.random.choice(PRIORITIES)
        job = Job(self.submitted, self.now + 3600.0, 1.0, f"client {client}", relative_steps, priority)
        self.steps[job.id] = round(STEPS * relative_steps)
        self.tell(Submitted(job))

    def ask(self) -> None:
        """A client whose job waits, perhaps, asks where it stands: a question, and no event."""
        job = self.random.randint(self.submitted - self.core.queue_depth, self.submitted)
        began = time.thread_time_ns()
        self.core.queue_position(job, self.now)
        self.microseconds[POSITION].append((time.thread_time_ns() - began) / 1000)

    def step(self) -> None:
        if not self.running:
            return
        worker = self.random.choice(self.running).worker
        slots, done = self.taken[worker], []
        for slot, (taken, steps) in slots.items():
            if taken < steps:  # what is done stays a while in its slot here
                slots[slot] = taken + 1, steps
                done.append((slot, taken + 1))
        self.tell(Stepped(worker, tuple(done)))

    def finish(self) -> None:
        if not self.running:
            return
        index = self.random.randrange(len(self.running))
        self.running[index], self.running[-1] = self.running[-1], self.running[index]
        start = self.running.pop()
        del self.taken[start.worker][start.slot]
        self.tell(Finished(start.worker, start.slot, start.generation, IMAGE))

    def live(self, rounds: int) -> None:
        """Each round an image is done, another is asked for, a few workers step, and somebody asks for its place."""
        for _ in range(rounds):
            self.now += 0.0001
            for _ in range(4):
                self.step()
            self.finish()
            self.submit()
            self.ask()


def table(microseconds: dict[str, list[float]]) -> Iterator[str]:
    """Rows of text: how long each kind of event took."""
    yield f"{'event':<14}{'count':>9}{'median us':>12}{'p99 us':>9}{'max us':>9}"
    decisions = [each for event, values in microseconds.items() if event != POSITION for each in values]
    for event, values in [*sorted(microseconds.items()), ("all decisions", decisions)]:
        ordered = sorted(values)
        median, p99 = statistics.median(ordered), ordered[int(0.99 * len(ordered))]
        yield f"{event:<14}{len(ordered):>9}{median:>12.1f}{p99:>9.1f}{ordered[-1]:>9.0f}"


def main() -> None:
    """Print one table for each load: half empty, full, and with a queue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for load in (0.5, 2.0, len(GPU.step_seconds) + WAITING / options.workers):
        world = World(options.workers, load, options.seed)
        world.live(options.rounds)
        depth, running = world.core.queue_depth, world.core.running
        print(f"\n{options.workers} workers, {load:g} jobs each: {running} run, {depth} wait; to hold: {TARGET:.0f} us")
        print("\n".join(table(world.microseconds)))


if __name__ == "__main__":
    main()
