"""The workers: in what state each is, what is in its slots, and which of them to look at for the next job."""

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from math import isclose

from scheduler import policy
from scheduler.agenda import Agenda
from scheduler.errors import IllegalEvent, require
from scheduler.messages import Costs, Job, WorkerId, WorkerLost, WorkerState
from scheduler.policy import Limits, Slowdown, Strength, Wait
from scheduler.records import Tenant, Ticket, Worker
from scheduler.shelves import Shelves


class Fleet:
    """Owns the workers and their slots.

    No question to it walks over all of them: those with room lie on shelves, and all sums are kept as things change.
    """

    def __init__(self, workers: Sequence[WorkerId], limits: Limits) -> None:
        self._limits = limits
        self._workers = {worker: Worker(worker) for worker in workers}
        self.alarms: Agenda[Worker] = Agenda()
        """When to look at a worker: it has loaded or been silent for too long then, or paused long enough."""
        self.ready = Strength()
        self._known = Strength()  # of all that were ever ready, by what they measured last
        self._speeds: Agenda[WorkerId] = Agenda()  # those, by seconds for one picture
        self._shelves = Shelves()
        self.running = 0
        self.backlog = 0.0
        """What is left of the pictures that run, in nominal pictures."""

    def __getitem__(self, worker: WorkerId) -> Worker:
        if worker not in self._workers:
            raise IllegalEvent(f"there is no worker {worker}")
        return self._workers[worker]

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    @property
    def seconds(self) -> float | None:
        """One nominal picture alone on the fastest worker known."""
        return self._speeds.least

    @property
    def strength(self) -> Strength:
        """Of the ready workers; while there is none, of all that were."""
        return self.ready if self.ready.workers else self._known

    # ---------------------------------------------------------------------------------------------------------- choice

    def choose(self, job: Job, now: float, behind: int) -> Worker | Wait:
        """The worker that a job should start on now, or why it should wait. `behind` jobs queue behind it."""
        if not self.ready.workers:
            return Wait.NO_WORKER
        return self._shelves.choose(job, now, behind / self.ready.workers)

    def seconds_if_joined(self, worker: Worker, job: Job) -> float:
        """When a picture is done that a worker starts now."""
        return worker.joined_by(job).end

    def empty(self, avoid: WorkerId | None) -> Worker | None:
        """The fastest empty worker; not `avoid` while another is ready."""
        return self._shelves.empty(but=self._avoided(avoid))

    def hold(self, avoid: WorkerId | None) -> None:
        """Let nobody join the least loaded worker with room, so that it empties; not `avoid` while another is ready."""
        self._shelves.hold(but=self._avoided(avoid))

    def unhold(self) -> None:
        """Let jobs join every worker."""
        self._shelves.unhold()

    def seconds_to_place(self, worker: Worker) -> float:
        """When the first of a worker's pictures is done, at the latest."""
        assert worker.pace is not None
        return self._seconds_to_end(worker) + worker.pace.grain

    def _seconds_to_end(self, worker: Worker) -> float:
        batch = sorted(worker.batch, key=lambda tenant: tenant.left)
        return policy.run_out(worker.measured, batch)[0][0]

    def seconds_to_start(self, work: float, oldest: Worker | None) -> float | None:
        """When a job is expected to start that so much work starts before; None while no worker has measured itself.

        It takes a place to become free, and then what they get done together. The first place is free when a picture
        of the worker is done that runs the `oldest` one, as a rule.
        """
        strength = self.strength
        if not strength.workers:
            return None
        place = min(self._seconds_to_end(oldest), self.backlog / strength.throughput) if oldest is not None else 0.0
        return place + work / strength.throughput

    def _avoided(self, avoid: WorkerId | None) -> Worker | None:
        return self._workers[avoid] if avoid is not None and self.ready.workers > 1 else None

    # ----------------------------------------------------------------------------------------------------------- slots

    def start(self, now: float, worker: Worker, ticket: Ticket, generation: int) -> Tenant:
        """Put a job into the worker's first free slot."""
        if not worker.tenants:
            worker.heard = now
        slot = heappop(worker.free)
        job, steps = ticket.job, policy.steps_of(worker.measured, ticket.job.length)
        tenant = Tenant(steps, job.work, job.deadline, steps, worker, slot, generation, ticket)
        worker.tenants[slot] = tenant
        worker.alone = ticket.suspect
        ticket.tenant, ticket.started = tenant, now
        self.running += 1
        self.backlog += tenant.rest
        self._rearrange(worker)
        return tenant

    def step(self, now: float, worker: Worker, done: Sequence[tuple[int, int]]) -> None:
        """Note how far the images in a worker are, and correct its costs by how long the step took."""
        stepped, worker.heard, worker.stepped, worker.asked = worker.stepped, now, now, None
        works = [worker.tenants[slot].work for slot, _ in done if slot in worker.tenants]
        # Where all take their first step, the device may have waited for them to be prepared.
        if stepped is not None and works and any(steps > 1 for _, steps in done):
            self._correct(worker, now - stepped, policy.step_seconds(worker.measured, len(works), sum(works)))
        for slot, steps in done:
            tenant = worker.tenants.get(slot)
            if tenant is not None:
                self._advance(tenant, tenant.steps - steps)

    def _advance(self, tenant: Tenant, left: int) -> None:
        before = tenant.rest
        tenant.left = max(0, min(left, tenant.left))
        if tenant.ticket is not None:
            self.backlog += tenant.rest - before

    def _correct(self, worker: Worker, taken: float, expected: float) -> None:
        """Scale a worker's costs, up or down, once its steps take noticeably longer or shorter than they say."""
        worker.slowdown.add(taken, expected)
        factor = worker.slowdown.factor
        if worker.state is WorkerState.READY and not 1 / policy.NOTICEABLE <= factor <= policy.NOTICEABLE:
            self._reprice(worker, policy.scaled(worker.measured, factor))
            worker.slowdown.accept()

    def forsake(self, tenant: Tenant) -> None:
        """Its job is answered: the slot is leaving."""
        assert tenant.ticket is not None
        self.running -= 1
        self.backlog = self.backlog - tenant.rest if self.running else 0.0
        tenant.ticket.tenant = None
        tenant.ticket = None
        tenant.worker.asked = None

    def vacate(self, now: float, tenant: Tenant, proof: bool) -> None:
        """Its worker has let go of what was leaving: the slot is free. `proof`: it has finished the picture."""
        worker = tenant.worker
        worker.heard = now
        worker.proven = worker.proven or proof
        del worker.tenants[tenant.slot]
        heappush(worker.free, tenant.slot)
        self._rearrange(worker)

    def _rearrange(self, worker: Worker) -> None:
        worker.asked = None
        if not worker.tenants:
            worker.alone, worker.stepped = False, None
        self._shelves.place(worker)
        self._watch(worker)

    # ----------------------------------------------------------------------------------------------------------- lives

    def spawn(self, now: float, worker: Worker) -> None:
        """Its process is being started."""
        worker.state = WorkerState.LOADING
        self.alarms.put(worker, now + self._limits.load_timeout)

    def welcome(self, now: float, worker: Worker, costs: Costs) -> None:
        """It is ready."""
        worker.slowdown = Slowdown()
        self._price(worker, costs)
        assert worker.pace is not None
        self.ready.add(worker.pace)
        worker.state, worker.heard, worker.since = WorkerState.READY, now, now
        worker.free = list(range(len(costs.step_seconds)))
        self._shelves.widen(len(costs.step_seconds))
        self._rearrange(worker)

    def reprice(self, worker: Worker, costs: Costs) -> None:
        """It has measured itself again, which replaces what was learned from its steps."""
        worker.slowdown = Slowdown()
        self._reprice(worker, costs)

    def _reprice(self, worker: Worker, costs: Costs) -> None:
        assert worker.pace is not None
        before = sum([tenant.rest for tenant in worker.batch])
        self.ready.remove(worker.pace)
        self._price(worker, costs)
        self.ready.add(worker.pace)
        worker.asked = None
        if worker.batch:
            self.backlog += sum([tenant.rest for tenant in worker.batch]) - before
        if worker.shelf is not None:
            worker.shelf.put(worker, policy.seconds_alone(costs))
        self._watch(worker)

    def _price(self, worker: Worker, costs: Costs) -> None:
        if worker.pace is not None:
            self._known.remove(worker.pace)
        worker.costs, worker.pace = costs, policy.pace(costs)
        self._known.add(worker.pace)
        self._speeds.put(worker.id, policy.seconds_alone(costs))

    def end(self, now: float, worker: Worker) -> None:
        """It is being killed: it gets no more jobs."""
        if worker.state is WorkerState.READY:
            assert worker.pace is not None
            self.ready.remove(worker.pace)
            worker.proven = worker.proven or now - worker.since >= self._limits.out_pause
        worker.state = WorkerState.ENDING
        self.alarms.drop(worker)
        self._shelves.place(worker)

    def bury(self, now: float, worker: Worker, loss: WorkerLost) -> list[Ticket]:
        """Its process has ended. Returns the jobs that were in it, in the order they came."""
        self.end(now, worker)
        tenants = sorted(worker.tenants.values(), key=lambda tenant: tenant.generation)
        tickets = [tenant.ticket for tenant in tenants if tenant.ticket is not None]
        for tenant in tenants:
            if tenant.ticket is not None:
                self.forsake(tenant)
        worker.tenants.clear()
        worker.free.clear()
        worker.alone, worker.stepped = False, None
        proven, worker.proven = worker.proven, False
        worker.failures = 0 if proven else worker.failures + (not loss.outside)
        if worker.fault or loss.hopeless or worker.failures >= self._limits.out_after:
            self.take_out(now, worker, worker.fault or loss.reason)
        else:
            worker.state, worker.reason = WorkerState.WAITING, loss.reason
            worker.pause = 0.0 if proven else self._longer(worker.pause)
            self.alarms.put(worker, now + worker.pause)
        return tickets

    def take_out(self, now: float, worker: Worker, reason: str) -> None:
        """It has no process, and gets none for long."""
        worker.state, worker.reason, worker.fault = WorkerState.OUT, reason, ""
        self.alarms.put(worker, now + self._limits.out_pause)

    @property
    def failure(self) -> str:
        """Why no worker can do anything, now or soon: all are out of service. Empty while one may."""
        if any(worker.state is not WorkerState.OUT for worker in self):
            return ""
        return "; ".join(f"{worker.id} is out of service: {worker.reason}" for worker in self)

    def _longer(self, pause: float) -> float:
        return min(max(2 * pause, self._limits.restart_pause), self._limits.restart_pause_max)

    def _watch(self, worker: Worker) -> None:
        """Set the alarm for silence. It may ring early, as a sign of life does not move it: then it is set again."""
        if worker.state is WorkerState.READY and worker.tenants:
            self.alarms.put(worker, worker.heard + self.patience(worker))
        elif worker.state is WorkerState.READY:
            self.alarms.drop(worker)

    def patience(self, worker: Worker) -> float:
        """Seconds that a busy worker may be silent: while it takes a step, or prepares and decodes all that it has."""
        costs, work = worker.measured, sum([tenant.work for tenant in worker.tenants.values()])
        expected = max(policy.step_seconds(costs, len(worker.tenants), work), costs.fixed_seconds * work)
        return max(self._limits.silence_floor, self._limits.silence_factor * expected)

    # ----------------------------------------------------------------------------------------------------------- check

    def check(self, *, opened: bool) -> None:
        """Validate invariants; raises BrokenInvariantError. Until it is `opened`, no worker is to be spawned."""
        for worker in self:
            self._check_worker(worker, opened)
        tenants = [tenant for worker in self for tenant in worker.batch]
        ready = [worker for worker in self if worker.state is WorkerState.READY]
        paces = [worker.pace for worker in ready if worker.pace is not None]
        self._shelves.check(list(self))
        require(len(ready) == self.ready.workers, "ready workers are miscounted")
        require(self.ready.places == sum(pace.places for pace in paces), "places are miscounted")
        require(
            isclose(self.ready.throughput, sum(pace.throughput for pace in paces), abs_tol=1e-9), "throughput drifts"
        )
        require(self.running == len(tenants), "running jobs are miscounted")
        require(isclose(self.backlog, sum(tenant.rest for tenant in tenants), abs_tol=1e-6), "the backlog drifts")

    def _check_worker(self, worker: Worker, opened: bool) -> None:
        ready = worker.state is WorkerState.READY
        slots = [*worker.tenants, *worker.free]
        capacity = len(worker.measured.step_seconds) if ready or slots else 0
        require(sorted(slots) == list(range(capacity)), f"{worker.id} lost or doubled a slot")
        require(not slots or worker.state in {WorkerState.READY, WorkerState.ENDING}, f"{worker.id} has slots too soon")
        if worker.asked is not None:
            work, steps, known = worker.asked
            now = policy.joining(worker.measured, worker.batch, work, steps)
            require(known == now, f"{worker.id} is taken for another")
        require(not worker.alone or len(worker.tenants) == 1, f"{worker.id} has a suspect in company")
        pausing = opened and worker.state in {WorkerState.WAITING, WorkerState.OUT}
        watched = pausing or worker.state is WorkerState.LOADING or (ready and bool(worker.tenants))
        require((worker in self.alarms) == watched, f"{worker.id} has a wrong alarm")
        for slot, tenant in worker.tenants.items():
            require(tenant.slot == slot and tenant.worker is worker, f"{worker.id} mistook its tenant")
            require(tenant.ticket is None or tenant.ticket.tenant is tenant, f"{worker.id} mistook its job")
