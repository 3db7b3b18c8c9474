"""Finds edge maps in a separate process: its queue, its start and end, and its work.

It is separate from the front end because a hostile image may crash the process that decodes it, fill its memory or keep
it busy. It is separate from the workers so that their devices do not wait for it. Once it has imported all that it
needs, it can do nothing but compute and answer: see `workers.confinement`.

It works on one image at a time. Clients take turns: a client that has been served goes behind all others that wait,
however many requests it has waiting. With A's requests a1 to a5 waiting when b1 arrives from B, the order is a1, b1,
a2, a3, ... Without this, one client with a dozen connections keeps everybody else waiting.
"""

import asyncio
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec

from scheduler.messages import Blame, Costs, Failed, Finished, Image, WorkerReady
from workers.channel import Report, Run, as_reason, receive_order, send
from workers.confinement import confine, drop_privileges
from workers.engine.budget import DecodeBudget
from workers.engine.config import Canny, Sizing
from workers.engine.contract import BadImageError
from workers.logs import LogFormat, configure, escaped
from workers.process import Processes, ProcessExit, be_killed_first, die_with_parent, set_process_name
from workers.shared_memory import SlotLayout, SlotMemory

log = logging.getLogger("contour.edges")

ID = "edges"
SLOT = 0  # the only one
TRIES = 2  # processes that an image may cost
RECENT = 16  # images whose mean time predicts that of the next ones
RESOLUTIONS = (64, 2048)  # the least and the greatest short side, in pixels, of edges that clients ask for
LONGEST = 4096
PARAMS_BYTES = 256  # of a task but for its image, at most
PNG_BYTES = 2**16  # of a PNG beside a sixteenth more than its pixels, which is what noise takes
COPIES = 4  # of an image file, while it is decoded
SPARE_BYTES = 64 * 2**20  # for all that is not an image
COSTS = Costs(1, (0.0,), 0.0)  # the report needs some; nobody reads them


# What to do with an image: find its edges by Canny, take its grey values as they are, or find the least and the
# greatest of its values, or of its alpha.
Work: TypeAlias = Canny | Literal["grey", "range", "alpha"]


@dataclass(frozen=True, slots=True)
class EdgeTask:
    """An image file, the size to decode it to (width, height), and what to do with it."""

    image: bytes
    size: tuple[int, int]
    work: Work


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[tuple[int, int], Work]).decode


class EdgeError(RuntimeError):
    """The edges could not be found, though the image may be fine; the message is for the client."""


