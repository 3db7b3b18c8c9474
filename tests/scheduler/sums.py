"""The scheduler's predictions as the tests ask for them: by costs alone."""

from collections import Counter
from collections.abc import Sequence

from scheduler.costs import BatchImage, Joining, StepPrices, Wait, completion_times, joining, steps_left
from scheduler.messages import BatchKey, Costs, Job

NEVER = float("inf")


def running(left: int, deadline: float = NEVER, work: float = 1.0) -> BatchImage:
    return BatchImage(BatchKey(work), left, deadline)


def seconds_alone(costs: Costs, work: float = 1.0, length: float = 1.0) -> float:
    return StepPrices(costs).alone(Job(1, NEVER, work, length=length))


def steps_of(costs: Costs, length: float) -> int:
    return StepPrices(costs).steps(length)


def step_seconds(costs: Costs, works: Sequence[float]) -> float:
    """One step of images of these sizes."""
    return StepPrices(costs).step(Counter([BatchKey(work) for work in works]))


def ends(costs: Costs, batch: Sequence[BatchImage]) -> tuple[list[float], float]:
    return completion_times(StepPrices(costs), batch)


def if_joined(costs: Costs, batch: Sequence[BatchImage], work: float = 1.0, steps: int | None = None) -> Joining:
    prices, batch = StepPrices(costs), sorted(batch, key=steps_left)
    apart, _ = completion_times(prices, batch)
    return joining(prices, batch, apart, BatchKey(work), costs.steps if steps is None else steps)


def reason_not_to_join(costs: Costs, batch: Sequence[BatchImage], now: float, behind: float = 0.0) -> Wait | None:
    joining = if_joined(costs, batch)
    if joining.makes_late(now):
        return Wait.DEADLINE
    return Wait.SLOWER if joining.is_slower(behind) else None
