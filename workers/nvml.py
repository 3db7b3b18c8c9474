"""NVML: the machine's GPUs, their readings, their errors (XIDs, ECC), and whether the driver can run torch.

Whatever a device or driver does not support is None, never an error.
"""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

from workers.devices import Gpu, torch_cuda

log = logging.getLogger("contour.nvml")

WAIT_MILLISECONDS = 500  # for an event; closing may take as long
PERCENT = 100.0
MILLIWATTS = 1000.0

# Reasons for reduced clocks. Idling and clocks set by an administrator are left out.
THROTTLE_REASONS: Mapping[str, int] = {
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "sw_thermal": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}

# The oldest driver for each major version of CUDA. A driver runs every build for its own major version, whatever the
# minor one, and for those before it. Source: NVIDIA's "CUDA Compatibility".
OLDEST_DRIVERS = {11: "450.80", 12: "525.60", 13: "580.65"}

ECC = 48  # the XID of a double-bit ECC error, which some drivers report as an event of its own
EVENTS = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError

T = TypeVar("T")
Alarm = Callable[[Gpu, int], None]  # a GPU and the XID that it reports


@dataclass(frozen=True, slots=True)
class Reading:
    """Readings of a device: share of time with a kernel running (0..1), bytes, degrees Celsius, watts."""

    utilization: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    temperature: float | None = None
    power: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


