"""torch on each device that workers would run on, and the attention kernels there: asked in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec

from app.checks.finding import Finding, Level, Subject, size
from app.checks.python import INSTALL, PINS, ROOT
from app.checks.weights import bytes_of_weights
from workers.console import command
from workers.devices import VARIABLE, DeviceSpec
from workers.engine.examine import Examined

SECONDS = 180.0  # for torch to be imported from a cold disk, and CUDA to be set up
XFORMERS = "xformers"


def check(subject: Subject) -> Iterator[Finding]:
    """Finds what torch is once, then each device."""
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
    """What torch reports of a device, or the reason why it cannot be used."""
    name = "cuda:0" if device.kind == "cuda" else "cpu"
    command = [sys.executable, "-m", "workers.engine.examine", name]
    environment = os.environ | {VARIABLE: device.token or ""}
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"torch does not answer within {SECONDS:g} s"
    if done.returncode < 0:
        return f"a process that uses torch is ended by signal {-done.returncode}: {_last(done.stderr)}"
    try:
        return msgspec.json.decode(done.stdout, type=Examined)
    except msgspec.DecodeError:
        return f"torch cannot be used: {_last(done.stderr)}"


def _last(said: bytes) -> str:
    return said.decode(errors="replace").strip().rpartition("\n")[2] or "it said nothing"


def of_device(device: DeviceSpec, answer: Examined | str, weights: int) -> Iterator[Finding]:
    """The findings for a device, from what torch reports or why it cannot be used."""
    if isinstance(answer, str):
        yield Finding("torch", Level.MISSING, f"{device.id}: {answer}", INSTALL)
        return
    if answer.flaw:
        remedy = "see that nvidia-smi works, and that the driver is not older than torch's CUDA"
        yield Finding("torch", Level.MISSING, f"{device.id}: torch cannot compute on it: {answer.flaw}", remedy)
        return
    facts = [f"{device.id}: torch computes on {answer.device}"]
    if answer.capability is not None:
        facts.append(f"compute capability {answer.capability}")
    yield Finding("torch", Level.OK, ", ".join(facts))
    if answer.memory is not None:
        yield _memory(device, *answer.memory, weights)
    yield _kernels(device, answer)


def _memory(device: DeviceSpec, free: int, total: int, weights: int) -> Finding:
    text = f"{device.id}: {size(free)} of {size(total)} free; the weights take {size(weights)}, each image some more"
    if free < weights:
        return Finding("gpu memory", Level.MISSING, text, "end what else runs on it (nvidia-smi), or choose another")
    return Finding("gpu memory", Level.OK, text)


def _kernels(device: DeviceSpec, answer: Examined) -> Finding:
    usable = [name for name, flaw in answer.kernels.items() if not flaw]
    lacking = [f"{name} ({flaw})" for name, flaw in answer.kernels.items() if flaw]
    text = f"{device.id}: {', '.join(usable) or 'none'}" + f"; not {', '.join(lacking)}" * bool(lacking)
    if answer.kernels.get(XFORMERS):
        return Finding("attention", Level.WARNING, text, command("-m", "pip", "install", "-c", PINS, ".[gpu]"))
    return Finding("attention", Level.OK, text)
