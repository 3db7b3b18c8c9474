"""Whom to admit, which job is next, and which worker it joins.

**Admission.** A job is taken if, with it, everybody who waits is still in time when they run in the order of their
deadlines. That order is not the one in which they will start, but if it holds them all, some order does, and `next_job`
leaves the fair order for it when it must. Of what is free, in places and in time, one client may have a share only, so
there is always something left for one more (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on
Networking 6, 1998).

**Placement.** A job joins the worker where the sum of all completion times grows least, unless it would make a running
image late or waiting is better. A free slot prefers a job of a size that runs there already, as another size is another
batch: whose turn it is may be passed over for that, for PASSING seconds at most.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from scheduler.costs import Wait
from scheduler.limits import Limits
from scheduler.messages import BatchKey, Expired, Impossible, Job, Overdrawn, Rejected, WorkerState
from scheduler.queue import FairQueue, JobState
from scheduler.workers import Worker, Workers

MARGIN = 1.1  # on the wait in a queue: what is taken to the edge of its deadline would miss it by the least delay
SOONEST_RETRY = 0.001  # seconds
PASSING = 3.0  # seconds
RESTED = 10.0  # seconds after which a worker without jobs is taken to be as fast as measured
Option = tuple[Worker, Wait | None]  # and the reason for a job not to join it
ALIKE = 1.05  # workers where a job adds up to this many times the least to the sum of completion times are equals


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the workers do at present, and when jobs that wait will be done if they run in the order of their deadlines.

    The first starts `delay` seconds after `now`, when the work `before` all of them is done. All workers that are known
    do `throughput` nominal images per second, of which `rate` is counted on for those that wait. A nominal image takes
    `service` seconds on a busy worker, of which `steps_share` are steps. What is known of running images lags by `lag`
    seconds.
    """

    now: float
    delay: float
    before: float
    throughput: float
    rate: float
    service: float
    steps_share: float
    lag: float

    def spares(self, jobs: Iterable[JobState]) -> list[float]:
        """How much time each of these jobs has to spare, which are sorted by their deadlines."""
        before, per_work, service, start = self.before, 1 / self.rate, self.service, self.now + self.delay
        spares = []
        for job in jobs:
            spares.append(job.deadline - before * per_work - service * job.load - start)
            before += job.load
        return spares


