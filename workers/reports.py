"""Checks of what workers report.

A worker decodes what strangers send, and may be taken over by it. So the pool checks each report before it uses any
slot, length or number in it.
"""

from typing import assert_never

from scheduler import messages as m
from workers import wire
from workers.engine.contract import MAX_SIZES, EngineStatus
from workers.engine.trials import TRIALS
from workers.slots import SlotLayout

DEVICE_CHARS = 256  # of a device's name, and of its UUID
MAX_STEPS = 1_000_000  # of an image
MAX_SIDE = 4096  # pixels of an image
MAX_WORK = MAX_SIDE**2  # nominal images that are one image
DAY = 86_400.0  # seconds


def summary(status: EngineStatus) -> str:
    """Return how an engine runs, in a few words for the log."""
    graphs = sum(number for _, number in status.graphs)
    fallbacks = sum(number for _, number in status.fallbacks)
    kernels, mib = len(status.attention), status.graph_bytes / 2**20
    return f"{kernels} attention kernels chosen, {graphs} graphs in {mib:.0f} MiB, {fallbacks} fallbacks"


def is_possible(report: wire.Report, layout: SlotLayout) -> bool:  # noqa: C901, PLR0911 - one line for each report
    """Return whether a worker with this memory can have every slot, length and number in a report."""
    slots = range(layout.count)
    match report:
        case m.WorkerReady(_, costs) | m.Measured(_, costs):
            return _is_cost(costs, layout)
        case wire.Device(name, uuid):
            return max(len(name), len(uuid or "")) <= DEVICE_CHARS
        case m.Stepped(_, done, totals):
            steps = ((slot, taken, total) for (slot, taken), total in zip(done, totals, strict=True))
            return len(done) == len(totals) and all(
                slot in slots and 1 <= taken <= total <= MAX_STEPS for slot, taken, total in steps
            )
        case wire.Preview(slot, _, jpeg):
            return slot in slots and len(jpeg) <= wire.MAX_PREVIEW
        case m.Finished(_, slot, _, image):
            return slot in slots and _is_image(image, layout)
        case m.Failed(_, slot, _, reason):
            return slot in slots and len(reason) <= wire.REASON_CHARS
        case m.Released(_, slot):
            return slot in slots
        case wire.StatusChanged(status):
            counts = [status.graph_bytes, *(number for _, number in (*status.graphs, *status.fallbacks))]
            return status == wire.shortened(status) and min(counts) >= 0
        case wire.Trying(names):
            return TRIALS.issuperset(names)
        case wire.Ending(reason):
            return len(reason) <= wire.REASON_CHARS
        case _ as unreachable:
            assert_never(unreachable)


def _is_image(image: m.Image, layout: SlotLayout) -> bool:
    durations = (image.prepare, image.denoise, image.decode, image.encode)
    return (
        1 <= image.length <= layout.output_bytes
        and image.warnings == wire.as_warnings(image.warnings)
        and all(map(_is_duration, durations))
    )


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