class Nvml:
    """NVML, opened. `library` is the pynvml module, or something that behaves like it."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._xids: Counter[tuple[str, int]] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._listener: threading.Thread | None = None
        self._alarm: Alarm = lambda gpu, error: None

    @classmethod
    def open(cls, library: Any = pynvml) -> "Nvml | None":
        """Load NVML; None where there is no driver, or it does not answer."""
        try:
            library.nvmlInit()
        except pynvml.NVMLError as error:
            log.debug("NVML: %s", error)
            return None
        return cls(library)

    def run(self, alarm: Alarm = lambda gpu, error: None) -> None:
        """Count errors until `close`, in a separate thread, which calls `alarm` for each."""
        self._alarm = alarm
        self._listener = threading.Thread(target=self._listen, name="xid events", daemon=True)
        self._listener.start()

    def close(self) -> None:
        """Stop counting and close NVML."""
        self._closing.set()
        if self._listener is not None:
            self._listener.join()
        self._library.nvmlShutdown()

    def devices(self) -> list[Gpu]:
        """Return every GPU that answers, with its MIG instances."""
        return [gpu for handle in self._handles() if (gpu := self._describe(handle)) is not None]

    def read(self, uuid: str) -> Reading:
        """Read a GPU or MIG instance. Readings that an instance does not have are those of its GPU."""
        handle = self._ask(self._library.nvmlDeviceGetHandleByUUID, uuid)
        if handle is None:
            return Reading()
        gpu = self._ask(self._library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) or handle
        memory = self._ask(self._library.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(self._library.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._ask(self._library.nvmlDeviceGetPowerUsage, gpu)
        return Reading(
            utilization=None if rates is None else rates.gpu / PERCENT,
            memory_used=None if memory is None else memory.used,
            memory_total=None if memory is None else memory.total,
            temperature=self._ask(self._library.nvmlDeviceGetTemperatureV, gpu, pynvml.NVML_TEMPERATURE_GPU),
            power=None if milliwatts is None else milliwatts / MILLIWATTS,
            throttle_reasons=self._throttle_reasons(gpu),
        )

    def driver(self) -> str | None:
        """The driver's version."""
        return self._ask(self._library.nvmlSystemGetDriverVersion)

    def cuda(self) -> tuple[int, int] | None:
        """The latest CUDA that the driver runs: its major and minor version."""
        number = self._ask(self._library.nvmlSystemGetCudaDriverVersion_v2)
        return None if number is None else (number // 1000, number % 1000 // 10)

    def capability(self, uuid: str) -> str | None:
        """A GPU's compute capability, such as 9.0."""
        handle = self._ask(self._library.nvmlDeviceGetHandleByUUID, uuid)
        numbers = None if handle is None else self._ask(self._library.nvmlDeviceGetCudaComputeCapability, handle)
        return None if numbers is None else ".".join(map(str, numbers))

    def xids(self) -> Mapping[tuple[str, int], int]:
        """How many errors each GPU has had since `run`, by (UUID, XID)."""
        with self._lock:
            return dict(self._xids)

    def _ask(self, question: Callable[..., T], *arguments: object) -> T | None:
        """The answer, or None where NVML has none."""
        try:
            return question(*arguments)
        except pynvml.NVMLError:
            return None

    def _handles(self) -> Iterator[Any]:
        for index in range(self._ask(self._library.nvmlDeviceGetCount) or 0):
            handle = self._ask(self._library.nvmlDeviceGetHandleByIndex, index)
            if handle is None:
                log.warning("GPU %d is ignored: NVML counts it but cannot open it", index)
            else:
                yield handle

    def _describe(self, handle: Any) -> Gpu | None:
        uuid = self._ask(self._library.nvmlDeviceGetUUID, handle)
        if uuid is None:
            log.warning("A GPU is ignored: it has no UUID")
            return None
        mode = self._ask(self._library.nvmlDeviceGetMigMode, handle)
        in_mig_mode = mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE
        return Gpu(
            uuid=uuid,
            name=self._ask(self._library.nvmlDeviceGetName, handle) or "GPU",
            instances=tuple(self._instances(handle)) if in_mig_mode else None,
        )

    def _instances(self, handle: Any) -> Iterator[str]:
        for index in range(self._ask(self._library.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
            instance = self._ask(self._library.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
            uuid = None if instance is None else self._ask(self._library.nvmlDeviceGetUUID, instance)
            if uuid is not None:
                yield uuid

    def _throttle_reasons(self, gpu: Any) -> tuple[str, ...] | None:
        bits = self._ask(self._library.nvmlDeviceGetCurrentClocksEventReasons, gpu)
        if bits is None:
            return None
        return tuple(name for name, bit in THROTTLE_REASONS.items() if bits & bit)

    # ---------------------------------------------------------------------------------------------------- XID errors

    def _listen(self) -> None:
        """Wait for events, in bounded portions, until closed."""
        with self._event_set() as events:
            while events is not None and not self._closing.is_set():
                try:
                    self._count(self._library.nvmlEventSetWait_v2(events, WAIT_MILLISECONDS))
                except pynvml.NVMLError_Timeout:
                    continue
                except pynvml.NVMLError as error:
                    log.warning("Waiting for XID events failed: %s", error)
                    self._closing.wait(WAIT_MILLISECONDS / 1000)

    @contextlib.contextmanager
    def _event_set(self) -> Iterator[Any]:
        """Events of every GPU that reports XIDs; None where none does."""
        events = self._ask(self._library.nvmlEventSetCreate)
        if events is None:
            yield None
            return
        try:
            wanted = [self._register(handle, events) for handle in self._handles()]
            yield events if any(wanted) else None
        finally:
            self._ask(self._library.nvmlEventSetFree, events)

    def _register(self, handle: Any, events: Any) -> bool:
        supported = self._ask(self._library.nvmlDeviceGetSupportedEventTypes, handle)
        try:
            self._library.nvmlDeviceRegisterEvents(handle, EVENTS if supported is None else EVENTS & supported, events)
        except pynvml.NVMLError as error:
            log.info("A GPU does not report XID errors: %s", error)
            return False
        return True

    def _count(self, event: Any) -> None:
        """Count an event; `event.eventData` is its XID, if it has one."""
        xid = ECC if event.eventType == pynvml.nvmlEventTypeDoubleBitEccError else int(event.eventData)
        gpu = self._describe(event.device)
        uuid = gpu.uuid if gpu is not None else "unknown"
        log.error("GPU %s reports XID %d", uuid, xid)
        with self._lock:
            self._xids[uuid, xid] += 1
        if gpu is not None:
            self._alarm(gpu, xid)


# ---------------------------------------------------------------------------------------------------------- driver


@dataclass(frozen=True, slots=True)
class DriverFault:
    """A problem with the driver, and what to do about it."""

    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}: {self.remedy}"


def driver_fault(nvml: Nvml | None, built: str | None = None) -> DriverFault | None:
    """Return why the driver cannot run torch's CUDA code; None if it can, or does not say what it runs.

    `built`: the CUDA that torch was built for, as in "13.0"; None asks torch.
    """
    supported, built = None if nvml is None else nvml.cuda(), built or torch_cuda()
    if nvml is None or supported is None or built is None:
        return None
    wanted = int(built.split(".")[0])
    if supported[0] >= wanted:
        return None
    name, limit = nvml.driver() or "of an unknown version", ".".join(map(str, supported))
    text = f"The NVIDIA driver ({name}) supports CUDA up to {limit}, but the installed torch was built for CUDA {built}"
    driver = f"driver {OLDEST_DRIVERS[wanted]} or newer" if wanted in OLDEST_DRIVERS else "a newer driver"
    return DriverFault(text, f"install {driver}, or a torch built for CUDA {supported[0]}")
