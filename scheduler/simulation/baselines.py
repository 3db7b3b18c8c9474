"""Simpler schedulers, to compare with. They speak the real scheduler's messages.

All serve jobs in the order they came, refuse only when the queue is full, and give a job up at its deadline. A job
whose worker exits goes back to the front of the queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from scheduler import messages as m

WINDOW = 0.010  # seconds that a batch waits for more requests
BATCH = 8  # the most requests of a batch
INSTANT = 1e-12


@dataclass(slots=True, eq=False)
class Entry:
    """An accepted job. `start` says where it runs, if it does."""

    job: m.Job
    submitted: float
    started: float = 0.0
    start: m.Start | None = None


class LeastLoaded:
    """A job joins the worker with the fewest images, as soon as any has a free slot."""

    most_slots: int | None = None
    """Slots of a worker that are used; None for all."""

    def __init__(self, workers: Sequence[m.WorkerId], max_queue: int) -> None:
        self._workers = workers
        self._max_queue = max_queue
        self._slots: dict[m.WorkerId, int] = {}
        self._free: dict[m.WorkerId, list[int]] = {}  # of workers that are ready
        self._running: dict[tuple[m.WorkerId, int], Entry] = {}
        self._queue: dict[m.JobId, Entry] = {}
        self._jobs: dict[m.JobId, Entry] = {}  # without an answer
        self._deadlines: list[tuple[float, m.JobId]] = []
        self._generations = count(1)
        self._commands: list[m.Command] = []

    @property
    def next_wakeup(self) -> float | None:
        """When to send the next `Tick`."""
        return self._first_deadline()

    def _first_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._jobs:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def handle(self, now: float, event: m.Event) -> list[m.Command]:
        """Process one event and return the commands to carry out."""
        match event:
            case m.Opened():
                self._commands += [m.Spawn(worker) for worker in self._workers]
            case m.Submitted(job):
                self._submit(now, job)
            case m.WorkerReady(worker, costs):
                self._slots[worker] = self.most_slots or len(costs.step_seconds)
                self._free[worker] = list(range(self._slots[worker]))
            case m.WorkerExited(worker):
                self._on_worker_exit(worker)
            case m.Finished() | m.Failed() | m.Released():
                self._free_slot(event)
            case _:
                pass
        self._expire_deadlines(now)
        self._place(now)
        commands, self._commands = self._commands, []
        return commands

    def _submit(self, now: float, job: m.Job) -> None:
        if len(self._queue) >= self._max_queue:
            self._commands.append(m.Reply(job.id, m.Rejected(1.0)))
            return
        self._jobs[job.id] = self._queue[job.id] = Entry(job, now)
        heappush(self._deadlines, (job.deadline, job.id))

    def _on_worker_exit(self, worker: m.WorkerId) -> None:
        self._free.pop(worker, None)
        lost = [self._running.pop(place) for place in list(self._running) if place[0] == worker]
        unanswered = {entry.job.id: entry for entry in lost if entry.job.id in self._jobs}
        for entry in unanswered.values():
            entry.start = None
        self._queue = {**unanswered, **self._queue}
        self._commands.append(m.Spawn(worker))

    def _free_slot(self, event: m.Finished | m.Failed | m.Released) -> None:
        entry = self._running.pop((event.worker, event.slot))
        self._free[event.worker].append(event.slot)
        if isinstance(event, m.Finished) and entry.job.id in self._jobs:
            queued = entry.started - entry.submitted
            self._reply(entry, m.Done(event.worker, event.slot, event.image, queued))

    def _expire_deadlines(self, now: float) -> None:
        while (first := self._first_deadline()) is not None and first <= now:
            entry = self._jobs[self._deadlines[0][1]]
            self._reply(entry, m.Expired())
            if entry.start is None:
                del self._queue[entry.job.id]
            else:
                self._commands.append(m.Cancel(entry.start.worker, entry.start.slot, entry.start.generation))

    def _reply(self, entry: Entry, outcome: m.Outcome) -> None:
        del self._jobs[entry.job.id]
        self._commands.append(m.Reply(entry.job.id, outcome))

    def _place(self, now: float) -> None:
        while self._queue:
            room = [worker for worker, free in self._free.items() if free]
            if not room:
                return
            worker = max(room, key=lambda worker: len(self._free[worker]))
            self._start(now, next(iter(self._queue.values())), worker)

    def _start(self, now: float, entry: Entry, worker: m.WorkerId) -> None:
        del self._queue[entry.job.id]
        slot = self._free[worker].pop(0)
        entry.started, entry.start = now, m.Start(entry.job.id, worker, slot, next(self._generations))
        self._running[worker, slot] = entry
        self._commands.append(entry.start)


class OneAtATime(LeastLoaded):
    """Each device makes one image after the other."""

    most_slots = 1


class RequestBatching(LeastLoaded):
    """Dynamic batching of whole requests, as Triton and TorchServe do it.

    An empty worker takes jobs of the same size and number of steps, waits a moment for more, and runs them together.
    No image joins a running batch.
    """

    @property
    def next_wakeup(self) -> float | None:
        """When the first deadline passes, or the moment is over."""
        times = [self._first_deadline()]
        if self._queue and self._empty():
            times.append(next(iter(self._queue.values())).submitted + WINDOW)
        return min([each for each in times if each is not None], default=None)

    def _empty(self) -> list[m.WorkerId]:
        return [worker for worker, free in self._free.items() if len(free) == self._slots[worker]]

    def _place(self, now: float) -> None:
        for worker in self._empty():
            if not self._queue:
                return
            first, most = next(iter(self._queue.values())), min(BATCH, self._slots[worker])
            alike = [each for each in self._queue.values() if _shape(each) == _shape(first)][:most]
            if len(alike) < most and now < first.submitted + WINDOW - INSTANT:
                return
            for entry in alike:
                self._start(now, entry, worker)


def _shape(entry: Entry) -> tuple[m.BatchKey, float]:
    return entry.job.batch_key, entry.job.relative_steps
