"""Readings and error counts, against an NVML that is made up; all the rest is real."""

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from workers.devices import Gpu
from workers.nvml import Nvml, Reading

WHOLE = "GPU-whole"
SLICED = "GPU-sliced"
SLICE = "MIG-slice"


class FakeLibrary:
    """pynvml on a machine with a whole GPU and one in MIG mode, whose second of three places holds an instance.

    Handles are the UUIDs. `unsupported` names the calls that this driver does not know.
    """

    def __init__(self, *unsupported: str) -> None:
        self.unsupported = unsupported
        self.events: queue.Queue[Any] = queue.Queue()
        self.registered: list[str] = []
        self.closed: list[str] = []
        self.cuda = 12090

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.unsupported:
            return self._refuse
        return super().__getattribute__(name)

    def _refuse(self, *arguments: object) -> None:
        raise pynvml.NVMLError_NotSupported

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.closed.append("library")

    def nvmlSystemGetDriverVersion(self) -> str:
        return "575.51"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> tuple[int, int]:
        return (9, 0)

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return (WHOLE, SLICED)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in (WHOLE, SLICED, SLICE):
            raise pynvml.NVMLError_NotFound
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"NVIDIA {handle}"

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        return [int(handle == SLICED), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 3

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:
        if index != 1:
            raise pynvml.NVMLError_NotFound
        return SLICE

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:
        if handle != SLICE:
            raise pynvml.NVMLError_InvalidArgument
        return SLICED

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=1, total=10) if handle == SLICE else SimpleNamespace(used=3, total=80)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        if handle == SLICE:
            raise pynvml.NVMLError_NotSupported
        return SimpleNamespace(gpu=25, memory=0)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        if handle == SLICE:
            raise pynvml.NVMLError_NotSupported
        return 350_500

    def nvmlDeviceGetTemperatureV(self, handle: str, sensor: int) -> int:
        if handle == SLICE:
            raise pynvml.NVMLError_NotSupported
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        idle, sw_power_cap, hw_thermal = 0x1, 0x4, 0x40
        return idle | sw_power_cap | hw_thermal

    def nvmlEventSetCreate(self) -> str:
        return "events"

    def nvmlDeviceGetSupportedEventTypes(self, handle: str) -> int:
        kinds: int = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeClock
        return kinds | (pynvml.nvmlEventTypeDoubleBitEccError if handle == WHOLE else 0)

    def nvmlDeviceRegisterEvents(self, handle: str, kinds: int, events: str) -> None:
        assert kinds == self.nvmlDeviceGetSupportedEventTypes(handle) - pynvml.nvmlEventTypeClock
        self.registered.append(handle)

    def nvmlEventSetWait_v2(self, events: str, milliseconds: int) -> SimpleNamespace:
        try:
            event = self.events.get(timeout=min(milliseconds, 20) / 1000)
        except queue.Empty:
            raise pynvml.NVMLError_Timeout from None
        if isinstance(event, Exception):
            raise event
        kind = pynvml.nvmlEventTypeXidCriticalError if event[1] else pynvml.nvmlEventTypeDoubleBitEccError
        return SimpleNamespace(device=event[0], eventType=kind, eventData=event[1])

    def nvmlEventSetFree(self, events: str) -> None:
        self.closed.append(events)


@contextmanager
def counting(library: FakeLibrary) -> Iterator[Nvml]:
    nvml = Nvml(library)
    nvml.run()
    yield nvml
    nvml.close()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_devices_are_listed_with_their_instances() -> None:
    assert Nvml(FakeLibrary()).devices() == [Gpu(WHOLE, "NVIDIA GPU-whole"), Gpu(SLICED, "NVIDIA GPU-sliced", (SLICE,))]


def test_a_driver_that_knows_no_mig_lists_whole_devices() -> None:
    assert [gpu.instances for gpu in Nvml(FakeLibrary("nvmlDeviceGetMigMode")).devices()] == [None, None]


