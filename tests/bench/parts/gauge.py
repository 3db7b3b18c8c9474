"""Clocks, power, temperature and throttling of the GPU while something is measured on it."""

import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml
import torch

from workers.nvml import Nvml, Reading

_BUSY = 0.5  # share of time with a kernel running, from which on a reading is one under load


@dataclass(frozen=True, slots=True)
class Gauge:
    """Reads one GPU. `library` is the pynvml module, or something that behaves like it."""

    nvml: Nvml
    uuid: str
    library: Any = pynvml
    period: float = 0.1  # seconds between two readings

    @classmethod
    def of(cls, device: str) -> "Gauge | None":
        """That of a torch device; None for a CPU, and where NVML does not answer."""
        if torch.device(device).type != "cuda" or (nvml := Nvml.open()) is None:
            return None
        return cls(nvml, f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    @contextmanager
    def watch(self) -> Iterator[dict[str, Any]]:
        """Read the GPU all the while, and enter at the end what was found under load."""
        found, over, readings = dict[str, Any](), threading.Event(), list[tuple[Reading, float | None]]()

        def read() -> None:
            while not over.wait(self.period):
                readings.append((self.nvml.read(self.uuid), self._clock()))

        thread = threading.Thread(target=read, name="gauge", daemon=True)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()
            found |= conditions(readings)

    def _clock(self) -> float | None:
        try:
            handle = self.library.nvmlDeviceGetHandleByUUID(self.uuid)
            return float(self.library.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
        except pynvml.NVMLError:
            return None


def conditions(readings: list[tuple[Reading, float | None]]) -> dict[str, Any]:
    """The readings under load in short, without those that the GPU does not support.

    `throttled`: the share of these readings in which a reason reduced the clocks, if any did.
    """
    loaded = [
        (reading, clock) for reading, clock in readings if reading.utilization is None or reading.utilization >= _BUSY
    ]
    series = {
        "SM clock, MHz": [clock for _, clock in loaded],
        "power, W": [reading.power for reading, _ in loaded],
        "temperature, C": [reading.temperature for reading, _ in loaded],
    }
    found: dict[str, Any] = {}
    for name, values in series.items():
        if known := [value for value in values if value is not None]:
            found[name] = {
                "median": round(statistics.median(known)),
                "min": round(min(known)),
                "max": round(max(known)),
            }
    reasons = Counter(reason for reading, _ in loaded for reason in reading.throttle_reasons or ())
    throttled = {reason: round(n / len(loaded), 3) for reason, n in reasons.items()}
    return ({"GPU under load": found | {"readings": len(loaded)}} if loaded else {}) | (
        {"throttled": throttled} if throttled else {}
    )
