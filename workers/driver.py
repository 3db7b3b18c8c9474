"""Whether the NVIDIA driver can run what the installed torch was built for.

A driver runs every build for its own major version of CUDA, whatever the minor one, and for those before it. Source:
NVIDIA's "CUDA Compatibility", with the oldest driver for each major version.
"""

from dataclasses import dataclass

from workers.devices import torch_cuda
from workers.telemetry import Nvml

_OLDEST = {11: "450.80", 12: "525.60", 13: "580.65"}


@dataclass(frozen=True, slots=True)
class DriverFault:
    """What is wrong with the driver, and what to do about it."""

    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}: {self.remedy}"


def driver_fault(nvml: Nvml | None, built: str | None = None) -> DriverFault | None:
    """Why the driver cannot run torch's CUDA code; None if it can, or does not say what it runs.

    `built`: the CUDA that torch was built for, as in "13.0"; None looks.
    """
    supported, built = None if nvml is None else nvml.cuda(), built or torch_cuda()
    if nvml is None or supported is None or built is None:
        return None
    wanted = int(built.split(".")[0])
    if supported[0] >= wanted:
        return None
    name, limit = nvml.driver() or "of an unknown version", ".".join(map(str, supported))
    text = f"The NVIDIA driver ({name}) runs CUDA up to {limit}, and the installed torch was built for CUDA {built}"
    driver = f"driver {_OLDEST[wanted]} or newer" if wanted in _OLDEST else "a newer driver"
    return DriverFault(text, f"install {driver}, or a torch built for CUDA {supported[0]}")
