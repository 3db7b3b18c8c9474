"""Whether a job can be taken: what cannot be done in time is refused at once, with the time after which it could be.

Nor can a client fill the queue. Of what is free there when its job comes, in places and in time, it may have a share.
So the more clients wait, the less each of them may have, and there is always something left for one more (dynamic
thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6, 1998).
"""

from dataclasses import dataclass
from math import ceil, inf

from scheduler import policy
from scheduler.fleet import Fleet
from scheduler.jobs import Jobs
from scheduler.messages import Expired, Job, Overdrawn, Rejected
from scheduler.policy import Limits, Wait
from scheduler.records import Ticket


@dataclass(frozen=True, slots=True)
class Taken:
    """The job is taken: it is in time even if `leeway` of work (in nominal pictures) that comes later goes before it.

    `ahead`: it is, if it starts before all jobs that were not promised that.
    """

    leeway: float
    ahead: bool = False


def verdict(
    now: float, ticket: Ticket, jobs: Jobs, fleet: Fleet, limits: Limits
) -> Taken | Expired | Rejected | Overdrawn:
    """Whether a job is taken, else why not."""
    job = ticket.job
    if job.deadline <= now:
        return Expired()
    if (missing := _places_missing(job, jobs, limits)) > 0:
        return Overdrawn(_seconds_to_places(now, missing, jobs, fleet))
    if jobs.waiting >= limits.max_queue:
        return Rejected(_seconds_to_places(now, 1, jobs, fleet))
    return _in_time(now, ticket, jobs, fleet, limits.client_share) if fleet.strength.workers else Taken(inf)


def _places_missing(job: Job, jobs: Jobs, limits: Limits) -> int:
    """How many places must become free until this client may have one more. The first is never denied to it."""
    held, free, share = jobs.lines.of(job.client).length, limits.max_queue - jobs.waiting, limits.client_share
    # Jobs that lost their worker come back to a full queue: what is free may be below zero.
    return ceil((held + 1) * (1 - share) / share - free) if held and share < 1 else 0


def _seconds_to_places(now: float, places: int, jobs: Jobs, fleet: Fleet) -> float:
    """When so many places in the queue are free.

    The first is when the first picture leaves the batch that the oldest one runs in, as a rule; and when the first
    deadline passes, which is all that can be said while nothing runs. Others follow at the fleet's pace.
    """
    deadline, worker = jobs.deadlines.least, jobs.oldest_worker
    assert deadline is not None
    seconds = deadline - now
    if worker is not None:
        more = (places - 1) * jobs.largest_load / fleet.strength.throughput
        seconds = min(seconds, fleet.seconds_to_place(worker) + more)
    return max(seconds, policy.SOONEST_RETRY)


def _in_time(now: float, ticket: Ticket, jobs: Jobs, fleet: Fleet, share: float) -> Taken | Rejected | Overdrawn:
    """Whether a job is done before its deadline, by all that is known, and within its client's share of that time."""
    job, strength, budget = ticket.job, fleet.strength, ticket.job.deadline - now
    rate, service = _rate(jobs, fleet), strength.service * ticket.load
    wait = (jobs.waiting_work + fleet.backlog) / rate
    grain = strength.grain * jobs.largest_work
    seconds = None if jobs.waiting else _seconds_if_started(now, job, fleet)
    spare = budget - (wait + service if seconds is None else seconds)
    if spare < 0:
        ahead = _ahead(ticket, budget - service, jobs, fleet)
        return ahead or Rejected(policy.retry_after(wait, service, grain, budget))
    claim = jobs.lines.of(job.client).work / rate * (1 - share) / share
    if claim > spare:
        return Overdrawn(max(claim - spare + grain, policy.SOONEST_RETRY))
    return Taken(spare * rate)


def _rate(jobs: Jobs, fleet: Fleet) -> float:
    """Nominal pictures a second, as they are at present, and with a margin where there is a queue."""
    return fleet.strength.throughput / (policy.MARGIN if jobs.waiting else 1)


def _ahead(ticket: Ticket, budget: float, jobs: Jobs, fleet: Fleet) -> Taken | None:
    """Take the only job that waits of a client before those of others, if all of them are still in time then."""
    before = jobs.waiting_work - jobs.lines.behind_work + fleet.backlog
    leeway = budget * _rate(jobs, fleet) - before
    line = jobs.lines.of(ticket.job.client)
    if leeway < 0 or line.length or not jobs.waiting or not jobs.lines.can_bear(ticket.load):
        return None
    return Taken(leeway, ahead=True)


def _seconds_if_started(now: float, job: Job, fleet: Fleet) -> float | None:
    """When a job is done that starts at once; None if it has to wait."""
    choice = fleet.choose(job, now, behind=0)
    return None if isinstance(choice, Wait) else fleet.seconds_if_joined(choice, job)
