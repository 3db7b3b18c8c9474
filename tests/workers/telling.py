"""A worker process around an engine that has something to tell, decodes beside its steps, and fails on request."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from scheduler.messages import Costs
from workers import worker, worker_main
from workers.engine.codec import Pixels
from workers.engine.config import EngineConfig
from workers.engine.contract import EngineStatus, OutOfMemoryError, StepProgress, Task, ignore
from workers.engine.echo import Echoed, EchoEngine
from workers.shared_memory import SlotMemory
from workers.worker_main import WorkerSetup

ATTENTION = (("2x8 4096x4096x40", "cudnn"), ("2x8 4096x77x40", "flash"))
DECODE_SECONDS = 0.5
COMPILE_SECONDS = 0.5  # after the warm-up, until there is a graph
IDLE_SECONDS = 0.1
WAIT_SECONDS = 1.0  # for memory, say, in `prepare`
BLACK = 0  # an image that is all of this makes the device fail
LACKS_MEMORY = {"prepare": 10, "admit": 20, "step": 30, "finish": 40}  # and of these, lacks memory where they say
WAITS = 60  # one that is all of this waits in `prepare`
UNENCODABLE = 70  # and of this, fails with an error whose text cannot be encoded


@dataclass(frozen=True, slots=True)
class Decoding:
    """What `finish` returns."""

    pixels: Pixels | bytes


class TellingEngine(EchoEngine):
    """The echo engine, but a graph comes while nobody asks for it, and each image is a fallback. A step costs less
    after that and after each time that it is measured again."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._graphs = 0
        self._again = 0
        self._fallbacks = 0

    def warm_up(self) -> Costs:
        costs = super().warm_up()
        threading.Timer(COMPILE_SECONDS, self._capture).start()
        return costs

    def costs(self) -> Costs:
        costs = super().costs()
        faster = 1 + self._graphs + self._again
        return replace(costs, step_seconds=tuple(each / faster for each in costs.step_seconds))

    def measure_again(self, is_idle: Callable[[], bool]) -> bool:
        self._again += 1
        return True

    def prepare(self, task: Task, on_draft: Callable[[Any], object] = ignore) -> Echoed:
        prepared = super().prepare(task, on_draft)
        _given_memory("prepare", prepared.image)
        assert not isinstance(prepared.image, bytes)
        if prepared.image.max() == WAITS:
            time.sleep(WAIT_SECONDS)
        if prepared.image.max() == UNENCODABLE:
            raise RuntimeError("no such file: \ud800")
        return prepared

    def admit(self, slot: int, prepared: Echoed) -> None:
        _given_memory("admit", prepared.image)
        super().admit(slot, prepared)

    def step(self) -> list[StepProgress]:
        for prepared, _ in self._running.values():
            _given_memory("step", prepared.image)
        return super().step()

    def finish(self, slot: int) -> Decoding:  # type: ignore[override]
        _given_memory("finish", self._running[slot][0].image)
        self._fallbacks += 1
        return Decoding(super().finish(slot))

    def collect(self, decoding: object) -> Pixels | bytes:
        assert isinstance(decoding, Decoding)
        assert not isinstance(decoding.pixels, bytes)
        time.sleep(DECODE_SECONDS)
        if decoding.pixels.max() == BLACK:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return decoding.pixels

    def status(self) -> EngineStatus:
        return status(self._graphs, self._fallbacks)

    def _capture(self) -> None:
        self._graphs = 1


def _given_memory(where: str, pixels: Pixels | bytes) -> None:
    assert not isinstance(pixels, bytes)
    if pixels.max() == LACKS_MEMORY[where]:
        raise OutOfMemoryError(f"no memory to {where}")


def status(graphs: int, fallbacks: int) -> EngineStatus:
    """What the engine says after so many."""
    return EngineStatus(ATTENTION, (("step", graphs),), 2**20 * graphs, (("no compiler", fallbacks),))


def main(setup: WorkerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of such a process, instead of `workers.worker_main.main`."""
    with (
        patch.object(worker_main, "_load", lambda setup, trials: TellingEngine(setup.engine)),
        patch.object(worker, "IDLE_SECONDS", IDLE_SECONDS),
    ):
        worker_main.main(setup, channel, memory)
