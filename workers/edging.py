"""Edges of pictures, found in a process of their own: when it is started, who waits for it, and when it is ended.

All of it runs on one event loop, on the main thread, as the kernel ends the process with the thread that started it.
"""

import asyncio
import logging
import multiprocessing
from dataclasses import dataclass
from typing import assert_never

import msgspec

from workers import edger, wire
from workers.child import ending
from workers.engine.config import Canny, Sizing
from workers.engine.contract import BadPictureError
from workers.slots import SlotLayout, SlotMemory

log = logging.getLogger("contour.edging")

SPAWN = multiprocessing.get_context("spawn")
TRIES = 2  # processes that a picture may cost
PNG_ROOM = 2**16  # bytes of a PNG beside a sixteenth more than its pixels, which is what noise takes


class CrowdedError(RuntimeError):
    """Too many wait already, or it was waited too long; the message is for the client."""


class SlowError(RuntimeError):
    """It took longer than it may; the message is for the client."""


class LostError(RuntimeError):
    """The process ended again and again; the message is for the client."""


class FailedError(RuntimeError):
    """The process could not do it, and lives; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How many may wait for their turn, and how long everything may take, in seconds.

    A picture of 40 million pixels takes some seconds on a busy machine. Without work, the process ends after `idle`.
    """

    waiting: int = 8
    turn: float = 10.0
    start: float = 60.0
    work: float = 20.0
    idle: float = 300.0


@dataclass(frozen=True)
class Wanted:
    """A picture file, the size at which the model would see it (width, height), and the detector's thresholds."""

    picture: bytes
    size: tuple[int, int]
    canny: Canny


def layout(picture_bytes: int, sizing: Sizing) -> SlotLayout:
    """Room for the largest picture that is taken and for its edges."""
    pixels = sizing.short_side * sizing.long_side
    return SlotLayout(1, picture_bytes, pixels * 17 // 16 + PNG_ROOM)


class Edging:
    """Finds edges, one picture at a time. The process is started when it is first needed."""

    def __init__(self, room: SlotLayout, log_level: str = "info", patience: Patience | None = None) -> None:
        self._room = room
        self._setup = edger.Setup(log_level)
        self._patience = patience or Patience()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._edger: _Edger | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def process(self) -> int | None:
        """The id of the process, while there is one."""
        return None if self._edger is None or self._edger.gone.done() else self._edger.pid

    async def find(self, wanted: Wanted) -> bytes:
        """A PNG of the edges: grey, 255 on an edge and 0 elsewhere.

        Cancelled while it waits, it leaves the queue; later, the picture is finished and forgotten.
        Raises BadPictureError, CrowdedError, SlowError, LostError and FailedError; OSError when no process can be
        started.
        """
        await self._wait()
        return await asyncio.shield(self._work(wanted))

    async def close(self) -> None:
        """End the process and whatever it does. Nothing can be asked any more."""
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
        except _GoneError as error:
            log.error("the process that finds edges is lost: %s", error)
            await edger.end()
            return None

    def _started(self) -> "_Edger":
        if self._closed:
            raise CrowdedError("The service is shutting down.")
        if self._edger is None or self._edger.gone.done():
            self._edger = _Edger(self._setup, self._room)
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


class _GoneError(RuntimeError):
    """The process has ended, or said what makes no sense; the message says how."""


class _Edger:
    """A started process, the socket to it and the memory that both share. All of it is let go of when it ends.

    Raises OSError when the system has no process, descriptor or memory left.
    """

    def __init__(self, setup: edger.Setup, room: SlotLayout) -> None:
        self._memory = SlotMemory.create(room)
        self._channel, theirs = wire.channel()
        self._process = SPAWN.Process(target=edger.main, args=(setup, theirs, self._memory), name="edges")
        self._loop = asyncio.get_running_loop()
        with theirs:
            try:
                self._process.start()
            except OSError:
                self._channel.close()
                self._memory.close()
                raise
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._is_ready: asyncio.Future[bytes] = self._loop.create_future()
        self._awaited = self._is_ready  # what the next report settles
        self._loop.add_reader(self._channel, self._read)
        self._loop.add_reader(self._process.sentinel, self._bury)

    async def ready(self) -> None:
        """Wait until it can be asked. Raises _GoneError."""
        await self._is_ready

    async def find(self, wanted: Wanted) -> bytes:
        """A PNG of the edges. Raises BadPictureError, FailedError and _GoneError."""
        if self.gone.done():
            raise _GoneError("it ended before it was asked")
        self._memory.input(edger.SLOT)[: len(wanted.picture)] = wanted.picture
        try:
            edger.send(self._channel, edger.Find(len(wanted.picture), *wanted.size, wanted.canny))
        except OSError as error:
            raise _GoneError(f"it does not listen: {error}") from None
        self._awaited = self._loop.create_future()
        return await self._awaited

    def kill(self) -> None:
        """SIGKILL: there is nothing in it that is worth an orderly end."""
        if not self.gone.done():
            self._process.kill()

    async def end(self) -> None:
        """SIGKILL, and wait until nothing of it is left."""
        self.kill()
        await asyncio.shield(self.gone)

    def _read(self) -> None:
        try:
            report = edger.receive(self._channel)
        except BlockingIOError:
            return
        except (ConnectionError, msgspec.DecodeError):
            report = None
        if report is None or self._awaited.done():  # end of file, or nonsense: whatever it still does is in vain
            self._loop.remove_reader(self._channel)
            self._process.kill()
        else:
            self._settle(report)

    def _settle(self, report: edger.Report) -> None:
        match report:
            case edger.Ready():
                self._awaited.set_result(b"")
            case edger.Found(length):
                self._awaited.set_result(bytes(self._memory.output(edger.SLOT)[:length]))
            case edger.Unreadable(reason):
                self._awaited.set_exception(BadPictureError(reason))
            case edger.Failed(reason):
                self._awaited.set_exception(FailedError(reason))
            case _ as unreachable:
                assert_never(unreachable)

    def _bury(self) -> None:
        """It has ended. What it managed to report still counts."""
        self._read()
        self._loop.remove_reader(self._channel)
        self._loop.remove_reader(self._process.sentinel)
        self._process.join()
        if not self._awaited.done():
            self._awaited.set_exception(_GoneError(ending(self._process.exitcode)))
        self._process.close()
        self._channel.close()
        self._memory.close()
        self.gone.set_result(None)
