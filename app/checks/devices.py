"""The devices that workers would run on, what NVML says of each GPU, and whether torch computes there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from app.checks.finding import Finding, Level, Subject, size
from app.checks.model import bytes_of_weights
from app.checks.python import INSTALL, PINS, ROOT
from workers.console import command
from workers.devices import VARIABLE, DeviceSpec, Gpu
from workers.engine.examine import Examined
from workers.nvml import Nvml, driver_fault

# -------------------------------------------------------------------------------------------------------------- devices

PCI = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"  # a PCI vendor, and the class of display controllers


def devices(subject: Subject) -> Iterator[Finding]:
    """Report where workers would run, then each GPU."""
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
    """The advice about unused GPUs; empty if there are none, or if they are unused on purpose."""
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
    """Whether this machine has an NVIDIA GPU, with or without a driver."""
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


# --------------------------------------------------------------------------------------------------------------- engine

SECONDS = 180.0  # for torch to be imported from a cold disk, and CUDA to be set up
XFORMERS = "xformers"


def engine(subject: Subject) -> Iterator[Finding]:
    """Report the build of torch, then whether it computes on each device."""
    if subject.settings.engine.kind == "echo":
        yield Finding("torch", Level.OK, "not needed: engine.kind is echo")
        return
    devices = {device.token: device for device in subject.placement.devices}
    with ThreadPoolExecutor(len(devices)) as threads:
        answers = list(threads.map(_examined, devices.values()))
    known = next((answer for answer in answers if isinstance(answer, Examined)), None)
    if known is not None:
        built = f"for CUDA {known.cuda}" if known.cuda else "without CUDA"
        yield Finding("torch", Level.OK, f"torch {known.torch}, built {built}")
    for device, answer in zip(devices.values(), answers, strict=True):
        yield from of_device(device, answer, bytes_of_weights(subject))


def _examined(device: DeviceSpec) -> Examined | str:
    """Torch's report about a device, or the reason why the device cannot be used."""
    name = "cuda:0" if device.kind == "cuda" else "cpu"
    run = [sys.executable, "-m", "workers.engine.examine", name]
    environment = os.environ | {VARIABLE: device.token or ""}
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            run, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"torch does not answer within {SECONDS:g} s"
    if done.returncode < 0:
        return f"a process that uses torch was ended by signal {-done.returncode}: {_last(done.stderr)}"
    try:
        return msgspec.json.decode(done.stdout, type=Examined)
    except msgspec.DecodeError:
        return f"torch cannot be used: {_last(done.stderr)}"


def _last(said: bytes) -> str:
    return said.decode(errors="replace").strip().rpartition("\n")[2] or "it printed no error"


def of_device(device: DeviceSpec, answer: Examined | str, weights: int) -> Iterator[Finding]:
    """The findings for a device, from what torch reports or why it cannot be used."""
    if isinstance(answer, str):
        yield Finding("torch", Level.MISSING, f"{device.id}: {answer}", INSTALL)
        return
    if answer.flaw:
        remedy = "check that nvidia-smi works, and that the driver is not older than torch's CUDA"
        yield Finding("torch", Level.MISSING, f"{device.id}: torch cannot compute on it: {answer.flaw}", remedy)
        return
    facts = [f"{device.id}: torch computes on {answer.device}"]
    if answer.capability is not None:
        facts.append(f"compute capability {answer.capability}")
    yield Finding("torch", Level.OK, ", ".join(facts))
    if answer.memory is not None:
        yield _gpu_memory(device, *answer.memory, weights)
    yield _kernels(device, answer)


def _gpu_memory(device: DeviceSpec, free: int, total: int, weights: int) -> Finding:
    text = (
        f"{device.id}: {size(free)} of {size(total)} free; the weights take {size(weights)}, and each image some more"
    )
    if free < weights:
        return Finding(
            "gpu memory", Level.MISSING, text, "end other programs that use it (see nvidia-smi), or choose another GPU"
        )
    return Finding("gpu memory", Level.OK, text)


def _kernels(device: DeviceSpec, answer: Examined) -> Finding:
    usable = [name for name, flaw in answer.kernels.items() if not flaw]
    lacking = [f"{name} ({flaw})" for name, flaw in answer.kernels.items() if flaw]
    text = f"{device.id}: {', '.join(usable) or 'none'}" + f"; not {', '.join(lacking)}" * bool(lacking)
    if answer.kernels.get(XFORMERS):
        return Finding("attention", Level.WARNING, text, command("-m", "pip", "install", "-c", PINS, ".[gpu]"))
    return Finding("attention", Level.OK, text)
