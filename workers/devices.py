"""The choice of devices: one worker for each.

CUDA_VISIBLE_DEVICES means here what it means to CUDA: indices or UUIDs, up to the first that is not valid, and nothing
at all where one comes twice. But each device gets its own process, which sees that one token, verbatim. So it may
list several MIG instances, of which CUDA shows a process only one. NVML lists what there is; torch is not imported.
"""

import importlib.util
import re
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from workers.logs import counted

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A worker and its device. `token` is what its CUDA_VISIBLE_DEVICES is set to; None on a CPU."""

    id: str
    kind: Literal["cuda", "cpu"]
    token: str | None


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The device of each worker, and the reason for the choice as a sentence."""

    devices: tuple[DeviceSpec, ...]
    reason: str

    @property
    def on_gpu(self) -> bool:
        return self.devices[0].kind == "cuda"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as NVML lists it. `instances` are the UUIDs of its MIG instances; None where MIG is off."""

    uuid: str
    name: str
    instances: tuple[str, ...] | None = None


class Inventory(Protocol):
    """Lists the GPUs of this machine."""

    def devices(self) -> Sequence[Gpu]:
        """Return all of them, whatever CUDA_VISIBLE_DEVICES says."""


def choose_devices(
    environ: Mapping[str, str], nvml: Inventory | None, cpu_workers: int, cuda_built: bool | None = None
) -> DeviceChoice:
    """Return a worker for each CUDA device to use; where there is none, CPU workers.

    `cuda_built`: whether the installed torch can use CUDA; None asks torch.
    """
    listed = environ.get(VARIABLE)
    if listed is not None and listed.strip() in ("", "-1"):
        return _on_cpu(cpu_workers, f"{VARIABLE} is {listed.strip() or 'empty'}")
    if nvml is None:
        return _on_cpu(cpu_workers, "No NVIDIA driver found")
    if not (torch_has_cuda() if cuda_built is None else cuda_built):
        return _on_cpu(cpu_workers, "The installed torch was built without CUDA")
    gpus = nvml.devices()
    return _all_of(gpus, cpu_workers) if listed is None else _listed_of(gpus, listed, cpu_workers)


def torch_has_cuda() -> bool:
    """Return whether the installed torch was built with CUDA."""
    return torch_cuda() is not None


def torch_cuda() -> str | None:
    """Return the CUDA that torch was built for. It reads torch's version file, as importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    cuda: str | None = runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    return cuda


def visible_tokens(listed: str, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """Return the tokens of a CUDA_VISIBLE_DEVICES that count, verbatim."""
    tokens = [token.strip() for token in listed.split(",")]
    by_index = not tokens[0].startswith(("GPU-", "MIG-"))
    chosen: dict[str, str] = {}
    for token in tokens:
        device = _by_index(token, gpus) if by_index else _by_uuid(token, gpus)
        if device is None:
            break
        if device in chosen:
            return ()
        chosen[device] = token
    return tuple(chosen.values())


def _by_index(token: str, gpus: Sequence[Gpu]) -> str | None:
    # CUDA reads the leading digits of a token, as strtoul does: 1abc is 1.
    digits = re.match(r"\d+", token)
    return digits[0].lstrip("0") or "0" if digits and int(digits[0]) < len(gpus) else None


def _by_uuid(token: str, gpus: Sequence[Gpu]) -> str | None:
    """Find the one device whose UUID begins so. An instance in the old form, MIG-GPU-UUID/number/number, is itself."""
    if token.startswith("MIG-GPU-"):
        known = any(token.startswith(f"MIG-{gpu.uuid}/") for gpu in gpus)
        return token if known else None
    if token.startswith("MIG-"):
        uuids = [uuid for gpu in gpus for uuid in gpu.instances or ()]
    else:
        uuids = [gpu.uuid for gpu in gpus if token.startswith("GPU-")]
    matches = [uuid for uuid in uuids if uuid.startswith(token)]
    return matches[0] if len(matches) == 1 else None


def _all_of(gpus: Sequence[Gpu], cpu_workers: int) -> DeviceChoice:
    tokens = [uuid for gpu in gpus for uuid in ((gpu.uuid,) if gpu.instances is None else gpu.instances)]
    if not tokens:
        return _on_cpu(cpu_workers, "No GPU has a MIG instance" if gpus else "The NVIDIA driver lists no GPU")
    return _on_gpus(tokens, f"{VARIABLE} is not set, so every GPU: {_names(gpus)}")


def _listed_of(gpus: Sequence[Gpu], listed: str, cpu_workers: int) -> DeviceChoice:
    tokens = visible_tokens(listed, gpus)
    if not tokens:
        return _on_cpu(cpu_workers, f"{VARIABLE}={listed} names no usable device of this machine ({_names(gpus)})")
    named = len(listed.split(","))
    ignored = f", of which only the first {len(tokens)} of {named} name a device" if len(tokens) < named else ""
    return _on_gpus(tokens, f"{VARIABLE}={listed}{ignored}")


def _on_gpus(tokens: Sequence[str], why: str) -> DeviceChoice:
    reason = f"Running on {counted(len(tokens), 'CUDA device')}; {why}"
    return DeviceChoice(tuple(DeviceSpec(f"gpu{i}", "cuda", token) for i, token in enumerate(tokens)), reason)


def _on_cpu(workers: int, why: str) -> DeviceChoice:
    reason = f"{why}; running on the CPU ({counted(workers, 'worker')})"
    return DeviceChoice(tuple(DeviceSpec(f"cpu{i}", "cpu", None) for i in range(workers)), reason)


def _names(gpus: Sequence[Gpu]) -> str:
    return ", ".join(gpu.name + " (MIG)" * (gpu.instances is not None) for gpu in gpus) or "no GPU"
