"""The socket between the pool and a worker: small msgpack messages over a SEQPACKET pair. Images never cross it.

A worker reports events as the scheduler takes them (`scheduler.messages`). Here is what only pool and worker need to
know. A message names a slot by its number and its generation (see `scheduler.messages.Start`); a message of an old
generation is dropped.

Example: the pool writes a task into slot 2 and sends `Run(slot=2, generation=7, image_bytes=77_000, params_bytes=90)`.
The worker answers with `Stepped` after each step and with `Finished(slot=2, generation=7, ...)` at the end. If the pool
has cancelled generation 7 meanwhile and started generation 8 in that slot, it ignores late reports of generation 7.

A worker decodes images of strangers, and a hostile one may take it over. So the pool checks each report
(`is_possible`) before it uses any slot, length or number in it.
"""

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias, assert_never

import msgspec

from scheduler import messages as m
from workers.engine.config import MAX_THRESHOLD
from workers.engine.contract import MAX_SIZES, EngineOptions, EngineStatus, Task
from workers.engine.trials import TRIALS
from workers.logs import counted
from workers.shared_memory import SlotLayout

MAX_MESSAGE = 65_536  # bytes; the longest messages are `ExitReason`, `Finished`, `StatusChanged` and `Preview`
MAX_PREVIEW = 16_384  # bytes of a preview's file: a thumbnail of nothing but noise has 14,433
PARAMS_BYTES = 1024  # of a `TaskParams` in msgpack, but for its texts, at most
REASON_CHARS = 2_000
MAX_WARNINGS, WARNING_CHARS = 4, 1_000  # of a `Finished`
NAMED_SHAPES, NAMED_COUNTS = 256, 64  # in a `StatusChanged`, of each kind
NAME_CHARS = 80
DEVICE_CHARS = 256  # of a device's name, and of its UUID
MAX_STEPS = 1_000_000  # of an image
MAX_SIDE = 4096  # pixels of an image
MAX_WORK = MAX_SIDE**2  # nominal images that are one image
DAY = 86_400.0  # seconds


class Run(m.Message, frozen=True):
    """Make an image: its input slot holds `image_bytes` of file, then `params_bytes` of a `TaskParams`."""

    slot: int
    generation: int
    image_bytes: int
    params_bytes: int


class Stop(m.Message, frozen=True):
    """Exit, whatever is unfinished."""


Order: TypeAlias = Run | m.Cancel | Stop


class Device(m.Message, frozen=True):
    """The device of a worker, sent before it is ready. `name` is for people, `uuid` is NVML's (None on a CPU)."""

    name: str
    uuid: str | None


class Preview(m.Message, frozen=True):
    """A preview of an unfinished image: a small JPEG."""

    slot: int
    generation: int
    jpeg: bytes


class StatusChanged(m.Message, frozen=True):
    """How the engine runs from now on, `shortened`."""

    status: EngineStatus


class Trying(m.Message, frozen=True):
    """The trials (`engine.trials`) that the worker makes from now on, and that may end its process."""

    names: tuple[str, ...]


class ExitReason(m.Message, frozen=True):
    """Why the worker is about to exit. `hopeless`: a new process would fail the same way."""

    reason: str
    hopeless: bool = False


ReportEvent: TypeAlias = (
    m.WorkerReady | m.Measured | m.Stepped | m.Finished | m.Failed | m.Released
)  # passed to the scheduler as they are
Report: TypeAlias = ReportEvent | Device | Preview | StatusChanged | Trying | ExitReason

_encoder = msgspec.msgpack.Encoder()
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


class TaskParams(m.Message, frozen=True):
    """A task without its image. It lies in shared memory as well, as prompts may be long."""

    text: str
    seed: int
    options: EngineOptions


_params: msgspec.msgpack.Decoder[TaskParams] = msgspec.msgpack.Decoder(TaskParams)


def pack(task: Task) -> bytes:
    """Encode a task without its image, as it lies behind the image in an input slot."""
    return _encoder.encode(TaskParams(task.text, task.seed, task.options))


def unpack(image: bytes, params: bytes | memoryview) -> Task:
    """Return the task that was packed."""
    found = _params.decode(params)
    return Task(image, found.text, found.seed, found.options)


def as_reason(text: str) -> str:
    """Cut and encode text for the reason of a report. An error may quote what UTF-8 cannot encode, as a file's name."""
    return text[:REASON_CHARS].encode(errors="replace").decode()


