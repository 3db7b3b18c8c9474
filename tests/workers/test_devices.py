"""Which devices are used, for every way in which they can be named."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from workers.devices import DeviceChoice, DeviceSpec, Gpu, choose_devices, torch_has_cuda

A = Gpu("GPU-aaaa1111-0000-0000-0000-000000000000", "NVIDIA A")
B = Gpu("GPU-bbbb2222-0000-0000-0000-000000000000", "NVIDIA B")
SLICED = Gpu("GPU-cccc3333-0000-0000-0000-000000000000", "NVIDIA C", ("MIG-1111aaaa-00", "MIG-2222bbbb-00"))


@dataclass(frozen=True)
class Machine:
    """A machine with these GPUs, as NVML would list them."""

    gpus: Sequence[Gpu] = ()

    def devices(self) -> Sequence[Gpu]:
        return self.gpus


def placed(listed: str | None, *gpus: Gpu, cpu_workers: int = 2) -> DeviceChoice:
    environ = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    return choose_devices(environ, Machine(gpus), cpu_workers, cuda_built=True)


def tokens(listed: str | None, *gpus: Gpu) -> list[str | None]:
    """The tokens of the CUDA workers; empty where CPU workers are chosen."""
    return [device.token for device in placed(listed, *gpus).devices if device.kind == "cuda"]


def test_each_listed_device_gets_a_worker_and_its_token() -> None:
    assert placed("1,0", A, B).devices == (DeviceSpec("gpu0", "cuda", "1"), DeviceSpec("gpu1", "cuda", "0"))
    assert placed("1,0", A, B).reason == "Running on 2 CUDA devices; CUDA_VISIBLE_DEVICES=1,0"


def test_unset_means_every_device_by_its_uuid() -> None:
    placement = placed(None, A, B)

    assert [device.token for device in placement.devices] == [A.uuid, B.uuid]
    reason = "Running on 2 CUDA devices; CUDA_VISIBLE_DEVICES is not set, so every GPU: NVIDIA A, NVIDIA B"
    assert placement.reason == reason


def test_unset_means_the_instances_of_a_device_in_mig_mode() -> None:
    assert tokens(None, A, SLICED) == [A.uuid, "MIG-1111aaaa-00", "MIG-2222bbbb-00"]


@pytest.mark.parametrize(
    ("listed", "used"),
    [
        ("0", ["0"]),
        (" 0 , 1 ", ["0", "1"]),
        ("0,7,1", ["0"]),
        ("0,-1,1", ["0"]),
        ("0,x,1", ["0"]),
        ("0,,1", ["0"]),
        ("01", ["01"]),
        ("1abc", ["1abc"]),
        ("0,GPU-bbbb2222", ["0"]),
        ("0,0", []),
        ("0,00", []),
        ("7", []),
        ("none", []),
        ("NoDevFiles", []),
    ],
)
def test_indices_count_up_to_the_first_that_is_not_valid(listed: str, used: list[str]) -> None:
    assert tokens(listed, A, B) == used


@pytest.mark.parametrize(
    ("listed", "used"),
    [
        (B.uuid, [B.uuid]),
        (f"{B.uuid},{A.uuid}", [B.uuid, A.uuid]),
        ("GPU-bbbb", ["GPU-bbbb"]),
        ("GPU-", []),
        ("GPU-dddd", []),
        (f"{A.uuid},1", [A.uuid]),
        (f"GPU-aaaa,{A.uuid}", []),
        ("MIG-2222bbbb-00,MIG-1111aaaa-00", ["MIG-2222bbbb-00", "MIG-1111aaaa-00"]),
        (f"MIG-{SLICED.uuid}/1/0", [f"MIG-{SLICED.uuid}/1/0"]),
        ("MIG-GPU-dddd/1/0", []),
        ("MIG-9999", []),
        (f"{A.uuid},MIG-1111aaaa-00", [A.uuid, "MIG-1111aaaa-00"]),
    ],
)
def test_uuids_are_passed_on_as_they_are(listed: str, used: list[str]) -> None:
    assert tokens(listed, A, B, SLICED) == used


@pytest.mark.parametrize(("listed", "found"), [("", "empty"), ("  ", "empty"), ("-1", "-1")])
def test_empty_and_minus_one_mean_cpu_workers(listed: str, found: str) -> None:
    placement = placed(listed, A)

    assert placement.devices == (DeviceSpec("cpu0", "cpu", None), DeviceSpec("cpu1", "cpu", None))
    assert placement.reason == f"CUDA_VISIBLE_DEVICES is {found}; running on the CPU (2 workers)"


def test_a_list_that_names_nothing_is_told_with_what_there_is() -> None:
    assert placed("7", A, SLICED).reason == (
        "CUDA_VISIBLE_DEVICES=7 names no usable device of this machine (NVIDIA A, NVIDIA C (MIG)); "
        "running on the CPU (2 workers)"
    )


def test_a_list_that_is_used_in_part_says_so() -> None:
    reason = "Running on 1 CUDA device; CUDA_VISIBLE_DEVICES=0,9,1, of which only the first 1 of 3 name a device"
    assert placed("0,9,1", A, B).reason == reason


def test_no_gpu_means_cpu_workers() -> None:
    assert placed(None).reason == "The NVIDIA driver lists no GPU; running on the CPU (2 workers)"


def test_a_device_in_mig_mode_without_instances_means_cpu_workers() -> None:
    assert placed(None, Gpu("GPU-a", "A", ())).reason == "No GPU has a MIG instance; running on the CPU (2 workers)"


def test_no_driver_means_cpu_workers() -> None:
    placement = choose_devices({"CUDA_VISIBLE_DEVICES": "0"}, None, 1, cuda_built=True)

    assert placement.devices == (DeviceSpec("cpu0", "cpu", None),)
    assert placement.reason == "No NVIDIA driver found; running on the CPU (1 worker)"


def test_a_torch_without_cuda_means_cpu_workers() -> None:
    assert choose_devices({}, Machine([A]), 1, cuda_built=False).reason == (
        "The installed torch was built without CUDA; running on the CPU (1 worker)"
    )


def test_whether_torch_has_cuda_is_known_without_importing_it() -> None:
    script = (
        "import sys; from workers.devices import torch_has_cuda as f; print(f()); assert 'torch' not in sys.modules"
    )
    told = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, check=True)

    import torch

    assert told.stdout.strip() == str(torch.version.cuda is not None) == str(torch_has_cuda())