class BusyError(EdgeError):
    """Too many requests wait already, or this one waited too long.

    `retry_after`: the seconds until another request of this client would have its turn, judging by recent ones.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosingError(EdgeError):
    """The service is shutting down."""


class SlowError(EdgeError):
    """It took too long."""


class CrashedError(EdgeError):
    """The image crashed the process each time."""


class FailedError(EdgeError):
    """The process failed on this image but still runs; the message is for the log."""


class _GoneError(RuntimeError):
    """The process has ended; the message says why."""


@dataclass(frozen=True, kw_only=True)
class EdgeLimits:
    """The number of requests that may wait, and time limits in seconds.

    A client may have at most as many requests waiting as there are places left for others. An image of 40
    million pixels takes some seconds on a busy machine. Without work, the process ends after `idle`. At shutdown,
    requests that have arrived get `end` to be answered.
    """

    waiting: int = 16
    turn: float = 10.0
    start: float = 60.0
    work: float = 20.0
    idle: float = 300.0
    end: float = 2.0


def at_resolution(sizing: Sizing, short_side: int) -> Sizing:
    """The same shapes with another short side, in pixels."""
    long_side = max(short_side, short_side * sizing.long_side // sizing.short_side)
    return replace(sizing, short_side=short_side, long_side=min(long_side, LONGEST))


def edge_layout(image_bytes: int, sizing: Sizing) -> SlotLayout:
    """Room for the largest image file, and for its edges at the largest size that clients may ask for."""
    largest = at_resolution(sizing, RESOLUTIONS[1])
    pixels = max(sizing.short_side * sizing.long_side, largest.short_side * largest.long_side)
    return SlotLayout(1, image_bytes + PARAMS_BYTES, pixels * 17 // 16 + PNG_BYTES)


class FairLock:
    """Gives the process to one request at a time: a FIFO per client, and the clients take turns."""

    def __init__(self) -> None:
        self._queues: dict[str, list[asyncio.Future[None]]] = {}  # in the order of the clients' next turns
        self._client = ""  # whose turn it is, or was last
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def waiting(self) -> Counter[str]:
        """Return how many requests of each client wait."""
        return Counter({client: len(queue) for client, queue in self._queues.items()})

    def turns_before(self, client: str) -> int:
        """Return how many requests would be served before one more of this client."""
        others = self.waiting
        own = others.pop(client, 0)
        return own + sum(min(waiting, own + 1) for waiting in others.values()) + (not self.idle.is_set())

    async def take(self, client: str) -> None:
        """Wait for a turn, which `release` ends. Cancelled while it waits, it leaves the queue."""
        if self.idle.is_set():
            self._client = client
            self.idle.clear()
            return
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, []).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._forget_cancelled()
            if not turn.cancelled():  # its turn came in the same moment
                self.release()
            raise

    def release(self) -> None:
        """End a turn; the next one begins."""
        self._queues[self._client] = self._queues.pop(self._client, [])  # behind all others
        self._forget_cancelled()
        if not self._queues:
            self.idle.set()
            return
        self._client, queue = next(iter(self._queues.items()))
        queue.pop(0).set_result(None)

    def _forget_cancelled(self) -> None:
        left = {client: [turn for turn in queue if not turn.cancelled()] for client, queue in self._queues.items()}
        self._queues = {client: queue for client, queue in left.items() if queue}


class EdgeService:
    """Finds edges, one image at a time. The process starts when it is first needed.

    Use it on one event loop, on the main thread: the kernel ends the process with the thread that started it.
    """

    def __init__(self, layout: SlotLayout, setup: "EdgeSetup", limits: EdgeLimits | None = None) -> None:
        self._limits = limits or EdgeLimits()
        self._processes = Processes({ID: setup}, layout, self._on_report, self._on_exit)
        self._memory = self._processes.memory(ID)
        self._queue = FairLock()
        self._seconds: deque[float] = deque(maxlen=RECENT)  # what the last images took
        self._answer: asyncio.Future[bytes]  # to the last order, or empty when it is ready
        self._gone = asyncio.Event()
        self._gone.set()
        self._retiring: asyncio.TimerHandle | None = None
        self._closing = self._closed = False

    @property
    def process(self) -> int | None:
        """The id of the process, while there is one."""
        return self._processes.ids.get(ID)

    async def find(self, task: EdgeTask, client: str = "") -> bytes:
        """The result: a grey PNG (edges: 255 on an edge and 0 elsewhere), or two bytes, the range of the values.

        `client` takes turns with the others. Cancelled while it waits, the request leaves the queue; later, the image
        is finished and forgotten. Raises BadImageError, and EdgeError; OSError when no process can be started.
        """
        if self._closing:
            raise ClosingError
        await self._wait(client)
        work = asyncio.ensure_future(self._work(task))
        work.add_done_callback(
            lambda work: work.cancelled() or work.exception()
        )  # else asyncio logs an unread exception
        return await asyncio.shield(work)

    async def close(self) -> None:
        """Answer the requests that are there already, if that can be done in time, and end the process."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.end):
                await self._queue.idle.wait()
        self._closed = True
        self._cancel_retirement()
        await self._end("the service is shutting down")
        await self._processes.close()

    async def _wait(self, client: str) -> None:
        """Wait for a turn; `_work` ends it."""
        self._check_room(client)
        try:
            async with asyncio.timeout(self._limits.turn):
                await self._queue.take(client)
        except TimeoutError:
            raise self._busy(
                f"Your request waited in the queue for edges for {self._limits.turn:g} s.", client
            ) from None

    def _check_room(self, client: str) -> None:
        """Refuse a request if the queue is full, or if its client has as many waiting as there are places left."""
        if self._queue.idle.is_set():
            return
        waiting = self._queue.waiting
        free = self._limits.waiting - waiting.total()
        if free < 1:
            raise self._busy(f"{waiting.total()} requests are waiting for edges, and the queue is full.", client)
        if waiting[client] >= free:
            message = f"{waiting[client]} of your requests are waiting for edges; wait for one of them."
            raise self._busy(message, client)

    def _busy(self, message: str, client: str) -> BusyError:
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
        retry_after = max(1.0, mean * self._queue.turns_before(client))
        return BusyError(f"{message} Try again in {ceil(retry_after)} s.", retry_after)

    async def _work(self, task: EdgeTask) -> bytes:
        self._cancel_retirement()
        began = time.monotonic()
        try:
            for _ in range(TRIES):
                if (found := await self._try(task)) is not None:
                    return found
            raise CrashedError(f"This image crashed the edge process {TRIES} times; it is not tried again.")
        finally:
            self._seconds.append(time.monotonic() - began)
            self._queue.release()
            if not self._closed:
                self._retiring = asyncio.get_running_loop().call_later(self._limits.idle, self._retire)

    async def _try(self, task: EdgeTask) -> bytes | None:
        """The result, or None when the process was lost. One that is late is ended."""
        if self._closed:
            raise ClosingError
        try:
            if self.process is None:
                async with asyncio.timeout(self._limits.start):
                    await self._answered(self._start)
            async with asyncio.timeout(self._limits.work):
                return await self._answered(lambda: self._send(task))
        except TimeoutError:
            log.error("Killing the edge process: it took too long")
            await self._end("it took too long")
            raise SlowError("Finding the edges of this image took too long.") from None
        except _GoneError as error:
            if self._closed:
                raise ClosingError from None
            log.error("The edge process exited: %s", error)
            return None

    async def _answered(self, ask: Callable[[], None]) -> bytes:
        self._answer = asyncio.get_running_loop().create_future()
        ask()
        return await self._answer

    def _start(self) -> None:
        self._processes.spawn(ID)
        self._gone.clear()

    def _send(self, task: EdgeTask) -> None:
        if self.process is None:  # it became ready and exited in one turn of the event loop
            raise _GoneError("it exited before it got the image")
        params = _pack((task.size, task.work))
        self._memory.write(SLOT, task.image, params)
        self._processes.send(ID, Run(SLOT, 0, len(task.image), len(params)))

    def _on_report(self, _: str, report: Report) -> None:
        """Resolve the answer that is waited for. A report that nobody waits for raises, which ends the process."""
        match report:
            case WorkerReady():
                self._answer.set_result(b"")
            case Finished(_, slot, _, image):
                self._answer.set_result(self._memory.read(slot, image.byte_count))
            case Failed(_, _, _, reason, blame):
                self._answer.set_exception((BadImageError if blame is Blame.IMAGE else FailedError)(reason))
            case _:
                raise ValueError(f"the edge process sends no {type(report).__name__}")

    def _on_exit(self, _: str, end: ProcessExit) -> None:
        if not self._answer.done():
            self._answer.set_exception(_GoneError(end.reason))
        try:
            self._memory.clear()
        except OSError:  # madvise is missing in some sandboxes; the next image overwrites this one
            log.exception("Cannot clear the memory that is shared with the edge process")
        finally:
            self._gone.set()  # `close` waits for it

    async def _end(self, reason: str) -> None:
        """Kill the process, as it holds nothing worth an orderly end, and wait until it is reaped."""
        if self.process is not None:
            self._processes[ID].reject(reason)
        await self._gone.wait()

    def _cancel_retirement(self) -> None:
        if self._retiring is not None:
            self._retiring.cancel()
            self._retiring = None

    def _retire(self) -> None:
        """End the process after it has been idle."""
        if self._queue.idle.is_set():
            self._processes.kill(ID)


