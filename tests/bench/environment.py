"""Where a figure was measured: it goes into every result."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import torch

_PACKAGES = ("diffusers", "transformers", "openvino", "onnxruntime", "triton", "xformers")
_ROOT = Path(__file__).parents[2]


def environment() -> dict[str, object]:
    """Cores, processor, versions, the commit, and the GPU, if there is one."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        **(_cuda() if torch.cuda.is_available() else {}),
    }


def _cuda() -> dict[str, object]:
    return {"cuda": torch.version.cuda, "gpu state": gpu_state(f"GPU-{torch.cuda.get_device_properties(0).uuid}")}


def gpu_state(uuid: str, library: Any = pynvml) -> dict[str, object] | None:
    """Driver, clocks, power and their limits of a GPU, as NVML has them; None where it has nothing.

    `library` is the pynvml module, or something that behaves like it. What it does not support is left out.
    """
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    try:
        return _read(library, library.nvmlDeviceGetHandleByUUID(uuid))
    except library.NVMLError:
        return None
    finally:
        library.nvmlShutdown()


def _read(library: Any, handle: Any) -> dict[str, object]:
    readings: dict[str, Callable[[], object]] = {
        "driver": library.nvmlSystemGetDriverVersion,
        "SM clock, MHz": lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM),
        "SM clock at most, MHz": lambda: library.nvmlDeviceGetMaxClockInfo(handle, library.NVML_CLOCK_SM),
        "memory clock, MHz": lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM),
        "power, W": lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000,
        "power limit, W": lambda: library.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature, C": lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU),
        "memory in use, GiB": lambda: round(library.nvmlDeviceGetMemoryInfo(handle).used / 2**30, 2),
    }
    found = {}
    for name, read in readings.items():
        with contextlib.suppress(library.NVMLError):
            found[name] = read()
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with + after it when files differ from it; None in a copy without history."""
    try:
        git = ["git", "-C", str(_ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