@pytest.mark.parametrize("silent", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID"])
def test_a_device_that_does_not_answer_is_left_out(silent: str) -> None:
    assert Nvml(FakeLibrary(silent)).devices() == []


def test_a_reading_is_in_plain_units() -> None:
    assert Nvml(FakeLibrary()).read(WHOLE) == Reading(
        utilization=0.25,
        memory_used=3,
        memory_total=80,
        temperature=61,
        power=350.5,
        throttle_reasons=("sw_power_cap", "hw_thermal"),
    )


def test_an_instance_has_its_own_memory_and_its_gpus_heat() -> None:
    reading = Nvml(FakeLibrary()).read(SLICE)

    assert (reading.memory_used, reading.memory_total) == (1, 10)
    assert (reading.temperature, reading.power) == (61, 350.5)
    assert reading.utilization is None


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("nvmlDeviceGetUtilizationRates", "utilization"),
        ("nvmlDeviceGetMemoryInfo", "memory_used"),
        ("nvmlDeviceGetMemoryInfo", "memory_total"),
        ("nvmlDeviceGetTemperatureV", "temperature"),
        ("nvmlDeviceGetPowerUsage", "power"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "throttle_reasons"),
    ],
)
def test_unsupported_readings_are_none_and_others_are_read(call: str, field: str) -> None:
    reading = Nvml(FakeLibrary(call)).read(WHOLE)

    assert getattr(reading, field) is None
    assert reading != Reading()


def test_driver_and_compute_capability_are_told_where_they_are_known() -> None:
    nvml, silent = Nvml(FakeLibrary()), FakeLibrary("nvmlSystemGetDriverVersion", "nvmlDeviceGetCudaComputeCapability")
    assert (nvml.driver(), nvml.capability(WHOLE), nvml.capability("GPU-unknown")) == ("575.51", "9.0", None)
    assert (Nvml(silent).driver(), Nvml(silent).capability(WHOLE)) == (None, None)


def test_an_unknown_device_has_no_readings() -> None:
    assert Nvml(FakeLibrary()).read("GPU-other") == Reading()


def test_without_a_driver_there_is_no_nvml() -> None:
    assert Nvml.open(FakeLibrary("nvmlInit")) is None


def test_xid_errors_are_counted_by_device_and_number() -> None:
    library = FakeLibrary()
    with counting(library) as nvml:
        for event in ((WHOLE, 31), (SLICED, 79), (WHOLE, 31)):
            library.events.put(event)
        wait_until(lambda: sum(nvml.xids().values()) == 3)

    assert nvml.xids() == {(WHOLE, 31): 2, (SLICED, 79): 1}
    assert library.registered == [WHOLE, SLICED]


def test_an_uncorrected_memory_error_counts_as_its_xid_where_it_is_told_apart() -> None:
    library = FakeLibrary()
    with counting(library) as nvml:
        library.events.put((WHOLE, 0))
        wait_until(lambda: nvml.xids() == {(WHOLE, 48): 1})


def test_each_error_rings_the_alarm_with_its_gpu_and_what_runs_on_parts_of_it() -> None:
    library, rung = FakeLibrary(), list[tuple[Gpu, int]]()
    nvml = Nvml(library)
    nvml.run(lambda gpu, xid: rung.append((gpu, xid)))
    library.events.put((SLICED, 79))
    wait_until(lambda: bool(rung))
    nvml.close()
    assert rung == [(Gpu(SLICED, f"NVIDIA {SLICED}", (SLICE,)), 79)]


def test_counting_goes_on_after_an_error() -> None:
    library = FakeLibrary()
    with counting(library) as nvml:
        library.events.put(pynvml.NVMLError_Unknown())
        library.events.put((WHOLE, 48))
        wait_until(lambda: nvml.xids() == {(WHOLE, 48): 1})


@pytest.mark.parametrize("missing", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_devices_that_report_no_xids_are_not_waited_for(missing: str) -> None:
    with counting(FakeLibrary(missing)) as nvml:
        assert nvml.xids() == {}


def test_closing_frees_the_events_before_the_library() -> None:
    library = FakeLibrary()
    with counting(library):
        wait_until(lambda: bool(library.registered))

    assert library.closed == ["events", "library"]


def test_closing_without_counting_is_fine() -> None:
    library = FakeLibrary()
    Nvml(library).close()

    assert library.closed == ["library"]
