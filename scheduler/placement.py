"""Admission and placement: which jobs are accepted, which one starts next, and on which worker.

**Admission.** If any order meets all deadlines, the order of deadlines does. So accept a job if all waiting jobs, this
one included, meet their deadlines in that order; jobs that are late anyway do not count. If none waits, accept it if it
is in time on the worker that it would start on. Jobs start in the fair order as long as that makes none late; else
`turn` takes the earliest deadline. One client may use only a share of the free queue, in places and in time, so there
is always room for another (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998).

**Placement.** A job joins the worker where the sum of completion times grows least, unless it would make a running
image late, or waiting for a place gives a smaller sum. It waits for a faster worker if it ends sooner there, or is in
time only there. A free slot prefers a job of a size that already runs there, because another size is another batch. The
job whose turn it is may be passed over for that, but for PASSING seconds at most.

An example. A step of one image takes 10 ms, of two images 12 ms. Worker A has an image with 20 steps left, worker B is
empty. On B a job of 20 steps ends after 200 ms and delays nobody: the sum grows by 200 ms. On A it ends after 240 ms
and delays the other image by 40 ms: the sum grows by 280 ms. The job starts on B.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from scheduler.costs import Wait
from scheduler.limits import Limits
from scheduler.messages import BatchKey, Expired, Impossible, Job, QuotaExceeded, Rejected, WorkerState
from scheduler.queue import FairQueue, JobState
from scheduler.workers import Worker, Workers

MARGIN = 1.1  # on the predicted wait in the queue: a job admitted without slack would be late after any delay
SOONEST_RETRY = 0.001  # seconds
PASSING = 3.0  # seconds
RESTED = 10.0  # seconds without a job after which a worker that was slow is assumed to be as fast as measured
LOOKED_AT = 8  # jobs that may start on a worker that the next job leaves empty
Option = tuple[Worker, Wait | None]  # and the reason for a job not to join it
ALIKE = 1.05  # workers count as equal if the sum grows by at most this many times the least growth


@dataclass(frozen=True, slots=True)
class Forecast:
    """The state of all workers together, and from it the completion times of waiting jobs in the order of deadlines.

    Waiting jobs start after `delay` seconds, once `before` nominal images of running work are done. All known workers
    together do `throughput` nominal images per second; admission counts on `rate` of it. A nominal image takes
    `service` seconds on a busy worker; `steps_share` of that are steps. The progress of running images is known with a
    delay of up to `lag` seconds.
    """

    now: float
    delay: float
    before: float
    throughput: float
    rate: float
    service: float
    steps_share: float
    lag: float

    def slacks(self, jobs: Iterable[JobState]) -> list[float]:
        """The slack of each job, in seconds. `jobs` are sorted by deadline."""
        before, per_work, service, start = self.before, 1 / self.rate, self.service, self.now + self.delay
        slacks = []
        for job in jobs:
            slacks.append(job.deadline - before * per_work - service * job.load - start)
            before += job.load
        return slacks


class Placement:
    """Chooses jobs and workers. The only change it makes is to note in a job since when others pass it over."""

    def __init__(self, queue: FairQueue, workers: Workers, limits: Limits) -> None:
        self._queue = queue
        self._workers = workers
        self._limits = limits
        self._forecast: Forecast | None = None
        self._slacks: list[float] | None = None
        self._held: Worker | None = None
        self.waiting: JobState | None = None
        """The job that should wait, as `choose` said last."""
        self.stops_waiting_at: float | None = None
        """When that job takes an empty worker, if it waits for a faster one now."""

    def forget(self) -> None:
        """Drop what was computed: something has changed."""
        self._forecast = self._slacks = None

    # ------------------------------------------------------------------------------------------------------- estimates

    def load(self, job: Job, now: float) -> float:
        """The work of a job in nominal images. `length` scales only the part of it that is steps.

        Before a worker has measured that part, this is an upper bound.
        """
        share = self.forecast(now).steps_share if self._workers.known else float(job.length > 1)
        return job.work * (1 + share * (job.length - 1))

    def forecast(self, now: float) -> Forecast:
        """The present forecast. At least one worker must have measured itself."""
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

    def _slacks_of_waiting(self, view: Forecast) -> list[float]:
        if self._slacks is None:
            self._slacks = view.slacks(self._queue.by_deadline)
        return self._slacks

    def seconds_to_start(self, work: float, oldest: JobState | None, now: float) -> float | None:
        """Seconds until a job starts that has `work` waiting before it; None while no worker has measured itself.

        A place must become free, and then the workers must do that work. As a rule, the worker that runs the `oldest`
        job has the first free place.
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
    ) -> Expired | Rejected | Impossible | QuotaExceeded | None:
        """Return the reason to refuse a job, or None. `oldest` is the job that has run for longest."""
        if job.deadline <= now:
            return Expired()
        own, free = self._queue.of(job.job.client), self._limits.max_queue - len(self._queue)
        if job.background:  # they wait for long: more than half of the queue would leave interactive jobs no place
            free = min(free, (self._limits.max_queue + 1) // 2 - self._queue.background)
        others = self._others_share()
        if own and others:  # a client's first job is never denied to it, and one place is left for another's first
            missing = max(ceil((len(own) + 1) * others), 2) - free
            if missing > 0:
                return QuotaExceeded(self._seconds_to_places(missing, now, next_deadline, oldest))
        if free <= 0:
            return Rejected(self._seconds_to_places(1, now, next_deadline, oldest), queue_full=True)
        if not self._workers.known:
            return None
        alone = min([_seconds_at_best(worker, job.job) for worker in self._workers.known])
        if alone > job.deadline - now:
            return Impossible(alone)
        return self._admit_in_time(now, job, others)

    def _others_share(self) -> float:
        """How much must stay free for others, as a multiple of what one client has."""
        limits = self._limits
        share = limits.client_share if self._queue.clients > 1 else max(limits.client_share, limits.lone_share)
        return (1 - share) / share

    def _admit_in_time(self, now: float, job: JobState, others: float) -> Rejected | QuotaExceeded | None:
        """Refuse a job that would be late, make a waiting job late, or leave others less than their share of time."""
        budget, idle = job.deadline - now, not len(self._queue) and self._workers.ready
        if idle and self._soonest_end(now, job) <= budget:  # no job waits, so nothing else is to be computed
            return None
        view = self.forecast(now)
        slack, fits = self._slack(now, job, view)
        lag = self._lag(job, view)
        if idle or not fits:
            wait = view.delay + (view.before + sum([each.load for each in self._queue.by_deadline])) / view.rate
            return Rejected(retry_after(wait, view.service * job.load, lag, budget))
        own = [each for each in self._queue.of(job.job.client) if each.job.priority >= job.job.priority]
        claim = sum([each.load for each in own]) / view.rate * others
        return QuotaExceeded(max(claim - slack + lag, SOONEST_RETRY)) if claim > slack else None

    def _soonest_end(self, now: float, job: JobState) -> float:
        """In how many seconds a job is done, if no other waits."""
        room, self._held = self._room(None), None
        choice = room if isinstance(room, Wait) else self._best(job, now, 0, self._options(job.job, now, 0, room))
        if isinstance(choice, Worker) and _in_time(choice, job.job, now):
            return choice.joined_by(job.job).end
        waited = min([worker.end_if_waited_for(job.job) for worker in self._busy], default=inf)
        if isinstance(choice, Wait):
            return waited
        # A worker that was slow and has rested since may be fast again, and only a job can show it.
        rested = not choice.slots and now - choice.heard >= RESTED
        return min(waited, _seconds_at_best(choice, job.job) if rested else choice.joined_by(job.job).end)

    def _slack(self, now: float, job: JobState, view: Forecast) -> tuple[float, bool]:
        """The slack of a new job, and whether all waiting jobs, but those that are late anyway, are in time with it."""
        place = self._queue.due_by(job.deadline)
        before = view.before + sum([each.load for each in self._queue.by_deadline[:place]])
        slack = job.deadline - now - view.delay - before / view.rate - view.service * job.load
        slacks = self._slacks_of_waiting(view)
        sooner, later = min(slacks[:place], default=inf), min(slacks[place:], default=inf)
        with_it = min(sooner, later - job.load / view.rate)
        return slack, slack >= 0 and with_it >= min(0.0, sooner, later)

    def _lag(self, job: JobState, view: Forecast) -> float:
        """By how many seconds the known progress of running images can be out of date."""
        return view.lag * max([1.0, job.job.work, *[each.job.work for each in self._queue]])

    def _seconds_to_places(
        self, places: int, now: float, next_deadline: float | None, oldest: JobState | None
    ) -> float:
        """Seconds until so many places in the queue are free.

        The first is free when an image leaves the batch of the oldest job, or when the next deadline passes, which is
        all that is known while nothing runs. The others follow at the rate of the workers.
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
        """Return the job to start now and its worker, or the reason for the next job to wait.

        Jobs of a size that already runs go first, for PASSING seconds at most. No job joins the `held` worker.
        """
        room, self._held = self._room(held), held
        if isinstance(room, Wait):
            return room
        turn, behind = self.turn(now), len(self._queue) - 1
        options = self._options(turn.job, now, behind, room)
        if turn.passed_since is None or now - turn.passed_since < PASSING:
            alike = [each for each in options if _runs_size(each[0], turn.key)]
            choice = self._best(turn, now, behind, alike)
            if isinstance(choice, Worker) and _in_time(choice, turn.job, now):
                return turn, choice
            for job in self._others_to_start(now, turn):
                alike = self._options(job.job, now, behind, [each for each in room if _runs_size(each, job.key)])
                choice = self._best(job, now, behind, alike)
                if isinstance(choice, Worker) and _in_time(choice, job.job, now):
                    turn.passed_since = now if turn.passed_since is None else turn.passed_since
                    return job, choice
        choice, self.waiting = self._best(turn, now, behind, options), turn
        if isinstance(choice, Worker):
            return turn, choice
        return self._for_empty_workers(now, turn, behind, room) or choice

    def _for_empty_workers(
        self, now: float, turn: JobState, behind: int, room: Sequence[Worker]
    ) -> tuple[JobState, Worker] | None:
        """Another job for a worker that is empty because the job whose turn it is waits for a faster one."""
        empty = [worker for worker in room if not worker.slots]
        if not empty or not behind:
            return None
        alarm = self.stops_waiting_at
        for job in [job for job in self._queue.by_deadline[: LOOKED_AT + 1] if job is not turn]:
            choice = self._best(job, now, behind, self._options(job.job, now, behind, empty))
            if isinstance(choice, Worker) and _in_time(choice, job.job, now):
                return job, choice
        self.stops_waiting_at = alarm
        return None

    def turn(self, now: float) -> JobState:
        """The next job in the fair order if all others stay in time; else the one with the earliest deadline."""
        turn, due = self._queue.next, self._queue.by_deadline[0]
        assert turn is not None
        return turn if turn is due or self._can_go_first(now, turn) else due

    def _can_go_first(self, now: float, job: JobState) -> bool:
        """Whether all other jobs stay in time if this one starts first. Only those due earlier can become late."""
        if not self._workers.known:
            return True
        view, sooner = self.forecast(now), self._queue.due_before(job)
        if not sooner:
            return True
        work, most = self._queue.loads
        soonest = self._queue.by_deadline[0].deadline - now - view.delay
        if soonest >= (view.before + work + job.load) / view.rate + view.service * most:  # all are in time by far
            return True
        return min(self._slacks_of_waiting(view)[:sooner]) >= job.load / view.rate

    def _others_to_start(self, now: float, turn: JobState) -> Iterator[JobState]:
        """The first job of each other size, if it may start before the one whose turn it is."""
        keeps_place = not turn.background and now - turn.submitted >= PASSING  # no background job goes first then
        for job in self._queue.first_of_each_size():
            if job.key != turn.key and not (job.background and keeps_place) and self._can_go_first(now, job):
                yield job

    def _room(self, held: Worker | None) -> list[Worker] | Wait:
        """The workers that a job can start on, or the reason why there is none."""
        room = [worker for worker in self._workers.ready if worker.has_room]
        if not room:
            return Wait.SLOTS_TAKEN if self._workers.ready else Wait.NO_WORKER
        return [worker for worker in room if not worker.exclusive and worker is not held] or Wait.SUSPECT

    def _options(self, job: Job, now: float, behind: int, room: Iterable[Worker]) -> list[Option]:
        alike, share = self._queue.of_size(job.batch_key), behind / len(self._workers.ready)
        return [(worker, worker.reason_not_to_join(job, now, share, alike)) for worker in room]

    def _best(self, state: JobState, now: float, behind: int, options: Sequence[Option]) -> Worker | Wait:
        """The best of these workers for a job, or the reason to wait. `behind` jobs wait behind it."""
        job, self.stops_waiting_at = state.job, None
        found = [worker for worker, reason in options if reason is None]
        if not found and all(now + worker.joined_by(job).end_if_waited > job.deadline for worker, _ in options):
            found = [worker for worker, reason in options if reason is Wait.SLOWER and _in_time(worker, job, now)]
        if not found:
            reasons = [(len(worker.slots), reason) for worker, reason in options if reason is not None]
            return min(reasons)[1] if reasons else Wait.SLOWER
        in_time = [worker for worker, reason in options if reason is not Wait.DEADLINE and _in_time(worker, job, now)]
        found = [worker for worker in found if worker in in_time] or in_time or found
        # Predictions differ by noise, so among nearly equal workers take the one that has been idle for longest.
        least = min([worker.joined_by(job).added for worker in found])
        nearly_least = least + (ALIKE - 1) * abs(least)  # a leaving image can make the sum smaller than it was
        equals = [worker for worker in found if worker.joined_by(job).added <= nearly_least]
        best = min(equals, key=lambda worker: (len(worker.slots), worker.changed))
        if best.slots and _in_time(best, job, now):
            return best
        elsewhere = [(worker.end_if_waited_for(job), worker) for worker in self._busy if worker is not best]
        if not _in_time(best, job, now) and any(now + end <= job.deadline for end, _ in elsewhere):
            return Wait.SLOWER
        # A job that has waited for as long as it would have taken on the empty worker stops waiting for a faster one,
        # because other jobs take the places there.
        end = best.joined_by(job).end
        sooner = any(waited + behind / worker.throughput < end for waited, worker in elsewhere)
        if best.slots or not sooner or now >= state.submitted + end:
            return best
        self.stops_waiting_at = state.submitted + end
        return Wait.SLOWER

    @property
    def _busy(self) -> list[Worker]:
        """The workers that a job can wait for."""
        return [each for each in self._workers.ready if each.slots and each is not self._held]


def _runs_size(worker: Worker, key: BatchKey) -> bool:
    """Whether a worker is empty or runs images of a size."""
    return not worker.slots or key in [each.key for each in worker.slots.values()]


def _in_time(worker: Worker, job: Job, now: float) -> bool:
    return now + worker.joined_by(job).end <= job.deadline


def _seconds_of_suspect(job: JobState, known: Sequence[Worker]) -> float:
    return min([worker.known_prices.alone(job.job) for worker in known])


def _seconds_at_best(worker: Worker, job: Job) -> float:
    """Seconds of a job alone on a worker, without its present slowdown."""
    return worker.known_prices.alone(job) / max(1.0, worker.known_prices.slowdown.factor)


def _seconds_until_ready(worker: Worker, now: float) -> float:
    """Seconds until a worker without a process can take jobs, if loading takes as long as last time."""
    if worker.state is WorkerState.LOADING:
        return max(0.0, worker.spawned_at + worker.load_seconds - now)
    start = max(0.0, worker.alarm - now) if worker.alarm is not None else 0.0
    return start + worker.load_seconds


def retry_after(wait: float, service: float, lag: float, budget: float) -> float:
    """Seconds until a job with `budget` seconds to its deadline would be admitted.

    Now it would wait `wait` seconds and run `service`. A budget below the service time on a busy worker needs an idle
    one, which there is when all present work has ended.
    """
    return max(wait + service - (budget if budget >= service else 0.0) + lag, lag, SOONEST_RETRY)
