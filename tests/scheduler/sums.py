"""The scheduler's predictions as the tests ask for them: by costs alone."""

from collections import Counter
from collections.abc import Sequence

from scheduler.costs import BatchImage, CostModel, JoinEffect, by_steps_left, completion_times, effect_of_joining
from scheduler.messages import BatchKey, Costs, Job, WaitReason

NEVER = float("inf")


def running(left: int, deadline: float = NEVER, work: float = 1.0) -> BatchImage:
    return BatchImage(BatchKey(work), left, deadline)


def seconds_alone(costs: Costs, work: float = 1.0, relative_steps: float = 1.0) -> float:
    return CostModel(costs).seconds_alone(Job(1, NEVER, work, relative_steps=relative_steps))


def steps_of(costs: Costs, relative_steps: float) -> int:
    return CostModel(costs).step_count(relative_steps)


def step_seconds(costs: Costs, works: Sequence[float]) -> float:
    """One step of images of these sizes."""
    return CostModel(costs).step_seconds(Counter([BatchKey(work) for work in works]))


def ends(costs: Costs, batch: Sequence[BatchImage]) -> tuple[list[float], float]:
    return completion_times(CostModel(costs), batch)


def if_joined(costs: Costs, batch: Sequence[BatchImage], work: float = 1.0, steps: int | None = None) -> JoinEffect:
    model, batch = CostModel(costs), sorted(batch, key=by_steps_left)
    ends_without, _ = completion_times(model, batch)
    return effect_of_joining(model, batch, ends_without, BatchKey(work), costs.steps if steps is None else steps)


def reason_not_to_join(costs: Costs, batch: Sequence[BatchImage], now: float, behind: float = 0.0) -> WaitReason | None:
    effect = if_joined(costs, batch)
    if effect.makes_late(now):
        return WaitReason.DEADLINE
    return WaitReason.BATCH_SLOWER if effect.should_wait(behind) else None
