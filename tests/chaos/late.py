"""A worker that answers twice: the second time late, with what is then an old generation of its slot."""

import logging
import os
import random
import socket
import threading
from dataclasses import dataclass, field
from unittest.mock import patch

from scheduler import messages as m
from workers import worker, worker_main
from workers.channel import Order, Report, send
from workers.engine.faults import INJECTED
from workers.shared_memory import SlotMemory
from workers.worker_main import WorkerSetup

log = logging.getLogger("contour.faults")

CHANCE = "CHAOS_LATE"  # the environment variable with the chance that a finished image is reported again
LATEST_SECONDS = 1.0


@dataclass(frozen=True)
class Stutter:
    """Sends as `send` does, and by chance a finished image's report once more, up to LATEST_SECONDS later."""

    chance: float
    draw: random.Random = field(default_factory=lambda: random.Random(os.getpid()))

    def __call__(self, end: socket.socket, message: Order | Report) -> None:
        _send(end, message)
        if isinstance(message, m.Finished) and self.draw.random() < self.chance:
            again = threading.Timer(self.draw.uniform(0, LATEST_SECONDS), self._again, (end, message))
            again.daemon = True
            again.start()

    def _again(self, end: socket.socket, message: m.Finished) -> None:
        log.warning("%s: late_report", INJECTED)
        _send(end, message)


_send = send


def main(setup: WorkerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of such a process, instead of `workers.worker_main.main`."""
    with patch.object(worker, "send", Stutter(float(os.environ.get(CHANCE, "1")))):
        worker_main.main(setup, channel, memory)