class Placement:
    """Decides on jobs by the queue and the workers, and changes neither."""

    def __init__(self, queue: FairQueue, workers: Workers, limits: Limits) -> None:
        self._queue = queue
        self._workers = workers
        self._limits = limits
        self._forecast: Forecast | None = None
        self._spares: list[float] | None = None

    def forget(self) -> None:
        """Something has changed: what was worked out does not hold any more."""
        self._forecast = self._spares = None

    # ------------------------------------------------------------------------------------------------------- estimates

    def load(self, job: Job, now: float) -> float:
        """What a job takes, in nominal images: only its steps are more or fewer, the rest of it is what it was.

        Before a worker has measured which part that is, it is at most so much.
        """
        share = self.forecast(now).steps_share if self._workers.known else float(job.length > 1)
        return job.work * (1 + share * (job.length - 1))

    def forecast(self, now: float) -> Forecast:
        """What can be said of the jobs that wait. A worker must have measured itself."""
        if self._forecast is None or self._forecast.now != now:
            self._forecast = self._look_ahead(now)
        return self._forecast

    def _look_ahead(self, now: float) -> Forecast:
        known = self._workers.known
        total, steps, lag, before, places = [
            sum(each) for each in zip(*[worker.rates for worker in known], strict=True)
        ]
        throughput = total / self._workers.mixing
        before += sum([_seconds_of_suspect(job, known) for job in self._queue.suspects]) * throughput / len(known)
        delay = 0.0 if known[0].ready else min([_seconds_until_ready(worker, now) for worker in known])
        rate = throughput / (MARGIN if len(self._queue) else 1)
        # By Little's law, the mean time in service is what is in service over what leaves per second.
        return Forecast(now, delay, before, throughput, rate, places / throughput, steps / total, lag / total)

    def _spares_of_waiting(self, view: Forecast) -> list[float]:
        if self._spares is None:
            self._spares = view.spares(self._queue.by_deadline)
        return self._spares

    def seconds_to_start(self, work: float, oldest: JobState | None, now: float) -> float | None:
        """When a job is expected to start that so much work starts before; None while no worker has measured itself.

        It takes a place to become free, and then what the workers get done together. As a rule the first place is
        freed by the worker that runs the `oldest` job.
        """
        if not self._workers.known:
            return None
        view, place = self.forecast(now), 0.0
        if oldest is not None and oldest.assignment is not None:
            place = min(oldest.assignment.worker.seconds_to_place(), view.before / view.throughput)
        return view.delay + place + work / view.throughput

    # ------------------------------------------------------------------------------------------------------- admission

    def admit(
        self, now: float, job: JobState, next_deadline: float | None, oldest: JobState | None
    ) -> Expired | Rejected | Impossible | Overdrawn | None:
        """Why a job is not taken; None if it is. `oldest` is the job that runs for longest."""
        if job.deadline <= now:
            return Expired()
        own, free = self._queue.of(job.job.client), self._limits.max_queue - len(self._queue)
        if job.background:  # they wait for long: more than half of the queue would leave interactive jobs no place
            free = min(free, (self._limits.max_queue + 1) // 2 - self._queue.background)
        others = self._others_share()
        if own and others:  # a client's first job is never denied to it, and one place is left for another's first
            missing = max(ceil((len(own) + 1) * others), 2) - free
            if missing > 0:
                return Overdrawn(self._seconds_to_places(missing, now, next_deadline, oldest))
        if free <= 0:
            return Rejected(self._seconds_to_places(1, now, next_deadline, oldest))
        if not self._workers.known:
            return None
        alone = min([_seconds_at_best(worker, job.job) for worker in self._workers.known])
        if alone > job.deadline - now:
            return Impossible(alone)
        return self._admit_in_time(now, job, others)

    def _others_share(self) -> float:
        """What must stay free for others, for each part of the queue that a client has."""
        limits = self._limits
        share = limits.client_share if self._queue.clients > 1 else max(limits.client_share, limits.lone_share)
        return (1 - share) / share

    def _admit_in_time(self, now: float, job: JobState, others: float) -> Rejected | Overdrawn | None:
        """Whether everybody is in time with it, and it leaves others their share of the time."""
        budget, alone = job.deadline - now, None
        if not len(self._queue):
            room = self._room(None)
            choice = room if isinstance(room, Wait) else self._best(job, now, 0, self._options(job.job, now, 0, room))
            if isinstance(choice, Worker):
                # A slow time that it has rested since may be over, and only a job can tell.
                rested = not choice.slots and now - choice.heard >= RESTED
                alone = budget - (_seconds_at_best(choice, job.job) if rested else choice.joined_by(job.job).end)
                if alone >= 0:  # it starts at once, is in time, and nobody waits: nothing else is to be worked out
                    return None
        view = self.forecast(now)
        spare, fits = self._spare(now, job, view) if alone is None else (alone, False)
        lag = self._lag(job, view)
        if not fits:
            wait = view.delay + (view.before + sum([each.load for each in self._queue.by_deadline])) / view.rate
            return Rejected(retry_after(wait, view.service * job.load, lag, budget))
        own = [each for each in self._queue.of(job.job.client) if each.job.priority >= job.job.priority]
        claim = sum([each.load for each in own]) / view.rate * others
        return Overdrawn(max(claim - spare + lag, SOONEST_RETRY)) if claim > spare else None

    def _spare(self, now: float, job: JobState, view: Forecast) -> tuple[float, bool]:
        """The time that a job has to spare, and whether it and everybody who waits are in time.

        Who would be late anyway does not count.
        """
        place = self._queue.due_by(job.deadline)
        before = view.before + sum([each.load for each in self._queue.by_deadline[:place]])
        spare = job.deadline - now - view.delay - before / view.rate - view.service * job.load
        spares = self._spares_of_waiting(view)
        sooner, later = min(spares[:place], default=inf), min(spares[place:], default=inf)
        with_it = min(sooner, later - job.load / view.rate)
        return spare, spare >= 0 and with_it >= min(0.0, sooner, later)

    def _lag(self, job: JobState, view: Forecast) -> float:
        """How many seconds what is known of running images can lag behind."""
        return view.lag * max([1.0, job.job.work, *[each.job.work for each in self._queue]])

    def _seconds_to_places(
        self, places: int, now: float, next_deadline: float | None, oldest: JobState | None
    ) -> float:
        """When so many places in the queue are free.

        The first is when the first image leaves the batch that the oldest job runs in, as a rule; and when the first
        deadline passes, which is all that can be said while nothing runs. Others follow at the workers' pace.
        """
        assert next_deadline is not None
        seconds = next_deadline - now
        if oldest is not None and oldest.assignment is not None:
            worker = oldest.assignment.worker
            more = (places - 1) * max([each.load for each in self._queue], default=1.0) / self.forecast(now).throughput
            seconds = min(seconds, worker.seconds_to_place() + worker.lag + more)
        return max(seconds, SOONEST_RETRY)

    # ---------------------------------------------------------------------------------------------------------- choice

    def choose(self, now: float, held: Worker | None) -> tuple[JobState, Worker] | Wait:
        """Which job to start now, and on which worker; or why the one whose turn it is should wait.

        A job of a size that runs already goes first, for so long. Nobody joins the `held` worker.
        """
        room = self._room(held)
        if isinstance(room, Wait):
            return room
        turn, behind = self._turn(now), len(self._queue) - 1
        options = self._options(turn.job, now, behind, room)
        if turn.passed_since is None or now - turn.passed_since < PASSING:
            alike = [each for each in options if _runs_size(each[0], turn.key)]
            if isinstance(choice := self._best(turn, now, behind, alike), Worker):
                return turn, choice
            for job in self._others_to_start(now, turn):
                alike = self._options(job.job, now, behind, [each for each in room if _runs_size(each, job.key)])
                if isinstance(choice := self._best(job, now, behind, alike), Worker):
                    turn.passed_since = now if turn.passed_since is None else turn.passed_since
                    return job, choice
        choice = self._best(turn, now, behind, options)
        return choice if isinstance(choice, Wait) else (turn, choice)

    def _turn(self, now: float) -> JobState:
        """Whose turn it is, as long as everybody else is in time then; else who is due first."""
        turn, due = self._queue.next, self._queue.by_deadline[0]
        assert turn is not None
        return turn if turn is due or self._can_go_first(now, turn) else due

    def _can_go_first(self, now: float, job: JobState) -> bool:
        """Whether all others are in time if a job starts before them. Those due later lose nothing by that."""
        if not self._workers.known:
            return True
        view, sooner = self.forecast(now), self._queue.due_before(job)
        if not sooner:
            return True
        work, most = self._queue.loads
        soonest = self._queue.by_deadline[0].deadline - now - view.delay
        if soonest >= (view.before + work + job.load) / view.rate + view.service * most:  # all are in time by far
            return True
        return min(self._spares_of_waiting(view)[:sooner]) >= job.load / view.rate

    def _others_to_start(self, now: float, turn: JobState) -> Iterator[JobState]:
        """The first jobs of other sizes, of those that can start before the one whose turn it is."""
        keeps_place = not turn.background and now - turn.submitted >= PASSING  # no background job goes first then
        for job in self._queue.first_of_each_size():
            if job.key != turn.key and not (job.background and keeps_place) and self._can_go_first(now, job):
                yield job

    def _room(self, held: Worker | None) -> list[Worker] | Wait:
        """The workers that a job can start on."""
        room = [worker for worker in self._workers.ready if worker.has_room]
        if not room:
            return Wait.SLOTS_TAKEN if self._workers.ready else Wait.NO_WORKER
        return [worker for worker in room if not worker.exclusive and worker is not held] or Wait.SUSPECT

    def _options(self, job: Job, now: float, behind: int, room: Iterable[Worker]) -> list[Option]:
        alike, share = self._queue.of_size(job.batch_key), behind / len(self._workers.ready)
        return [(worker, worker.reason_not_to_join(job, now, share, alike)) for worker in room]

    def _best(self, state: JobState, now: float, behind: int, options: Sequence[Option]) -> Worker | Wait:
        """The best of these workers for a job. `behind` jobs wait behind it."""
        job = state.job
        found = [worker for worker, reason in options if reason is None]
        if not found:
            return min([(len(worker.slots), reason) for worker, reason in options if reason], default=(0, Wait.SLOWER))[
                1
            ]
        in_time = [worker for worker, reason in options if reason is not Wait.DEADLINE and _in_time(worker, job, now)]
        found = [worker for worker in found if worker in in_time] or in_time or found
        # What a worker's last steps took is no exact science: among equals, the one that has rested longest.
        least = min([worker.joined_by(job).added for worker in found])
        nearly_least = least + (ALIKE - 1) * abs(least)  # a leaving image can make the sum smaller than it was
        equals = [worker for worker in found if worker.joined_by(job).added <= nearly_least]
        best = min(equals, key=lambda worker: (len(worker.slots), worker.changed))
        waits = now - state.submitted if state.sequence else 0.0
        return Wait.SLOWER if _should_wait_for_another(best, job, self._workers.ready, behind, waits) else best


def _should_wait_for_another(best: Worker, job: Job, ready: Sequence[Worker], behind: int, waits: float) -> bool:
    """Whether a job is done sooner if it waits for a place on a faster worker, though `best` is empty.

    Of those who wait behind it, each takes a place on the faster one as well. One that `waits` for as long as it would
    take on the empty one was wrong to hope: others take the places.
    """
    end = best.joined_by(job).end
    if best.slots or waits >= end:
        return False
    others = [worker for worker in ready if worker.batch and not worker.exclusive]
    return any(worker.end_if_waited_for(job) + behind / worker.throughput < end for worker in others)


def _runs_size(worker: Worker, key: BatchKey) -> bool:
    """Whether a worker is empty or runs images of a size."""
    return not worker.slots or key in [each.key for each in worker.slots.values()]


def _in_time(worker: Worker, job: Job, now: float) -> bool:
    return now + worker.joined_by(job).end <= job.deadline


def _seconds_of_suspect(job: JobState, known: Sequence[Worker]) -> float:
    return min([worker.known_prices.alone(job.job) for worker in known])


def _seconds_at_best(worker: Worker, job: Job) -> float:
    """What a job takes alone, when nothing slows the worker down."""
    return worker.known_prices.alone(job) / max(1.0, worker.known_prices.slowdown.factor)


def _seconds_until_ready(worker: Worker, now: float) -> float:
    """When a worker without a process can take jobs again, if loading takes as long as last time."""
    if worker.state is WorkerState.LOADING:
        return max(0.0, worker.spawned_at + worker.load_seconds - now)
    start = max(0.0, worker.alarm - now) if worker.alarm is not None else 0.0
    return start + worker.load_seconds


def retry_after(wait: float, service: float, lag: float, budget: float) -> float:
    """Seconds until a job is admitted that must end within `budget`, and now would wait for `wait` and run `service`.

    A budget below the service time of a busy worker needs an idle one: there is one when all that is here has ended.
    """
    return max(wait + service - (budget if budget >= service else 0.0) + lag, lag, SOONEST_RETRY)
