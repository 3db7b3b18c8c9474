"""The process that finds edges, as its parent holds it."""

import asyncio
import multiprocessing
from dataclasses import dataclass
from typing import assert_never

import msgspec

from workers import edges, wire
from workers.child import ending
from workers.engine.contract import BadPictureError
from workers.process import out_of_reach
from workers.slots import SlotLayout, SlotMemory

SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Wanted:
    """An image file, the size to decode it to (width, height), and what is wanted of it."""

    picture: bytes
    size: tuple[int, int]
    work: edges.Work


class FailedError(RuntimeError):
    """The process could not do it, and lives; the message says why."""


class GoneError(RuntimeError):
    """The process has ended, or said what makes no sense; the message says how."""


class Edger:
    """A started process, the socket to it and the memory that both share. All of it is let go of when it ends.

    Raises OSError when the system has no process, descriptor or memory left.
    """

    def __init__(self, setup: edges.Setup, room: SlotLayout) -> None:
        self._memory = SlotMemory.create(room)
        self._channel, theirs = wire.channel()
        self._process = SPAWN.Process(target=edges.main, args=(setup, theirs, self._memory), name="edges")
        self._loop = asyncio.get_running_loop()
        with theirs:
            try:
                with out_of_reach():
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
        """Wait until it can be asked. Raises GoneError."""
        await self._is_ready

    async def find(self, wanted: Wanted) -> bytes:
        """The result: see `edges.Found`. Raises BadPictureError, FailedError and GoneError."""
        if self.gone.done():
            raise GoneError("it ended before it was asked")
        self._memory.input(edges.SLOT)[: len(wanted.picture)] = wanted.picture
        try:
            edges.send(self._channel, edges.Find(len(wanted.picture), *wanted.size, wanted.work))
        except OSError as error:
            raise GoneError(f"it does not listen: {error}") from None
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
            report = edges.receive(self._channel)
        except BlockingIOError:
            return
        except (ConnectionError, msgspec.DecodeError):
            report = None
        if report is None or self._awaited.done():  # end of file, or nonsense: whatever it still does is in vain
            self._loop.remove_reader(self._channel)
            self._process.kill()
        else:
            self._settle(report)

    def _settle(self, report: edges.Report) -> None:
        match report:
            case edges.Ready():
                self._awaited.set_result(b"")
            case edges.Found(length):
                self._awaited.set_result(bytes(self._memory.output(edges.SLOT)[:length]))
            case edges.Unreadable(reason):
                self._awaited.set_exception(BadPictureError(reason))
            case edges.Failed(reason):
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
            self._awaited.set_exception(GoneError(ending(self._process.exitcode)))
        self._process.close()
        self._channel.close()
        self._memory.close()
        self.gone.set_result(None)
