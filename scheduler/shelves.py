"""The ready workers by how much there is in them: which to look at for the next job."""

from collections.abc import Sequence

from scheduler import policy
from scheduler.agenda import Agenda
from scheduler.errors import require
from scheduler.messages import Job, WorkerState
from scheduler.policy import Wait
from scheduler.records import Worker


class Shelves:
    """Workers that have room lie on shelves by the number of their tenants, the fastest first.

    So no question walks over all of them. `place` is to be called whenever something has changed about a worker.
    """

    def __init__(self) -> None:
        self._open: list[Agenda[Worker]] = [Agenda()]  # by number of tenants: those that a job may join
        self._closed: Agenda[Worker] = Agenda()  # room, but a suspect is in it, or waits for it to be empty
        self._held: Worker | None = None  # the one that a suspect waits for

    def choose(self, job: Job, now: float, behind: float) -> Worker | Wait:
        """The worker that a job should start on now, or why it should wait. `behind` jobs a worker queue behind it."""
        if (empty := self._open[0].first()) is not None:
            return empty
        reasons = []
        for shelf in self._open:
            if (worker := shelf.first()) is not None:
                objection = worker.joined_by(job).objection(now, behind)
                if objection is None:
                    return worker
                reasons.append(objection)
        return reasons[0] if reasons else Wait.SUSPECT if self._closed else Wait.SLOTS_TAKEN

    def empty(self, but: Worker | None) -> Worker | None:
        """The fastest empty worker other than `but`."""
        return self._open[0].first(but=but)

    def hold(self, but: Worker | None) -> None:
        """Let nobody join the least loaded worker with room, other than `but`, so that it empties."""
        if self._held is not None and self._held is not but:
            return
        self.unhold()
        for shelf in self._open[1:]:
            if (worker := shelf.first(but=but)) is not None:
                self._held = worker
                self.place(worker)
                return

    def unhold(self) -> None:
        """Let jobs join every worker."""
        held, self._held = self._held, None
        if held is not None:
            self.place(held)

    def widen(self, slots: int) -> None:
        """There are workers with so many slots."""
        self._open.extend(Agenda() for _ in range(slots - len(self._open)))

    def place(self, worker: Worker) -> None:
        """Put a worker where it belongs now."""
        if worker is self._held and worker.state is not WorkerState.READY:
            self._held = None
        shelf = self._shelf(worker)
        if shelf is worker.shelf:
            return
        if worker.shelf is not None:
            worker.shelf.drop(worker)
        if shelf is not None:
            shelf.put(worker, policy.seconds_alone(worker.measured))
        worker.shelf = shelf

    def _shelf(self, worker: Worker) -> Agenda[Worker] | None:
        if worker.state is not WorkerState.READY:
            return None
        if not worker.tenants:
            return self._open[0]
        if not worker.free:
            return None
        if worker.alone or worker is self._held:
            return self._closed
        return self._open[len(worker.tenants)]

    def check(self, workers: Sequence[Worker]) -> None:
        """Validate invariants; raises BrokenInvariantError."""
        shelved = sum(len(shelf) for shelf in (*self._open, self._closed))
        room = sum(worker.state is WorkerState.READY and bool(worker.free) for worker in workers)
        require(shelved == room, "a worker is on two shelves, or on a wrong one")
        require(self._held is None or self._held.state is WorkerState.READY, "a worker that is not ready is held")
        for worker in workers:
            require(worker.shelf is self._shelf(worker), f"{worker.id} is on a wrong shelf")
            require(worker.shelf is None or worker in worker.shelf, f"{worker.id} is not on its shelf")
