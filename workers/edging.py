"""Edges of pictures, found in a process of their own: when it is started, who waits for it, and when it is ended.

The process works on one image at a time. Clients take turns: a client that has been served goes behind all others that
wait, however many requests it has waiting. With A's requests a1 to a5 waiting when b1 arrives from B, the order is
a1, b1, a2, a3, ... Without this, one client with a dozen connections keeps everybody else waiting.

All of it runs on one event loop, on the main thread, as the kernel ends the process with the thread that started it.
"""

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from statistics import fmean

from workers import edges
from workers.edger import Edger, GoneError, Wanted
from workers.engine.config import Sizing
from workers.slots import SlotLayout

log = logging.getLogger("contour.edging")

TRIES = 2  # processes that a picture may cost
RECENT = 16  # how many of the last images their mean time is taken of
RESOLUTIONS = (64, 2048)  # the least and the greatest short side, in pixels, of edges that are asked for
LONGEST = 4096
PNG_ROOM = 2**16  # bytes of a PNG beside a sixteenth more than its pixels, which is what noise takes


class EdgingError(RuntimeError):
    """There are no edges, and it is not the picture that cannot be read."""


class CrowdedError(EdgingError):
    """Too many wait already, or it was waited too long; the message is for the client.

    `retry_after` is in how many seconds a request of this client's would have its turn, by what recent ones took.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosingError(EdgingError):
    """Nothing new is begun any more."""


class SlowError(EdgingError):
    """It took longer than it may; the message is for the client."""


class LostError(EdgingError):
    """The process ended again and again; the message is for the client."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How many may wait for their turn, and how long everything may take, in seconds.

    One client may have as many waiting as it leaves places free, so that others find one. A picture of 40 million
    pixels takes some seconds on a busy machine. Without work, the process ends after `idle`;
    at the end, who is there already has `end` to be answered.
    """

    waiting: int = 16
    turn: float = 10.0
    start: float = 60.0
    work: float = 20.0
    idle: float = 300.0
    end: float = 2.0


def layout(picture_bytes: int, sizing: Sizing) -> SlotLayout:
    """Room for the largest image file that is taken, and for its edges at the largest size that may be asked for."""
    largest = at_resolution(sizing, RESOLUTIONS[1])
    pixels = max(sizing.short_side * sizing.long_side, largest.short_side * largest.long_side)
    return SlotLayout(1, picture_bytes, pixels * 17 // 16 + PNG_ROOM)


def at_resolution(sizing: Sizing, short_side: int) -> Sizing:
    """The same shapes with another short side, in pixels."""
    long_side = max(short_side, short_side * sizing.long_side // sizing.short_side)
    return replace(sizing, short_side=short_side, long_side=min(long_side, LONGEST))


class FairQueue:
    """Gives the process to one request at a time: a FIFO per client, and the clients take turns."""

    def __init__(self) -> None:
        # The order of the keys is the order in which clients have their turns. None of the queues is empty.
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._client = ""  # whose turn it is, or was last
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    def waiting_of(self, client: str) -> int:
        """How many of a client's wait."""
        return len(self._queues.get(client, ()))

    def turns_before(self, client: str) -> int:
        """How many turns would come before that of one more request of this client."""
        own = self.waiting_of(client)
        others = (len(queue) for each, queue in self._queues.items() if each != client)
        return own + sum(min(length, own + 1) for length in others) + (not self.idle.is_set())

    async def take(self, client: str) -> None:
        """Wait for a turn, which `release` ends. Cancelled while it waits, it leaves the queue at once."""
        if self.idle.is_set():
            self._client = client
            self.idle.clear()
            return
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it got its turn in the same moment
                self.release()
            elif turn in self._queues.get(client, ()):
                self._remove(client, turn)
            raise

    def release(self) -> None:
        """End a turn; the next one begins."""
        if (rest := self._queues.pop(self._client, None)) is not None:
            self._queues[self._client] = rest  # behind all others
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            turn = queue[0]
            self._remove(client, turn)
            if not turn.cancelled():  # else it is about to leave
                self._client = client
                turn.set_result(None)
                return
        self.idle.set()

    def _remove(self, client: str, turn: "asyncio.Future[None]") -> None:
        self._queues[client].remove(turn)
        if not self._queues[client]:
            del self._queues[client]


