"""An engine that wraps another and fails at random, as `engine.faults` asks, to test everything around it."""

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from workers.engine.config import Faults
from workers.engine.contract import Engine, OutOfMemoryError, StepProgress, Task, ignore

log = logging.getLogger("contour.faults")

EXIT_CODE = 70  # <sysexits.h>: an internal software error
INJECTED = "fault injected"  # begins the log line of each


class FaultyEngine:
    """Fails at random, else calls the wrapped engine. Failures are independent of the request: a retry may succeed."""

    def __init__(self, engine: Engine[Any], faults: Faults) -> None:
        self.slots = engine.slots
        self._engine = engine
        self._faults = faults
        self._random = random.Random(f"{faults.seed} {os.getpid()}")  # noqa: S311 - it keeps no secret
        self._running: set[int] = set()
        log.warning("THIS WORKER FAILS ON PURPOSE, as engine.faults is set: %s", faults)

    def __getattr__(self, name: str) -> Any:  # all that does not fail
        return getattr(self._engine, name)

    def prepare(self, task: Task, on_draft: Callable[[Any], object] = ignore) -> Any:
        """Raises OutOfMemoryError by chance, and what the engine raises."""
        self._refuse_memory("prepare", self._faults.prepare_memory)
        return self._engine.prepare(task, on_draft)

    def admit(self, slot: int, prepared: Any) -> None:
        self._engine.admit(slot, prepared)
        self._running.add(slot)

    def step(self) -> Sequence[StepProgress]:
        """Fail before a step, hang in it, or end the process after it; not while nothing runs."""
        if not self._running:
            return self._engine.step()
        self._refuse_memory("step", self._faults.step_memory)
        if self._strikes("hang", self._faults.hang):
            time.sleep(self._faults.hang_seconds)
        stepped = self._engine.step()
        if self._strikes("exit", self._faults.exit):
            os._exit(EXIT_CODE)
        return stepped

    def finish(self, slot: int) -> object:
        """Raises OutOfMemoryError by chance; the image is then still in its slot."""
        self._refuse_memory("finish", self._faults.finish_memory)
        self._running.discard(slot)
        return self._engine.finish(slot)

    def discard(self, slot: int) -> None:
        self._running.discard(slot)
        self._engine.discard(slot)

    def _refuse_memory(self, where: str, chance: float) -> None:
        if self._strikes(f"{where}_memory", chance):
            raise OutOfMemoryError(f"no memory is left on the device (in {where}, on purpose)")

    def _strikes(self, name: str, chance: float) -> bool:
        strikes = self._random.random() < chance
        if strikes:
            log.warning("%s: %s", INJECTED, name)
        return strikes
