"""Admission and placement: which jobs are accepted, which one starts next, and on which worker.

**Admission.** If any order meets all deadlines, the order of deadlines does. So accept a job if all waiting jobs, this
one included, meet their deadlines in that order; jobs that are late anyway do not count. If none waits, accept it if it
is in time on the worker that it would start on. Jobs start in the fair order as long as that makes none late; else
`next_job` takes the earliest deadline. One client may use only a share of the free queue, in places and in time, so
there is always room for another (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998).

An example, without the margin. The workers do 2 images per second, and an image takes 1 s on a busy worker. Four jobs
that wait are due in 4 s, and two in 6 s. A new job that is due in 5 s has four before it, so it ends after 4 / 2 + 1,
that is 3 s. The last of the others ends after 6 / 2 + 1 = 4 s instead of 3.5 s. All are in time, so it is accepted.

**Placement.** A job joins the worker where the sum of completion times grows least, unless it would make a running
image late, or waiting for a place gives a smaller sum. It waits for a faster worker if it ends sooner there, or is in
time only there. A free slot prefers a job of a size that already runs there, because another size is another batch. The
next job may be bypassed for that, but for MAX_BYPASS_SECONDS at most. `_choose_worker` lists the rules in order.

An example. A step of one image takes 10 ms, of two images 12 ms. Worker A has an image with 20 steps left, worker B is
empty. On B a job of 20 steps ends after 200 ms and delays nobody: the sum grows by 200 ms. On A it ends after 240 ms
and delays the other image by 40 ms: the sum grows by 280 ms. The job starts on B.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from scheduler.limits import Limits
from scheduler.messages import Expired, Impossible, Job, QuotaExceeded, Rejected, WaitReason, WorkerState
from scheduler.queue import FairQueue, JobState
from scheduler.workers import Worker, Workers

MARGIN = 1.1
"""On the predicted wait in the queue. Under overload every job is accepted up to the edge of its deadline, so without a
margin the smallest delay would make nearly all of them late."""
MIN_RETRY_AFTER = 0.001  # seconds: a client that is refused has to wait, however little
MAX_BYPASS_SECONDS = 3.0
"""A short wait of each client's first image counts more than the throughput that longer bypassing would bring: see
docs/decisions.md for its figures."""
RESTED_SECONDS = 10.0
"""A worker that was slow is assumed to be as fast as measured after so long without a job: only a job can show it."""
LOOKAHEAD = 8  # jobs that may start on a worker that the next job leaves empty; it bounds the time of a decision
TIE_FACTOR = 1.05
"""Workers count as equal if the sum grows by at most this many times the least growth: predictions are off by some
percent (see `costs.PESSIMISTIC`)."""
Candidate = tuple[Worker, WaitReason | None]
"""A worker with a free slot, and the reason for a job not to join it. A plain tuple, as decisions make many."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The state of all workers together, and from it the completion times of waiting jobs in the order of deadlines.

    Waiting jobs start after `start_delay` seconds, once `running_work` nominal images are done. All known workers
    together do `throughput` nominal images per second; admission counts on `admission_throughput` of it. A nominal
    image takes `service_seconds` on a busy worker; `denoising_share` of that are steps. The known progress of running
    images is out of date by up to `progress_lag` seconds.
    """

    now: float
    start_delay: float
    running_work: float
    throughput: float
    admission_throughput: float
    service_seconds: float
    denoising_share: float
    progress_lag: float

    def slacks(self, jobs: Iterable[JobState]) -> list[float]:
        """The slack of each job, in seconds. `jobs` are sorted by deadline."""
        before, per_work = self.running_work, 1 / self.admission_throughput
        service, start = self.service_seconds, self.now + self.start_delay
        slacks = []
        for job in jobs:
            slacks.append(job.deadline - before * per_work - service * job.load - start)
            before += job.load
        return slacks


class Placement:
    """Chooses jobs and workers. The only change it makes is to note in a job since when others bypass it."""

    def __init__(self, queue: FairQueue, workers: Workers, limits: Limits) -> None:
        self._queue = queue
        self._workers = workers
        self._limits = limits
        self._forecast: Forecast | None = None
        self._slacks: list[float] | None = None
        self._held_worker: Worker | None = None
        self.waiting_job: JobState | None = None
        """The job that should wait, as `choose` said last."""
        self.stops_waiting_at: float | None = None
        """When that job takes an empty worker, if it waits for a faster one now."""

    def clear_cache(self) -> None:
        """Drop what was computed: something has changed."""
        self._forecast = self._slacks = None

    # ------------------------------------------------------------------------------------------------------- estimates

    def load(self, job: Job, now: float) -> float:
        """The work of a job in nominal images. `relative_steps` scales only the part of it that is steps.

        Before a worker has measured that part, this is an upper bound.
        """
        share = self.forecast(now).denoising_share if self._workers.known else float(job.relative_steps > 1)
        return job.work * (1 + share * (job.relative_steps - 1))

    def forecast(self, now: float) -> Forecast:
        """The present forecast. At least one worker must have measured itself."""
        if self._forecast is None or self._forecast.now != now:
            self._forecast = self._look_ahead(now)
        return self._forecast

    def _look_ahead(self, now: float) -> Forecast:
        known = self._workers.known
        total, denoising, lag, work, images = [
            sum(each) for each in zip(*[worker.forecast_terms for worker in known], strict=True)
        ]
        throughput = total / self._workers.mixed_sizes_factor
        work += sum([_seconds_of_suspect(job, known) for job in self._queue.suspects]) * throughput / len(known)
        start_delay = 0.0 if known[0].ready else min([_seconds_until_ready(worker, now) for worker in known])
        return Forecast(
            now,
            start_delay,
            running_work=work,
            throughput=throughput,
            admission_throughput=throughput / (MARGIN if len(self._queue) else 1),
            service_seconds=images / throughput,  # Little's law: what is in service over what leaves per second
            denoising_share=denoising / total,
            progress_lag=lag / total,
        )

    def _slacks_of_waiting(self, forecast: Forecast) -> list[float]:
        if self._slacks is None:
            self._slacks = forecast.slacks(self._queue.by_deadline)
        return self._slacks

    def seconds_to_start(self, work: float, oldest: JobState | None, now: float) -> float | None:
        """Seconds until a job starts that has `work` waiting before it; None while no worker has measured itself.

        A place must become free, and then the workers must do that work. As a rule, the worker that runs the `oldest`
        job has the first free place.
        """
        if not self._workers.known:
            return None
        forecast, place = self.forecast(now), 0.0
        if oldest is not None and oldest.assignment is not None:
            place = min(oldest.assignment.worker.seconds_to_place(), forecast.running_work / forecast.throughput)
        return forecast.start_delay + place + work / forecast.throughput

    # ------------------------------------------------------------------------------------------------------- admission

    def admit(
        self, now: float, job: JobState, next_deadline: float | None, oldest: JobState | None
    ) -> Expired | Rejected | Impossible | QuotaExceeded | None:
        """Return the reason to refuse a job, or None. `oldest` is the job that has run for longest."""
        if job.deadline <= now:
            return Expired()
        own, free = self._queue.jobs_of(job.job.client), self._limits.max_queue - len(self._queue)
        if job.background:  # they wait for long: more than half of the queue would leave interactive jobs no place
            free = min(free, (self._limits.max_queue + 1) // 2 - self._queue.background_count)
        others = self._others_share()
        if own and others:  # a client's first job is never denied to it, and one place is left for another's first
            missing = max(ceil((len(own) + 1) * others), 2) - free
            if missing > 0:
                return QuotaExceeded(self._seconds_to_places(missing, now, next_deadline, oldest))
        if free <= 0:
            return Rejected(self._seconds_to_places(1, now, next_deadline, oldest), queue_full=True)
        if not self._workers.known:
            return None
        return self._admit_in_time(now, job, others)

    def _others_share(self) -> float:
        """How much must stay free for others, as a multiple of what one client has."""
        limits = self._limits
        share = limits.client_share if self._queue.client_count > 1 else max(limits.client_share, limits.lone_share)
        return (1 - share) / share

    def _admit_in_time(self, now: float, job: JobState, others: float) -> Rejected | Impossible | QuotaExceeded | None:
        """Refuse a job that would be late, make a waiting job late, or leave others less than their share of time."""
        budget, idle = job.deadline - now, not len(self._queue) and self._workers.ready
        if idle and self._soonest_end(now, job) <= budget:  # no job waits, so this is all
            return None
        alone = min([_seconds_at_best(worker, job.job) for worker in self._workers.known])
        if alone > budget:
            return Impossible(alone)
        forecast = self.forecast(now)
        slack, all_in_time = self._slack(now, job, forecast)
        lag = forecast.progress_lag * max([1.0, job.job.work, *[each.job.work for each in self._queue]])
        if idle or not all_in_time:
            work = forecast.running_work + sum([each.load for each in self._queue.by_deadline])
            wait = forecast.start_delay + work / forecast.admission_throughput
            return Rejected(retry_after(wait, forecast.service_seconds * job.load, lag, budget))
        own = [each for each in self._queue.jobs_of(job.job.client) if each.job.priority >= job.job.priority]
        claim = sum([each.load for each in own]) / forecast.admission_throughput * others
        return QuotaExceeded(max(claim - slack + lag, MIN_RETRY_AFTER)) if claim > slack else None

    def _soonest_end(self, now: float, state: JobState) -> float:
        """In how many seconds a job is done, if no other waits."""
        job, room, self._held_worker = state.job, self._room(None), None
        if isinstance(room, WaitReason):
            choice: Worker | WaitReason = room
        else:
            choice = self._choose_worker(state, now, 0, self._candidates(state, now, 0, room))
        if isinstance(choice, Worker) and _in_time(choice, job, now):
            return choice.effect_of_joining(job).end
        if_waiting = min([worker.end_if_waiting_for(job) for worker in self._busy], default=inf)
        if isinstance(choice, WaitReason):
            return if_waiting
        rested = not choice.slots and now - choice.times.last_heartbeat >= RESTED_SECONDS
        return min(if_waiting, _seconds_at_best(choice, job) if rested else choice.effect_of_joining(job).end)

    def _slack(self, now: float, job: JobState, forecast: Forecast) -> tuple[float, bool]:
        """The slack of a new job, and whether all waiting jobs, but those that are late anyway, are in time with it."""
        place, throughput = self._queue.count_due_by(job.deadline), forecast.admission_throughput
        before = forecast.running_work + sum([each.load for each in self._queue.by_deadline[:place]])
        slack = job.deadline - now - forecast.start_delay - before / throughput - forecast.service_seconds * job.load
        slacks = self._slacks_of_waiting(forecast)
        sooner, later = min(slacks[:place], default=inf), min(slacks[place:], default=inf)
        with_it = min(sooner, later - job.load / throughput)
        return slack, slack >= 0 and with_it >= min(0.0, sooner, later)

    def _seconds_to_places(
        self, places: int, now: float, next_deadline: float | None, oldest: JobState | None
    ) -> float:
        """Seconds until this number of places in the queue is free.

        The first is free when an image leaves the batch of the oldest job, or when the next deadline passes, which is
        all that is known while nothing runs. The others follow at the throughput of the workers.
        """
        assert next_deadline is not None
        seconds = next_deadline - now
        if oldest is not None and oldest.assignment is not None:
            worker = oldest.assignment.worker
            more = (places - 1) * max([each.load for each in self._queue], default=1.0) / self.forecast(now).throughput
            seconds = min(seconds, worker.seconds_to_place() + worker.progress_lag + more)
        return max(seconds, MIN_RETRY_AFTER)

    # ---------------------------------------------------------------------------------------------------------- choice

    def choose(self, now: float, held: Worker | None) -> tuple[JobState, Worker] | WaitReason:
        """Return the job to start now and its worker, or the reason for the next job to wait.

        Jobs of a size that already runs go first, for MAX_BYPASS_SECONDS at most. No job joins the `held` worker.
        """
        room, self._held_worker = self._room(held), held
        if isinstance(room, WaitReason):
            return room
        job, behind = self.next_job(now), len(self._queue) - 1
        candidates = self._candidates(job, now, behind, room)
        if job.bypassed_since is None or now - job.bypassed_since < MAX_BYPASS_SECONDS:
            same_size = [each for each in candidates if each[0].runs_size(job.batch_key)]
            if (worker := self._worker_in_time(job, now, behind, same_size)) is not None:
                return job, worker
            if (bypass := self._bypass(job, now, behind, room)) is not None:
                return bypass
        choice, self.waiting_job = self._choose_worker(job, now, behind, candidates), job
        if isinstance(choice, Worker):
            return job, choice
        return self._use_empty_workers(job, now, behind, room) or choice

    def next_job(self, now: float) -> JobState:
        """The next job in the fair order if all others stay in time; else the one with the earliest deadline."""
        fair, due = self._queue.next_job, self._queue.by_deadline[0]
        assert fair is not None
        return fair if fair is due or self._can_go_first(now, fair) else due

    def _can_go_first(self, now: float, job: JobState) -> bool:
        """Whether all other jobs stay in time if this one starts first. Only those due earlier can become late."""
        if not self._workers.known:
            return True
        forecast, sooner = self.forecast(now), self._queue.count_due_before(job)
        if not sooner:
            return True
        waiting, largest = self._queue.total_and_largest_load
        work, throughput = forecast.running_work + waiting + job.load, forecast.admission_throughput
        soonest = self._queue.by_deadline[0].deadline - now - forecast.start_delay
        if soonest >= work / throughput + forecast.service_seconds * largest:  # all are in time by far
            return True
        return min(self._slacks_of_waiting(forecast)[:sooner]) >= job.load / throughput

    def _bypass(self, job: JobState, now: float, behind: int, room: Sequence[Worker]) -> tuple[JobState, Worker] | None:
        """A job that may overtake the next one, by joining a batch of its own size, if all stay in time."""
        for other in self._first_of_other_sizes(job, now):
            same_size = [worker for worker in room if worker.runs_size(other.batch_key)]
            candidates = self._candidates(other, now, behind, same_size)
            if (worker := self._worker_in_time(other, now, behind, candidates)) is not None:
                job.bypassed_since = now if job.bypassed_since is None else job.bypassed_since
                return other, worker
        return None

    def _first_of_other_sizes(self, job: JobState, now: float) -> Iterator[JobState]:
        """The first job of each other size, if it may start before the next one."""
        interactive_only = not job.background and now - job.submitted >= MAX_BYPASS_SECONDS
        for other in self._queue.first_of_each_size():
            barred = other.batch_key == job.batch_key or (other.background and interactive_only)
            if not barred and self._can_go_first(now, other):
                yield other

    def _use_empty_workers(
        self, job: JobState, now: float, behind: int, room: Sequence[Worker]
    ) -> tuple[JobState, Worker] | None:
        """Another job for a worker that is empty because the next job waits for a faster one."""
        empty = [worker for worker in room if not worker.slots]
        if not empty or not behind:
            return None
        stops_waiting_at = self.stops_waiting_at
        for other in [other for other in self._queue.by_deadline[: LOOKAHEAD + 1] if other is not job]:
            candidates = self._candidates(other, now, behind, empty)
            if (worker := self._worker_in_time(other, now, behind, candidates)) is not None:
                return other, worker
        self.stops_waiting_at = stops_waiting_at
        return None

    def _room(self, held: Worker | None) -> list[Worker] | WaitReason:
        """The workers that a job can start on, or the reason why there is none."""
        room = [worker for worker in self._workers.ready if worker.has_room]
        if not room:
            return WaitReason.SLOTS_TAKEN if self._workers.ready else WaitReason.NO_WORKER
        return [worker for worker in room if not worker.exclusive and worker is not held] or WaitReason.SUSPECT

    def _candidates(self, state: JobState, now: float, behind: int, room: Iterable[Worker]) -> list[Candidate]:
        job, same_size = state.job, self._queue.count_of_size(state.batch_key)
        share = behind / len(self._workers.ready)  # of the jobs behind, for each worker
        return [(worker, worker.reason_not_to_join(job, now, share, same_size)) for worker in room]

    def _worker_in_time(
        self, state: JobState, now: float, behind: int, candidates: Sequence[Candidate]
    ) -> Worker | None:
        """The worker for a job if it should start now and is in time then."""
        choice = self._choose_worker(state, now, behind, candidates) if candidates else None
        return choice if isinstance(choice, Worker) and _in_time(choice, state.job, now) else None

    def _choose_worker(
        self, state: JobState, now: float, behind: int, candidates: Sequence[Candidate]
    ) -> Worker | WaitReason:
        """Choose a worker for a job, or the reason to wait. `behind` jobs wait behind it. The rules, in order:

        1. The job joins no batch that it makes late, and none where waiting for a place gives a smaller sum of
           completion times. But a deadline counts more than the sum: if waiting would make it late everywhere, it may
           join where only the sum is against it and it is in time.
        2. If no worker is left, it waits.
        3. It prefers workers where it is in time; if it is late on all that are left, those where only the sum is
           against it and it is in time.
        4. It takes the worker where the sum grows least. Predictions are off by some percent, so among nearly equal
           workers it takes the one with the fewest images, and of these the one that has not changed for longest.
        5. If it is late there, but in time on a busy worker, it waits for that one.
        6. If the worker is empty, but the job ends sooner on a busy one, even after the jobs behind it, it waits. It
           does so for as long as it would have taken on the empty one: others may take the places on the busy one.

        An example of rule 6: a job takes 2.2 s on an empty worker. A faster one has a place in 0.5 s and takes 1.1 s,
        so the job waits for it. If it still waits 2.2 s after it was submitted, it starts on the empty worker.
        """
        job, self.stops_waiting_at = state.job, None
        effects = [(worker, reason, worker.effect_of_joining(job)) for worker, reason in candidates]
        allowed = [worker for worker, reason, _ in effects if reason is None]
        may_join = bool(allowed) or all(now + effect.end_if_waiting > job.deadline for *_, effect in effects)
        safe = [each for each in effects if may_join and each[1] is not WaitReason.DEADLINE]
        in_time = [worker for worker, _, effect in safe if now + effect.end <= job.deadline]
        allowed = allowed or in_time
        if not allowed:
            return _reason_of_least_loaded(candidates)
        best = _least_increase([worker for worker in allowed if worker in in_time] or in_time or allowed, job)
        return self._reason_to_wait_elsewhere(best, state, now, behind) or best

    def _reason_to_wait_elsewhere(self, best: Worker, state: JobState, now: float, behind: int) -> WaitReason | None:
        """Rules 5 and 6: the reason to wait for a place on a busy worker instead of starting on the best one."""
        job, busy = state.job, [worker for worker in self._busy if worker is not best]
        if not busy or ((in_time := _in_time(best, job, now)) and best.slots):
            return None
        elsewhere = [(worker.end_if_waiting_for(job), worker) for worker in busy]
        if not in_time and any(now + end <= job.deadline for end, _ in elsewhere):
            return WaitReason.IN_TIME_ELSEWHERE
        end = best.effect_of_joining(job).end
        sooner = any(waited + behind / worker.throughput < end for waited, worker in elsewhere)
        if best.slots or not sooner or now >= state.submitted + end:
            return None
        self.stops_waiting_at = state.submitted + end
        return WaitReason.SOONER_ELSEWHERE

    @property
    def _busy(self) -> list[Worker]:
        """The workers that a job can wait for."""
        return [each for each in self._workers.ready if each.slots and each is not self._held_worker]


def _reason_of_least_loaded(candidates: Sequence[Candidate]) -> WaitReason:
    """Why a job does not join the worker with the fewest images; among equal ones, a deadline is told first."""
    refused = [(worker, reason) for worker, reason in candidates if reason is not None]
    return min(refused, key=lambda each: (len(each[0].slots), each[1] is not WaitReason.DEADLINE))[1]


def _least_increase(workers: Sequence[Worker], job: Job) -> Worker:
    """Rule 4: the worker where the sum of completion times grows least, as far as noise lets one tell."""
    if len(workers) == 1:
        return workers[0]
    increases = [worker.effect_of_joining(job).sum_increase for worker in workers]
    least = min(increases)
    nearly_least = least + (TIE_FACTOR - 1) * abs(least)  # a leaving image can make the sum smaller than it was
    equals = [worker for worker, increase in zip(workers, increases, strict=True) if increase <= nearly_least]
    return min(equals, key=lambda worker: (len(worker.slots), worker.last_change))


def _in_time(worker: Worker, job: Job, now: float) -> bool:
    return now + worker.effect_of_joining(job).end <= job.deadline


def _seconds_of_suspect(job: JobState, known: Sequence[Worker]) -> float:
    return min([worker.cost_model.seconds_alone(job.job) for worker in known])


def _seconds_at_best(worker: Worker, job: Job) -> float:
    """Seconds of a job alone on a worker, without its present slowdown."""
    return worker.cost_model.seconds_alone(job) / max(1.0, worker.cost_model.slowdown.factor)


def _seconds_until_ready(worker: Worker, now: float) -> float:
    """Seconds until a worker without a process can take jobs, if loading takes as long as last time."""
    if worker.state is WorkerState.LOADING:
        return max(0.0, worker.times.spawned_at + worker.times.load_seconds - now)
    start = max(0.0, worker.alarm - now) if worker.alarm is not None else 0.0
    return start + worker.times.load_seconds


def retry_after(wait: float, service: float, lag: float, budget: float) -> float:
    """Seconds until a job with `budget` seconds to its deadline would be admitted.

    Now it would wait `wait` seconds and run `service`. A budget below the service time on a busy worker needs an idle
    one, which there is when all present work has ended.
    """
    return max(wait + service - (budget if budget >= service else 0.0) + lag, lag, MIN_RETRY_AFTER)
