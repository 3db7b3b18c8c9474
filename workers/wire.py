"""What pool and worker say to each other: small msgpack messages on a SEQPACKET socket pair. Pictures never cross it.

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

MAX_MESSAGE = 65_536  # bytes; the longest real messages: `Ending`, `Finished`, `Changed` and `Preview`, each bounded
MAX_PREVIEW = 16_384  # bytes of a preview's file: a thumbnail of nothing but noise has 14,433
WISH_BYTES = 1024  # of a `Wish` in msgpack, but for its texts, at most
REASON_CHARS = 2_000
MAX_WARNINGS, WARNING_CHARS = 4, 1_000  # of a `Finished`
NAMED_SHAPES, NAMED_COUNTS = 256, 64  # in a `Changed`, of each kind
NAME_CHARS = 80


class Run(Message, frozen=True):
    """Make a picture: its input slot holds `picture_bytes` of file, then `wish_bytes` of a `Wish`."""

    slot: int
    generation: int
    picture_bytes: int
    wish_bytes: int


class Stop(Message, frozen=True):
    """End, leaving whatever is unfinished."""


Order: TypeAlias = Run | Cancel | Stop


class Device(Message, frozen=True):
    """What a worker runs on, told before it is ready. `name` is for people, `uuid` is NVML's (None on a CPU)."""

    name: str
    uuid: str | None


class Preview(Message, frozen=True):
    """What a picture looks like so far: a small JPEG."""

    slot: int
    generation: int
    jpeg: bytes


class Changed(Message, frozen=True):
    """How the engine runs from now on, `shortened`."""

    condition: EngineStatus


class Trying(Message, frozen=True):
    """What is being tried from now on that may end this process (`engine.trials`)."""

    names: tuple[str, ...]


class Ending(Message, frozen=True):
    """Last words: why the worker is about to exit. `hopeless`: the next process would end alike."""

    reason: str
    hopeless: bool = False


ReportEvent: TypeAlias = WorkerReady | Measured | Stepped | Finished | Failed | Released  # told the scheduler as it is
Report: TypeAlias = ReportEvent | Device | Preview | Changed | Trying | Ending

_encoder = msgspec.msgpack.Encoder()
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


class Wish(Message, frozen=True):
    """A task but for its picture. It lies in shared memory as well, as prompts may be long."""

    text: str
    seed: int
    options: Options


_wishes: msgspec.msgpack.Decoder[Wish] = msgspec.msgpack.Decoder(Wish)


def pack(task: Task) -> bytes:
    """All of a task but its picture, as it lies behind that in an input slot."""
    return _encoder.encode(Wish(task.text, task.seed, task.options))


def unpack(picture: bytes, wish: bytes | memoryview) -> Task:
    """The task that was packed."""
    wanted = _wishes.decode(wish)
    return Task(picture, wanted.text, wanted.seed, wanted.options)


def as_reason(text: str) -> str:
    """Text that fits into the reason of a report. An error may quote what cannot be encoded, such as a file's name."""
    return text[:REASON_CHARS].encode(errors="replace").decode()


def as_warnings(warnings: Sequence[str]) -> tuple[str, ...]:
    """Warnings that fit into a report."""
    return tuple(text[:WARNING_CHARS].encode(errors="replace").decode() for text in warnings[:MAX_WARNINGS])


def shortened(condition: EngineStatus) -> EngineStatus:
    """A condition that fits into a message: the newest of its entries, with their names in ASCII and cut.

    Names that are then the same are one entry.
    """
    return EngineStatus(
        attention=tuple({_name(shape): _name(kernel) for shape, kernel in condition.attention[-NAMED_SHAPES:]}.items()),
        graphs=_counts(condition.graphs),
        graph_bytes=condition.graph_bytes,
        fallbacks=_counts(condition.fallbacks),
    )


def _counts(counts: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    total: Counter[str] = Counter()
    for name, number in counts:
        total[_name(name)] += number
    return tuple(total.items())[-NAMED_COUNTS:]


def _name(name: str) -> str:
    return name[:NAME_CHARS].encode("ascii", "replace").decode("ascii")


def channel() -> tuple[socket.socket, socket.socket]:
    """The pool's end (non-blocking) and the worker's end (blocking) of a new socket pair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def send(end: socket.socket, message: Order | Report) -> None:
    """Send one message whole.

    Raises OSError when the other end is gone, BlockingIOError when it does not read and this end must not wait.
    """
    end.send(_encoder.encode(message), socket.MSG_NOSIGNAL)


def receive_order(end: socket.socket) -> Order | None:
    """The next order, None at end of file."""
    data = end.recv(MAX_MESSAGE)
    return _orders.decode(data) if data else None


def receive_report(end: socket.socket) -> Report | None:
    """The next report, None at end of file. It says what a worker says: see `workers.reports.is_possible`.

    Raises OSError (BlockingIOError when there is none now), and ValueError for what is no report.
    """
    data = end.recv(MAX_MESSAGE)
    try:
        return _reports.decode(data) if data else None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
