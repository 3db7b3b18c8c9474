"""Entry point of a worker process: one process, one device, one engine."""

import ctypes
import gc
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler.messages import Costs, WorkerReady
from workers.channel import Device, Trying, send
from workers.confinement import drop_privileges
from workers.devices import DeviceSpec
from workers.engine.config import EngineConfig
from workers.engine.contract import Engine
from workers.engine.metadata import About, Metadata
from workers.engine.trials import Trials
from workers.folders import COMPILER_CACHES
from workers.logs import LogFormat, configure
from workers.machine import available_cores, keep_freed_memory
from workers.process import die_with_parent, set_process_name
from workers.shared_memory import SlotMemory
from workers.worker import Worker, exit_with

SPINS = "10000"  # looks for work before an OpenMP thread sleeps; on idle cores this costs nothing
SWITCH_SECONDS = 5e-4  # after which a thread that computes in Python, as the compiler does, lets the steps' thread run


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """All that a worker process is started with."""

    device: DeviceSpec
    engine: EngineConfig
    threads: int
    log_level: str = "info"
    cache: str | None = None  # the folder for what compilers make
    log_format: LogFormat = "human"
    about: About = field(default_factory=About)
    workers: int = 1  # of this machine, which share its cores
    without: frozenset[str] = frozenset()  # what ended this device's last processes (`engine.trials`)
    parent: int = field(default_factory=os.getpid)

    @property
    def name(self) -> str:
        """The name of the process in the log."""
        return f"worker {self.device.id}"

    @property
    def main(self) -> Callable[[Any, socket.socket, SlotMemory], None]:
        """Its entry point."""
        return main


def main(setup: WorkerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of the process: load the model and serve until `Stop`, or until the pool is gone."""
    try:
        engine, costs = start(setup, channel)
        worker = Worker(setup.device.id, engine, channel, memory, costs, Metadata(setup.engine, setup.about))
        worker.report_status()  # before it is ready, so that its start is logged as a whole
        send(channel, _describe(setup.device))
        send(channel, WorkerReady(setup.device.id, costs))
        worker.run()
        os._exit(0)  # Python would end the compiler's thread inside a library's C++, which aborts the process
    except Exception as error:  # noqa: BLE001 - crash-only: the pool learns why and runs the images elsewhere
        exit_with(channel, error)


# ------------------------------------------------------------------------------------------------------------- start


def start(setup: WorkerSetup, channel: socket.socket) -> tuple[Engine[Any], Costs]:
    """Make this process a worker's, load the model, and warm it up."""
    die_with_parent(setup.parent)
    set_process_name(f"contour {setup.device.id}")
    _set_environment(setup)
    if setup.device.kind == "cuda":
        _make_device_files()
    drop_privileges()
    with _without_garbage_collection():
        engine = _load(setup, Trials(lambda names: send(channel, Trying(names)), setup.without))
        return engine, engine.warm_up()


def _set_environment(setup: WorkerSetup) -> None:
    """Set what libraries read when they are imported, such as the one device that this process may see."""
    keep_freed_memory()
    configure(setup.log_level, setup.log_format)
    os.environ["CUDA_VISIBLE_DEVICES"] = setup.device.token or ""
    os.environ["OMP_NUM_THREADS"] = str(setup.threads)
    # OpenMP's threads, which are torch's, spin while they wait for each other. Where others need the cores too, that
    # keeps all from working: with two workers of two threads on two cores, a step by torch took 2.5 s instead of .45.
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # torch's compiler would start a process for each core of the machine, in each worker.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, available_cores() // setup.workers)))
    sys.setswitchinterval(SWITCH_SECONDS)
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # a worker fetches and reports nothing
    if setup.cache is not None:
        for name, kind in COMPILER_CACHES.items():
            os.environ.setdefault(name, str(Path(setup.cache).expanduser() / kind))


def _make_device_files() -> None:
    """Initialise CUDA while setuid programs still work.

    After a boot, /dev/nvidia-uvm may be missing. libcuda then makes it by nvidia-modprobe, which is setuid.
    """
    with suppress(OSError):  # no libcuda: the engine says so
        ctypes.CDLL("libcuda.so.1").cuInit(0)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collect no garbage while the model loads: nothing of it is garbage, and looking takes an eighth of the time.

    It stays out of later collections too (`gc.freeze`): 500,000 objects take long enough to delay a step.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _load(setup: WorkerSetup, trials: Trials) -> Engine[Any]:
    from workers.engine import build

    return build(setup.engine, "cuda:0" if setup.device.kind == "cuda" else "cpu", trials)


def _describe(device: DeviceSpec) -> Device:
    """Return the device that CUDA really gave us."""
    if device.kind == "cpu":
        return Device("CPU", None)
    import torch

    properties = torch.cuda.get_device_properties(0)
    if device.token is not None and device.token.startswith("MIG-"):
        return Device(properties.name, device.token)
    return Device(properties.name, f"GPU-{properties.uuid}")
