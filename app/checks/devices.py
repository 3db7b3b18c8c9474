"""The devices that workers would run on, and why; and what NVML says of each GPU."""

from collections.abc import Iterator
from pathlib import Path

from app.checks.finding import Finding, Level, Subject, size
from app.checks.python import PINS
from workers.console import command
from workers.devices import VARIABLE, Gpu
from workers.nvml import Nvml, driver_fault

PCI = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"  # a PCI vendor, and the class of display controllers


def check(subject: Subject) -> Iterator[Finding]:
    """Finds the placement first: it is what counts."""
    yield from _placement(subject)
    if subject.nvml is not None:
        if subject.on_gpu and (fault := driver_fault(subject.nvml)) is not None:
            yield Finding("driver", Level.MISSING, fault.text, fault.remedy)
        for gpu in subject.nvml.devices():
            yield _gpu(subject.nvml, gpu)


def _placement(subject: Subject) -> Iterator[Finding]:
    placement = subject.placement
    remedy = "" if subject.on_gpu else _unused(subject)
    yield Finding("devices", Level.WARNING if remedy else Level.OK, placement.reason, remedy)


def _unused(subject: Subject) -> str:
    """What to do about unused GPUs; empty if there are none, or if that is intended."""
    listed = subject.environ.get(VARIABLE)
    if listed is not None and listed.strip() in ("", "-1"):
        return ""
    if subject.nvml is None:
        return _no_driver() if has_gpu() else ""
    if not subject.nvml.devices():
        return ""
    if "without CUDA" in subject.placement.reason:
        return f"install PyPI's build: {command('-m', 'pip', 'install', '--force-reinstall', '-c', PINS, 'torch')}"
    return f"correct {VARIABLE}, or unset it to use every GPU"


def _no_driver() -> str:
    return "there is an NVIDIA GPU: install its driver (check with nvidia-smi), and start a container with --gpus all"


def has_gpu(pci: Path = PCI) -> bool:
    """Whether there is a GPU of NVIDIA, driver or not."""
    try:
        return any(
            (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith(DISPLAY)
            for device in pci.iterdir()
        )
    except OSError:
        return False


def _gpu(nvml: Nvml, gpu: Gpu) -> Finding:
    reading, capability = nvml.read(gpu.uuid), nvml.capability(gpu.uuid)
    facts = [f"{gpu.name} ({gpu.uuid})"]
    if reading.memory_total is not None and reading.memory_used is not None:
        facts.append(f"{size(reading.memory_total)}, {size(reading.memory_used)} of it in use")
    if capability is not None:
        facts.append(f"compute capability {capability}")
    if gpu.instances is not None:
        facts.append(f"MIG with {len(gpu.instances)} instances")
    facts.append(f"driver {nvml.driver() or 'of an unknown version'}")
    return Finding("gpu", Level.OK, ", ".join(facts))
