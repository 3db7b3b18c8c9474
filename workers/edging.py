"""Edges of pictures, found in a process of their own: when it is started, who waits for it, and when it is ended.

All of it runs on one event loop, on the main thread, as the kernel ends the process with the thread that started it.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from workers import edges
from workers.edger import Edger, GoneError, Wanted
from workers.engine.config import Sizing
from workers.slots import SlotLayout

log = logging.getLogger("contour.edging")

TRIES = 2  # processes that a picture may cost
PNG_ROOM = 2**16  # bytes of a PNG beside a sixteenth more than its pixels, which is what noise takes


class EdgingError(RuntimeError):
    """There are no edges, and it is not the picture that cannot be read."""


class CrowdedError(EdgingError):
    """Too many wait already, or it was waited too long; the message is for the client."""


class ClosingError(EdgingError):
    """Nothing new is begun any more."""


class SlowError(EdgingError):
    """It took longer than it may; the message is for the client."""


class LostError(EdgingError):
    """The process ended again and again; the message is for the client."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How many may wait for their turn, and how long everything may take, in seconds.

    A picture of 40 million pixels takes some seconds on a busy machine. Without work, the process ends after `idle`;
    at the end, who is there already has `end` to be answered.
    """

    waiting: int = 8
    turn: float = 10.0
    start: float = 60.0
    work: float = 20.0
    idle: float = 300.0
    end: float = 2.0


def layout(picture_bytes: int, sizing: Sizing) -> SlotLayout:
    """Room for the largest picture that is taken and for its edges."""
    pixels = sizing.short_side * sizing.long_side
    return SlotLayout(1, picture_bytes, pixels * 17 // 16 + PNG_ROOM)


class Edging:
    """Finds edges, one picture at a time. The process is started when it is first needed."""

    def __init__(self, room: SlotLayout, setup: edges.Setup, patience: Patience | None = None) -> None:
        self._room = room
        self._setup = setup
        self._patience = patience or Patience()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._edger: Edger | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._closing = self._closed = False

    @property
    def process(self) -> int | None:
        """The id of the process, while there is one."""
        return None if self._edger is None or self._edger.gone.done() else self._edger.pid

    async def find(self, wanted: Wanted) -> bytes:
        """A PNG of the edges: grey, 255 on an edge and 0 elsewhere.

        Cancelled while it waits, it leaves the queue; later, the picture is finished and forgotten.
        Raises BadPictureError, FailedError and the errors of this module; OSError when no process can be started.
        """
        if self._closing:
            raise ClosingError
        await self._wait()
        work = asyncio.ensure_future(self._work(wanted))
        work.add_done_callback(_take_note)
        return await asyncio.shield(work)

    async def close(self) -> None:
        """Answer who is there already, if that can be done in time, and end the process. Nobody else is let in."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.end), self._turn:  # it comes after all who wait for theirs
                pass
        self._closed = True
        self._stay_awake()
        if self._edger is not None:
            await self._edger.end()

    # ---------------------------------------------------------------------------------------------------- one at a time

    async def _wait(self) -> None:
        """Wait for the turn; whoever gets it is to give it back."""
        if self._waiting >= self._patience.waiting:
            raise CrowdedError(f"{self._waiting} others wait for edges already.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience.turn):
                await self._turn.acquire()
        except TimeoutError:
            raise CrowdedError(f"Its turn had not come after {self._patience.turn:g} s.") from None
        finally:
            self._waiting -= 1

    async def _work(self, wanted: Wanted) -> bytes:
        self._stay_awake()
        try:
            for _ in range(TRIES):
                if (found := await self._try(wanted)) is not None:
                    return found
            raise LostError(f"{TRIES} processes ended while they looked for these edges; it is not tried again.")
        finally:
            self._turn.release()
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
            log.error("the process that finds edges is killed: it took too long")
            await edger.end()
            raise SlowError("It took too long to find the edges of this picture.") from None
        except GoneError as error:
            if self._closed:
                raise ClosingError from None
            log.error("the process that finds edges is lost: %s", error)
            await edger.end()
            return None

    def _started(self) -> Edger:
        if self._closed:
            raise ClosingError
        if self._edger is None or self._edger.gone.done():
            self._edger = Edger(self._setup, self._room)
            log.info("a process that finds edges starts (process %d)", self._edger.pid)
        return self._edger

    def _stay_awake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _retire(self) -> None:
        """Nobody has wanted anything for a while."""
        self._idle = None
        if self._edger is not None and not self._turn.locked():
            self._edger.kill()


def _take_note(work: "asyncio.Task[bytes]") -> None:
    """Of an error that nobody may wait for any more: asyncio would complain of that."""
    if not work.cancelled():
        work.exception()
