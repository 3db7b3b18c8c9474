"""The socket between pool and worker: small msgpack messages over a SEQPACKET pair. Images never cross it.

A worker reports events as the scheduler takes them (`scheduler.messages`). Here is what only pool and worker need to
know. A message names a slot by its number and its generation (see `scheduler.messages.Start`): whoever gets one about
an old generation drops it.
"""

import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from scheduler.messages import (
    Cancel,
    Failed,
    Finished,
    Measured,
    Message,
    Released,
    Stepped,
    WorkerReady,
)
from workers.engine.contract import EngineStatus, Options, Task

MAX_MESSAGE = 65_536  # bytes; the longest real messages: `Ending`, `Finished`, `StatusChanged`, `Preview`; all bounded
MAX_PREVIEW = 16_384  # bytes of a preview's file: a thumbnail of nothing but noise has 14,433
PARAMS_BYTES = 1024  # of a `TaskParams` in msgpack, but for its texts, at most
REASON_CHARS = 2_000
MAX_WARNINGS, WARNING_CHARS = 4, 1_000  # of a `Finished`
NAMED_SHAPES, NAMED_COUNTS = 256, 64  # in a `StatusChanged`, of each kind
NAME_CHARS = 80


class Run(Message, frozen=True):
    """Make an image: its input slot holds `image_bytes` of file, then `params_bytes` of a `TaskParams`."""

    slot: int
    generation: int
    image_bytes: int
    params_bytes: int


class Stop(Message, frozen=True):
    """Exit, whatever is unfinished."""


Order: TypeAlias = Run | Cancel | Stop


class Device(Message, frozen=True):
    """What a worker runs on, told before it is ready. `name` is for people, `uuid` is NVML's (None on a CPU)."""

    name: str
    uuid: str | None


class Preview(Message, frozen=True):
    """What an image looks like so far: a small JPEG."""

    slot: int
    generation: int
    jpeg: bytes


class StatusChanged(Message, frozen=True):
    """How the engine runs from now on, `shortened`."""

    status: EngineStatus


class Trying(Message, frozen=True):
    """What the worker tries from now on that may end its process (`engine.trials`)."""

    names: tuple[str, ...]


class Ending(Message, frozen=True):
    """Last words: why the worker is about to exit. `hopeless`: the next process would end alike."""

    reason: str
    hopeless: bool = False


ReportEvent: TypeAlias = WorkerReady | Measured | Stepped | Finished | Failed | Released  # told the scheduler as it is
Report: TypeAlias = ReportEvent | Device | Preview | StatusChanged | Trying | Ending

_encoder = msgspec.msgpack.Encoder()
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


class TaskParams(Message, frozen=True):
    """A task without its image. It lies in shared memory as well, as prompts may be long."""

    text: str
    seed: int
    options: Options


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


def channel() -> tuple[socket.socket, socket.socket]:
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
    """Return the next report, or None at end of file. Check it by `workers.reports.is_possible` before using it.

    Raises OSError (BlockingIOError when there is none now), and ValueError for what is no report.
    """
    data = end.recv(MAX_MESSAGE)
    try:
        return _reports.decode(data) if data else None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
