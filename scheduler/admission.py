"""Whether a job can be taken: what cannot be done in time is refused at once, with the time after which it could be."""

from scheduler import policy
from scheduler.fleet import Fleet
from scheduler.jobs import Jobs
from scheduler.messages import Expired, Job, Rejected
from scheduler.policy import Limits, Wait


def verdict(now: float, job: Job, jobs: Jobs, fleet: Fleet, limits: Limits) -> Expired | Rejected | None:
    """Why a job is not taken; None if it is."""
    if job.deadline <= now:
        return Expired()
    return _no_room(now, jobs, fleet) if jobs.waiting >= limits.max_queue else _too_late(now, job, jobs, fleet)


def _too_late(now: float, job: Job, jobs: Jobs, fleet: Fleet) -> Rejected | None:
    """The refusal of a job that would miss its deadline, by all that is known; None if it would not."""
    strength = fleet.strength
    if not strength.workers:
        return None  # nobody knows: it waits within its deadline
    wait = (jobs.waiting_work + fleet.backlog) / strength.throughput * fleet.drag
    service, budget = strength.service * job.work * fleet.drag, job.deadline - now
    if jobs.waiting:
        wait *= policy.MARGIN
    seconds = None if jobs.waiting else _seconds_if_started(now, job, fleet)
    if (wait + service if seconds is None else seconds) <= budget:
        return None
    return Rejected(policy.retry_after(wait, service, strength.grain * jobs.largest_work, budget))


def _seconds_if_started(now: float, job: Job, fleet: Fleet) -> float | None:
    """When a job is done that starts at once; None if it has to wait."""
    choice = fleet.choose(job.work, now, behind=0)
    return None if isinstance(choice, Wait) else fleet.seconds_if_joined(choice, job.work)


def _no_room(now: float, jobs: Jobs, fleet: Fleet) -> Rejected:
    """The refusal of a job that finds the queue full.

    There is room when the first picture leaves the batch that the oldest one runs in, as a rule; and when the first
    deadline passes, which is all that can be said while nothing runs.
    """
    deadline, oldest = jobs.deadlines.least, jobs.oldest
    assert deadline is not None
    seconds = deadline - now
    if oldest is not None and oldest.tenant is not None:
        seconds = min(seconds, fleet.seconds_to_place(oldest.tenant.worker))
    return Rejected(max(seconds, policy.SOONEST_RETRY))
