"""A worker that answers twice: the second time late, with what is then an old generation of its slot."""

import logging
import os
import random
import socket
import threading
from dataclasses import dataclass, field
from unittest.mock import patch

from scheduler import messages as m
from workers import process, wire
from workers.engine.faults import INJECTED
from workers.process import Setup
from workers.slots import SlotMemory

log = logging.getLogger("contour.faults")

CHANCE = "CHAOS_LATE"  # the environment variable with the chance that a finished image is reported again
LATEST_SECONDS = 1.0


@dataclass(frozen=True)
class Stutter:
    """Sends as `wire.send` does, and by chance a finished image's report once more, up to LATEST_SECONDS later."""

    chance: float
    draw: random.Random = field(default_factory=lambda: random.Random(os.getpid()))

    def __call__(self, end: socket.socket, message: wire.Order | wire.Report) -> None:
        _send(end, message)
        if isinstance(message, m.Finished) and self.draw.random() < self.chance:
            again = threading.Timer(self.draw.uniform(0, LATEST_SECONDS), self._again, (end, message))
            again.daemon = True
            again.start()

    def _again(self, end: socket.socket, message: m.Finished) -> None:
        log.warning("%s: late_report", INJECTED)
        _send(end, message)


_send = wire.send


def main(setup: Setup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of such a process, instead of `workers.process.main`."""
    with patch.object(wire, "send", Stutter(float(os.environ.get(CHANCE, "1")))):
        process.main(setup, channel, memory)
