"""The process that finds the edges of pictures for whoever wants to see them before anything is made of them.

It is apart from the front end because a hostile picture may end whatever decodes it, fill its memory or keep it busy,
and apart from the workers because those have a device to keep busy.
"""

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import msgspec

from workers.engine.config import Canny
from workers.engine.contract import BadPictureError
from workers.logs import LogFormat, configure
from workers.process import die_with_parent
from workers.slots import SlotMemory
from workers.wire import MAX_MESSAGE, REASON_CHARS

log = logging.getLogger("contour.edges")

SLOT = 0  # the only one: one picture at a time
FIRST_TO_GO = "1000"  # what the kernel adds to a process's badness when it looks for one to end for want of memory


@dataclass(frozen=True, slots=True)
class Setup:
    """All that the process is started with."""

    log_level: str = "info"
    log_format: LogFormat = "human"
    parent: int = field(default_factory=os.getpid)


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; they cross a SEQPACKET socket as those of `workers.wire`, and pictures do not."""


class Find(_Message, frozen=True):
    """Find the edges of the picture file of `length` bytes in the input slot, at a size in pixels."""

    length: int
    width: int
    height: int
    canny: Canny


class Ready(_Message, frozen=True):
    """All is imported."""


class Found(_Message, frozen=True):
    """The output slot holds a PNG of `length` bytes."""

    length: int


class Unreadable(_Message, frozen=True):
    """It is no picture; the reason is for the client."""

    reason: str


class Failed(_Message, frozen=True):
    """The process could not do it, and is ready for the next one."""

    reason: str


Report: TypeAlias = Ready | Found | Unreadable | Failed

_encoder = msgspec.msgpack.Encoder()
_orders = msgspec.msgpack.Decoder(Find)
_reports: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def send(end: socket.socket, message: Find | Report) -> None:
    """Send one message whole. Raises OSError when the other end is gone, or does not read."""
    end.send(_encoder.encode(message), socket.MSG_NOSIGNAL)


def receive(end: socket.socket) -> Report | None:
    """The next report, None at end of file.

    Raises BlockingIOError when there is none now, ConnectionError, and msgspec.DecodeError.
    """
    data = end.recv(MAX_MESSAGE)
    return _reports.decode(data) if data else None


# ----------------------------------------------------------------------------------------------------- in the process


def main(setup: Setup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of the process: find edges until nobody is at the other end of the socket."""
    die_with_parent(setup.parent)
    configure(setup.log_level, setup.log_format)
    _offer_memory()
    _import()
    send(channel, Ready())
    while data := channel.recv(MAX_MESSAGE):
        send(channel, _answer(_orders.decode(data), memory))


def _offer_memory() -> None:
    """Should the machine run out of memory, this process is the one to lose: it has nothing that matters."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


def _import() -> None:
    """What reads pixels: only here, as the front end imports this module too."""
    import cv2

    import workers.engine.codec  # noqa: F401

    cv2.setNumThreads(1)  # it would take all cores, which others have work for


def _answer(order: Find, memory: SlotMemory) -> Report:
    picture = memory.input(SLOT)[: order.length]
    try:
        data = _edges(bytes(picture), order)
        memory.output(SLOT)[: len(data)] = data
    except BadPictureError as error:
        return Unreadable(str(error)[:REASON_CHARS])
    except Exception as error:
        log.exception("no edges were found")
        return Failed(f"{type(error).__name__}: {error}"[:REASON_CHARS])
    return Found(len(data))


def _edges(picture: bytes, order: Find) -> bytes:
    """A PNG of what the engine would see of a picture."""
    from workers.engine import codec

    pixels = codec.resize(codec.decode(picture), order.width, order.height)
    return codec.encode_grey(codec.edges(pixels, order.canny))