class Edging:
    """Finds edges, one picture at a time. The process is started when it is first needed."""

    def __init__(self, room: SlotLayout, setup: edges.Setup, patience: Patience | None = None) -> None:
        self._room = room
        self._setup = setup
        self._patience = patience or Patience()
        self._turns = FairQueue()
        self._seconds: deque[float] = deque(maxlen=RECENT)  # what the last images took
        self._edger: Edger | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._closing = self._closed = False

    @property
    def process(self) -> int | None:
        """The id of the process, while there is one."""
        return None if self._edger is None or self._edger.gone.done() else self._edger.pid

    async def find(self, wanted: Wanted, client: str = "") -> bytes:
        """The result: a grey PNG (edges: 255 on an edge and 0 elsewhere), or two bytes, the range of the values.

        `client` is whoever takes turns with others.

        Cancelled while it waits, it leaves the queue; later, the picture is finished and forgotten.
        Raises BadPictureError, FailedError and the errors of this module; OSError when no process can be started.
        """
        if self._closing:
            raise ClosingError
        await self._wait(client)
        work = asyncio.ensure_future(self._work(wanted))
        work.add_done_callback(_take_note)
        return await asyncio.shield(work)

    async def close(self) -> None:
        """Answer who is there already, if that can be done in time, and end the process. Nobody else is let in."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.end):
                await self._turns.idle.wait()
        self._closed = True
        self._stay_awake()
        if self._edger is not None:
            await self._edger.end()

    # ---------------------------------------------------------------------------------------------------- one at a time

    async def _wait(self, client: str) -> None:
        """Wait for a turn; `_work` ends it."""
        self._check_room(client)
        try:
            async with asyncio.timeout(self._patience.turn):
                await self._turns.take(client)
        except TimeoutError:
            raise self._crowded(f"Your request's turn did not come within {self._patience.turn:g} s.", client) from None

    def _check_room(self, client: str) -> None:
        """Refuse a request that finds no place to wait, and one whose client would have more than it leaves free."""
        if self._turns.idle.is_set():
            return
        waiting, own = self._turns.waiting, self._turns.waiting_of(client)
        free = self._patience.waiting - waiting
        if free < 1:
            raise self._crowded(f"{waiting} requests wait for edges already, and no more may.", client)
        if own + 1 > free:
            raise self._crowded(f"{own} of your requests wait for edges already, and no more of them may.", client)

    def _crowded(self, message: str, client: str) -> CrowdedError:
        mean = fmean(self._seconds) if self._seconds else 1.0
        retry_after = max(1.0, mean * self._turns.turns_before(client))
        return CrowdedError(f"{message} Try again in {ceil(retry_after)} s.", retry_after)

    async def _work(self, wanted: Wanted) -> bytes:
        self._stay_awake()
        began = time.monotonic()
        try:
            for _ in range(TRIES):
                if (found := await self._try(wanted)) is not None:
                    return found
            raise LostError(f"Finding the edges of this image ended {TRIES} processes; it is not tried again.")
        finally:
            self._seconds.append(time.monotonic() - began)
            self._turns.release()
            if not self._closed:
                self._idle = asyncio.get_running_loop().call_later(self._patience.idle, self._retire)

    async def _try(self, wanted: Wanted) -> bytes | None:
        """The edges, or None when the process was lost. One that is late is ended."""
        edger = self._started()
        try:
            async with asyncio.timeout(self._patience.start):
                await edger.ready()
            async with asyncio.timeout(self._patience.work):
                return await edger.find(wanted)
        except TimeoutError:
            log.error("Killing the process that finds edges: it took too long")
            await edger.end()
            raise SlowError("Finding the edges of this image took too long.") from None
        except GoneError as error:
            if self._closed:
                raise ClosingError from None
            log.error("The process that finds edges exited: %s", error)
            await edger.end()
            return None

    def _started(self) -> Edger:
        if self._closed:
            raise ClosingError
        if self._edger is None or self._edger.gone.done():
            self._edger = Edger(self._setup, self._room)
            log.info("Starting the process that finds edges (process %d)", self._edger.pid)
        return self._edger

    def _stay_awake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _retire(self) -> None:
        """Nobody has wanted anything for a while."""
        self._idle = None
        if self._edger is not None and self._turns.idle.is_set():
            self._edger.kill()


def _take_note(work: "asyncio.Task[bytes]") -> None:
    """Of an error that nobody may wait for any more: asyncio would complain of that."""
    if not work.cancelled():
        work.exception()