# ----------------------------------------------------------------------------------------------------- in the process


@dataclass(frozen=True, slots=True)
class EdgeSetup:
    """All that the process is started with. `decoding_bytes`: the memory that decoding an image may take."""

    name: ClassVar[str] = "the edge process"
    log_level: str = "info"
    log_format: LogFormat = "human"
    decoding_bytes: int = 2**30
    parent: int = field(default_factory=os.getpid)

    @property
    def main(self) -> Callable[[Any, socket.socket, SlotMemory], None]:
        """Its entry point."""
        return main


def main(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of the process: find edges until the other end of the socket is closed."""
    prepare(setup, memory)
    budget = DecodeBudget(setup.decoding_bytes)
    send(channel, WorkerReady(ID, COSTS))
    while isinstance(order := receive_order(channel), Run):
        send(channel, _answer(order, memory, budget))


def prepare(setup: EdgeSetup, memory: SlotMemory) -> None:
    """Import everything that finding edges needs, then give up all other rights."""
    die_with_parent(setup.parent)
    set_process_name("contour edges")
    configure(setup.log_level, setup.log_format)
    drop_privileges()
    be_killed_first()
    import_all()
    confine(setup.decoding_bytes + COPIES * memory.layout.input_bytes + SPARE_BYTES)


def import_all() -> None:
    """Import what reads pixels: only here, as the front end imports this module too. No file can be opened later."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's; nothing here uses it, and its threads are memory
    import cv2
    import PIL.TiffImagePlugin  # noqa: F401 - Pillow imports it when it meets the first image with EXIF

    import workers.engine.codec  # noqa: F401

    cv2.setNumThreads(1)  # it would take all cores, which others have work for
    time.localtime()  # reads the time zone, for the log
    escaped("\n")  # loads the codec that the log writes such characters with


def _answer(order: Run, memory: SlotMemory, budget: DecodeBudget) -> Report:
    data = memory.input(order.slot)
    params = data[order.image_bytes : order.image_bytes + order.params_bytes]
    try:
        found = _find(EdgeTask(bytes(data[: order.image_bytes]), *_unpack(params)), budget)
        memory.output(order.slot)[: len(found)] = found
    except Exception as error:
        blame, reason = Blame.IMAGE, str(error)
        if lacks_memory(error):
            log.warning("Refused an image: it needs more memory than estimated, and more than allowed")
            reason = "Decoding this image takes more memory than this server allows. Send a smaller one."
        elif not isinstance(error, BadImageError):
            log.exception("The edge process failed on an image")
            blame, reason = Blame.SERVICE, f"{type(error).__name__}: {error}"
        return Failed(ID, order.slot, order.generation, as_reason(reason), blame)
    return Finished(ID, order.slot, order.generation, Image(len(found), 0.0, 0.0, 0.0, 0.0))


def _find(task: EdgeTask, budget: DecodeBudget) -> bytes:
    """A PNG of what the engine would see of an image; or the least and the greatest of its values, a byte each."""
    from workers.engine import codec
    from workers.engine.header import read_header

    # Asked before: libjpeg and libwebp say that an image is damaged when they get no memory for it.
    with budget.spend_on(read_header(task.image), task.size):
        if task.work == "alpha":
            return bytes(codec.alpha_range(task.image))
        pixels = codec.decode_to(task.image, *task.size)
    if task.work == "range":
        return bytes((int(pixels.min()), int(pixels.max())))
    return codec.encode_grey(codec.grey(pixels) if task.work == "grey" else codec.edges(pixels, task.work))


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that there is no memory: Python's, or OpenCV's."""
    import cv2

    while not isinstance(error, MemoryError) and getattr(error, "code", None) != cv2.Error.StsNoMem:
        if error.__cause__ is None:
            return False
        error = error.__cause__
    return True
