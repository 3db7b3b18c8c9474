"""A worker process around an engine that begins an image before it has decoded it, and fails as its images ask."""

import os
import socket
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

from workers import worker_main
from workers.engine import codec
from workers.engine.contract import BadImageError, OutOfMemoryError, Task, ignore
from workers.engine.echo import Echoed, EchoEngine
from workers.shared_memory import SlotMemory
from workers.worker_main import WorkerSetup

FOLDER = "CONTOUR_TEST_BEGINNING"  # a variable: the folder of the files below
BEGUN, GATE = "begun", "gate"  # made when an image begins; by the test, to let one that waits be decoded
PATIENCE = 120.0


class Asks(IntEnum):
    """What an image asks for by its brightness, all over."""

    NOTHING = 10
    WAIT_FOR_BEGIN = 20  # before it is decoded
    WAIT_FOR_GATE = 30
    BAD = 40
    NO_MEMORY_TO_BEGIN = 50
    NO_MEMORY_TO_ADMIT = 60  # at the first time


class BeginningEngine(EchoEngine):
    """The echo engine with drafts. Any call out of order raises, which ends the process."""

    _folder = property(lambda self: Path(os.environ[FOLDER]))

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._begun: set[int] = set()
        self._lacked = False

    def prepare(self, task: Task, on_draft: Callable[[Any], object] = ignore) -> Echoed:
        asks = int(codec.decode(task.image).max())
        on_draft(asks)
        match asks:
            case Asks.WAIT_FOR_BEGIN:
                _wait_for(self._folder / BEGUN)
            case Asks.WAIT_FOR_GATE:
                _wait_for(self._folder / GATE)
            case Asks.BAD:
                _wait_for(self._folder / BEGUN)
                raise BadImageError("The image is bad.")
        return super().prepare(task)

    def begin(self, slot: int, draft: Any) -> None:
        if slot in self._begun or slot in self._running:
            raise ValueError(f"slot {slot} is not free")
        if draft == Asks.NO_MEMORY_TO_BEGIN:
            raise OutOfMemoryError("no memory to begin")
        self._begun.add(slot)
        (self._folder / BEGUN).touch()

    def admit(self, slot: int, prepared: Echoed) -> None:
        asks = int(codec.decode(bytes(prepared.image)).max())
        if (slot in self._begun) is (asks == Asks.NO_MEMORY_TO_BEGIN):
            raise ValueError(f"slot {slot} has begun, or has not")
        self._begun.discard(slot)
        if asks == Asks.NO_MEMORY_TO_ADMIT and not self._lacked:
            self._lacked = True
            raise OutOfMemoryError("no memory to admit")
        super().admit(slot, prepared)

    def discard(self, slot: int) -> None:
        if slot in self._begun:
            self._begun.remove(slot)
        else:
            super().discard(slot)


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{file.name} never came")
        time.sleep(0.01)


def main(setup: WorkerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of such a process, instead of `workers.worker_main.main`."""
    with patch.object(worker_main, "_load", lambda setup, trials: BeginningEngine(setup.engine)):
        worker_main.main(setup, channel, memory)
