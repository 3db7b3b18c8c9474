"""A worker process around an engine whose previews lack memory, break, or come late, as its images ask."""

import os
import socket
import threading
from enum import IntEnum
from unittest.mock import patch

import numpy as np

from workers import worker, worker_main
from workers.engine.config import EngineConfig
from workers.engine.contract import AS_CONFIGURED, EngineOptions, OutOfMemoryError
from workers.engine.echo import EchoEngine
from workers.shared_memory import SlotMemory
from workers.worker_main import WorkerSetup

PAUSE = "PREVIEW_SECONDS"  # the environment variable with the seconds between two previews of an image
PATIENCE = 60.0  # seconds


class Asks(IntEnum):
    """What an image asks for by its brightness, all over; others are shown as usual."""

    NO_MEMORY = 10
    BREAKS = 20
    CANNOT_BE_DRAWN = 30
    DRAWN_LATE = 40  # when the image has been encoded
    DRAWN_LARGE = 50
    NOTHING = 60


class ShowingEngine(EchoEngine):
    """The echo engine with previews of all kinds."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._encoded = threading.Event()

    def preview(self, slot: int) -> object | None:
        preview = super().preview(slot)
        match _brightness(preview):
            case Asks.NO_MEMORY:
                raise OutOfMemoryError("no memory to show it")
            case Asks.BREAKS:
                raise RuntimeError("CUDA error: it cannot be shown")
            case Asks.NOTHING:
                return None
        return preview

    def draw(self, preview: object) -> bytes:
        match _brightness(preview):
            case Asks.CANNOT_BE_DRAWN:
                raise RuntimeError("CUDA error: it cannot be drawn")
            case Asks.DRAWN_LATE:
                assert self._encoded.wait(PATIENCE)
            case Asks.DRAWN_LARGE:
                return bytes(2**20)
        return super().draw(preview)

    def encode(self, pixels: object, options: EngineOptions = AS_CONFIGURED) -> bytes:
        file = super().encode(pixels, options)
        if _brightness(pixels) == Asks.DRAWN_LATE:
            self._encoded.set()
        return file


def _brightness(pixels: object) -> int:
    return int(np.asarray(pixels).max())


def main(setup: WorkerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of such a process, instead of `workers.worker_main.main`."""
    with (
        patch.object(worker_main, "_load", lambda setup, trials: ShowingEngine(setup.engine)),
        patch.object(worker, "PREVIEW_SECONDS", float(os.environ.get(PAUSE, "0"))),
    ):
        worker_main.main(setup, channel, memory)