def as_warnings(warnings: Sequence[str]) -> tuple[str, ...]:
    """Cut and encode warnings for a report."""
    return tuple(text[:WARNING_CHARS].encode(errors="replace").decode() for text in warnings[:MAX_WARNINGS])


def shortened(status: EngineStatus) -> EngineStatus:
    """Make a status fit into a message: keep its newest entries, with their names in ASCII and cut.

    Entries whose names are then the same become one.
    """
    return EngineStatus(
        attention=tuple({_name(shape): _name(kernel) for shape, kernel in status.attention[-NAMED_SHAPES:]}.items()),
        graphs=_counts(status.graphs),
        graph_bytes=status.graph_bytes,
        fallbacks=_counts(status.fallbacks),
    )


def _counts(counts: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    total: Counter[str] = Counter()
    for name, number in counts:
        total[_name(name)] += number
    return tuple(total.items())[-NAMED_COUNTS:]


def _name(name: str) -> str:
    return name[:NAME_CHARS].encode("ascii", "replace").decode("ascii")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the pool's end (non-blocking) and the worker's end (blocking) of a new socket pair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def send(end: socket.socket, message: Order | Report) -> None:
    """Send one message whole.

    Raises OSError when the other end is gone, BlockingIOError when it does not read and this end must not wait.
    """
    end.send(_encoder.encode(message), socket.MSG_NOSIGNAL)


def receive_order(end: socket.socket) -> Order | None:
    """Return the next order, or None at end of file."""
    data = end.recv(MAX_MESSAGE)
    return _orders.decode(data) if data else None


def receive_report(end: socket.socket) -> Report | None:
    """Return the next report, or None at end of file. Check it by `is_possible` before using it.

    Raises OSError (BlockingIOError when there is none now), and ValueError for what is no report.
    """
    data = end.recv(MAX_MESSAGE)
    try:
        return _reports.decode(data) if data else None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


# --------------------------------------------------------------------------------------------------------------- checks


def summary(status: EngineStatus) -> str:
    """Return how an engine runs, in a few words for the log: `4 steps compiled, 1 VAE compiled, no fallback`."""
    graphs = [
        f"{number} {kind if kind.endswith('compiled') else f'graphs ({kind})'}"
        for kind, number in status.graphs
        if number
    ]
    fallbacks = sum(number for _, number in status.fallbacks)
    return ", ".join([*graphs, counted(fallbacks, "fallback") if fallbacks else "no fallback"])


def is_possible(report: Report, layout: SlotLayout) -> bool:  # noqa: C901, PLR0911 - one line for each report
    """Return whether a worker with this memory can have every slot, length and number in a report."""
    slots = range(layout.count)
    match report:
        case m.WorkerReady(_, costs) | m.Measured(_, costs):
            return _is_cost(costs, layout)
        case Device(name, uuid):
            return max(len(name), len(uuid or "")) <= DEVICE_CHARS
        case m.Stepped(_, done, totals):
            steps = ((slot, taken, total) for (slot, taken), total in zip(done, totals, strict=True))
            return len(done) == len(totals) and all(
                slot in slots and 1 <= taken <= total <= MAX_STEPS for slot, taken, total in steps
            )
        case Preview(slot, _, jpeg):
            return slot in slots and len(jpeg) <= MAX_PREVIEW
        case m.Finished(_, slot, _, image):
            return slot in slots and _is_image(image, layout)
        case m.Failed(_, slot, _, reason):
            return slot in slots and len(reason) <= REASON_CHARS
        case m.Released(_, slot):
            return slot in slots
        case StatusChanged(status):
            counts = [status.graph_bytes, *(number for _, number in (*status.graphs, *status.fallbacks))]
            return status == shortened(status) and min(counts) >= 0
        case Trying(names):
            return TRIALS.issuperset(names)
        case ExitReason(reason):
            return len(reason) <= REASON_CHARS
        case _ as unreachable:
            assert_never(unreachable)


def _is_image(image: m.Image, layout: SlotLayout) -> bool:
    durations = (image.prepare, image.denoise, image.decode, image.encode)
    return (
        1 <= image.byte_count <= layout.output_bytes
        and image.warnings == as_warnings(image.warnings)
        and (image.thresholds is None or 1 <= image.thresholds[0] <= image.thresholds[1] <= MAX_THRESHOLD)
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
