"""Reports of workers: whether they can be believed, and what they mean to the scheduler.

A worker decodes what strangers send. So the pool checks each report before it uses any slot, length or number in it.
"""

from dataclasses import dataclass
from typing import TypeAlias, assert_never

from scheduler import messages as m
from workers import wire
from workers.engine.contract import MAX_SIZES, Condition
from workers.engine.trials import TRIALS
from workers.slots import SlotLayout

DEVICE_CHARS = 256  # of a device's name, and of its UUID
MAX_STEPS = 1_000_000  # of an image
MAX_SIDE = 4096  # pixels of an image
MAX_WORK = MAX_SIDE**2  # nominal images that are one image
DAY = 86_400.0  # seconds

ReportEvent: TypeAlias = m.WorkerReady | m.Measured | m.Stepped | m.Finished | m.Failed | m.Released


@dataclass(frozen=True, slots=True)
class Device:
    """What a worker said of its device when it became ready; `uuid` is NVML's, None on a CPU."""

    name: str
    uuid: str | None


def event_of(worker: m.WorkerId, report: wire.Report) -> ReportEvent | None:
    """What the scheduler is to be told; None where it is not concerned."""
    match report:
        case wire.Ready(costs):
            return m.WorkerReady(worker, costs)
        case wire.Measured(costs):
            return m.Measured(worker, costs)
        case wire.Stepped(done):
            return m.Stepped(worker, tuple((slot, taken) for slot, taken, _ in done))
        case wire.Finished(slot, generation, length, prepare, denoise, decode, encode, warnings):
            return m.Finished(worker, slot, generation, m.Image(length, prepare, denoise, decode, encode, warnings))
        case wire.Failed(slot, generation, reason, blame):
            return m.Failed(worker, slot, generation, reason, blame)
        case wire.Released(slot, generation):
            return m.Released(worker, slot, generation)
        case wire.Preview() | wire.Changed() | wire.Trying() | wire.Ending():
            return None
        case _ as unreachable:
            assert_never(unreachable)


def summary(condition: Condition) -> str:
    """How an engine runs, in a few words for the log."""
    graphs = sum(number for _, number in condition.graphs)
    fallbacks = sum(number for _, number in condition.fallbacks)
    kernels, mib = len(condition.attention), condition.graph_bytes / 2**20
    return f"{kernels} attention kernels chosen, {graphs} graphs in {mib:.0f} MiB, {fallbacks} fallbacks"


def is_possible(report: wire.Report, layout: SlotLayout) -> bool:  # noqa: C901, PLR0911 - one line for each report
    """Whether every slot, length and number in a report is one that a worker with this memory can have."""
    slots = range(layout.count)
    match report:
        case wire.Ready(costs, device, uuid):
            return _is_cost(costs, layout) and max(len(device), len(uuid or "")) <= DEVICE_CHARS
        case wire.Measured(costs):
            return _is_cost(costs, layout)
        case wire.Stepped(done):
            return all(slot in slots and 1 <= taken <= total <= MAX_STEPS for slot, taken, total in done)
        case wire.Preview(slot, _, jpeg):
            return slot in slots and len(jpeg) <= wire.MAX_PREVIEW
        case wire.Finished(slot, _, length, prepare, denoise, decode, encode, warnings):
            possible = slot in slots and 1 <= length <= layout.output_bytes and warnings == wire.as_warnings(warnings)
            return possible and all(map(_is_duration, (prepare, denoise, decode, encode)))
        case wire.Failed(slot, _, reason):
            return slot in slots and len(reason) <= wire.REASON_CHARS
        case wire.Released(slot):
            return slot in slots
        case wire.Changed(condition):
            counts = [condition.graph_bytes, *(number for _, number in (*condition.graphs, *condition.fallbacks))]
            return condition == wire.shortened(condition) and min(counts) >= 0
        case wire.Trying(names):
            return TRIALS.issuperset(names)
        case wire.Ending(reason):
            return len(reason) <= wire.REASON_CHARS
        case _ as unreachable:
            assert_never(unreachable)


def _is_cost(costs: m.Costs, layout: SlotLayout) -> bool:
    images = len(costs.step_seconds)
    measured = [*costs.step_seconds, costs.fixed_seconds, *(each for _, steps in costs.sizes for each in steps)]
    return (
        1 <= costs.steps <= MAX_STEPS
        and 1 <= images <= layout.count
        and all(map(_is_duration, measured))
        and 0 <= costs.decode_seconds <= costs.fixed_seconds
        and len(costs.sizes) <= MAX_SIZES
        and all(_is_size(key) and len(steps) == images for key, steps in costs.sizes)
    )


def _is_size(key: m.BatchKey) -> bool:
    return 0 < key.work <= MAX_WORK and all(1 <= side <= MAX_SIDE for side in key.size)


def _is_duration(seconds: float) -> bool:
    return 0 <= seconds <= DAY  # false for NaN
