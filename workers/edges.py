"""The process that decodes images for the front end: it finds their edges, and looks whether a mask is blank.

It is apart from the front end because a hostile picture may end whatever decodes it, fill its memory or keep it busy,
and apart from the workers because those have a device to keep busy. Once it has imported all that it needs, it can do
nothing but compute and answer: see `workers.confinement`.
"""

import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from workers.confinement import confine, drop_privileges
from workers.engine.budget import DecodeBudget
from workers.engine.config import Canny
from workers.engine.contract import BadPictureError
from workers.logs import LogFormat, configure, escaped
from workers.process import die_with_parent, set_process_name
from workers.slots import SlotMemory
from workers.wire import MAX_MESSAGE, REASON_CHARS

log = logging.getLogger("contour.edges")

SLOT = 0  # the only one: one picture at a time
COPIES = 4  # of an image file, while it is decoded
SPARE_BYTES = 64 * 2**20  # for all that is not an image
FIRST_TO_GO = "1000"  # what the kernel adds to a process's badness when it looks for one to end for want of memory


# What is wanted of an image: its edges by Canny, its grey values as they are, or the least and the greatest of its
# values, or of its alpha.
Work: TypeAlias = Canny | Literal["grey", "range", "alpha"]


@dataclass(frozen=True, slots=True)
class Setup:
    """All that the process is started with. `decoding_bytes`: the memory that an image may take to be decoded."""

    log_level: str = "info"
    log_format: LogFormat = "human"
    decoding_bytes: int = 2**30
    parent: int = field(default_factory=os.getpid)


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; they cross a SEQPACKET socket as those of `workers.wire`, and pictures do not."""


class Find(_Message, frozen=True):
    """Decode the image file of `length` bytes in the input slot, at a size in pixels, and do some work on it."""

    length: int
    width: int
    height: int
    work: Work


class Ready(_Message, frozen=True):
    """All is imported."""


class Found(_Message, frozen=True):
    """The output slot holds the result, of `length` bytes: a PNG; or two bytes, a range of values."""

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
    prepare(setup, memory)
    budget = DecodeBudget(setup.decoding_bytes)
    send(channel, Ready())
    while data := channel.recv(MAX_MESSAGE):
        send(channel, _answer(_orders.decode(data), memory, budget))


def prepare(setup: Setup, memory: SlotMemory) -> None:
    """Import what finds edges, and give up the rest."""
    die_with_parent(setup.parent)
    set_process_name("contour edges")
    configure(setup.log_level, setup.log_format)
    drop_privileges()
    _offer_memory()
    _import()
    confine(setup.decoding_bytes + COPIES * memory.layout.input_bytes + SPARE_BYTES)


def _offer_memory() -> None:
    """Should the machine run out of memory, this process is the one to lose: it has nothing that matters."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_GO)


def _import() -> None:
    """Import what reads pixels: only here, as the front end imports this module too. No file can be opened later."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's; nothing here uses it, and its threads are memory
    import cv2
    import PIL.TiffImagePlugin  # noqa: F401 - Pillow imports it when it meets the first image with EXIF

    import workers.engine.codec  # noqa: F401

    cv2.setNumThreads(1)  # it would take all cores, which others have work for
    time.localtime()  # reads the time zone, for the log
    escaped("\n")  # loads the codec that the log writes such characters with


def _answer(order: Find, memory: SlotMemory, budget: DecodeBudget) -> Report:
    picture = memory.input(SLOT)[: order.length]
    try:
        data = _result(bytes(picture), order, budget)
        memory.output(SLOT)[: len(data)] = data
    except Exception as error:
        if lacks_memory(error):
            log.warning("an image was refused: it needs more memory than estimated, and more than is allowed")
            return Unreadable("Decoding this image takes more memory than this server allows. Send a smaller one.")
        if isinstance(error, BadPictureError):
            return Unreadable(str(error)[:REASON_CHARS])
        log.exception("no edges were found")
        return Failed(f"{type(error).__name__}: {error}"[:REASON_CHARS])
    return Found(len(data))


def _result(picture: bytes, order: Find, budget: DecodeBudget) -> bytes:
    """A PNG of what the engine would see of an image; or the least and the greatest of its values, a byte each."""
    from workers.engine import codec
    from workers.engine.header import read_header

    size = (order.width, order.height)
    # Asked before: libjpeg and libwebp say that an image is damaged when they get no memory for it.
    with budget.spend_on(read_header(picture), size):
        if order.work == "alpha":
            return bytes(codec.alpha_range(picture))
        pixels = codec.decode_to(picture, *size)
    if order.work == "range":
        return bytes((int(pixels.min()), int(pixels.max())))
    found = codec.grey(pixels) if order.work == "grey" else codec.edges(pixels, order.work)
    return codec.encode_grey(found)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that there is no memory: Python's, or OpenCV's."""
    import cv2

    while not isinstance(error, MemoryError) and getattr(error, "code", None) != cv2.Error.StsNoMem:
        if error.__cause__ is None:
            return False
        error = error.__cause__
    return True
