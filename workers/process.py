"""A worker's process: one process, one device, one engine."""

import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from scheduler.messages import WorkerReady
from workers import wire
from workers.allocator import keep_freed_memory
from workers.confinement import drop_privileges
from workers.devices import DeviceSpec
from workers.engine.config import EngineConfig
from workers.engine.contract import Engine
from workers.engine.metadata import About, Metadata
from workers.engine.trials import Trials
from workers.folders import COMPILER_CACHES
from workers.logs import LogFormat, configure
from workers.machine import available_cores
from workers.slots import SlotMemory
from workers.worker import Worker, end

SWITCH_SECONDS = 5e-4  # after which a thread that computes in Python, as the compiler does, lets the steps' thread run
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # <linux/prctl.h>
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # that are sent to a whole group: by Ctrl-C, by `systemctl stop`


@dataclass(frozen=True, slots=True)
class Setup:
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
        """What the log calls the process."""
        return f"worker {self.device.id}"

    @property
    def main(self) -> Callable[[Any, socket.socket, SlotMemory], None]:
        """Its entry point."""
        return main


def main(setup: Setup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of the process: load the model and serve until `Stop`, or until the pool is gone."""
    die_with_parent(setup.parent)
    set_process_name(f"contour {setup.device.id}")
    _set_environment(setup)
    if setup.device.kind == "cuda":
        _make_device_files()
    drop_privileges()
    try:
        with _without_garbage_collection():
            engine = _load(setup, Trials(lambda names: wire.send(channel, wire.Trying(names)), setup.without))
            costs = engine.warm_up()
        worker = Worker(setup.device.id, engine, channel, memory, costs, Metadata(setup.engine, setup.about))
        worker.report_status()  # before it is ready, so that its start is logged as a whole
        wire.send(channel, _describe(setup.device))
        wire.send(channel, WorkerReady(setup.device.id, costs))
        worker.run()
    except Exception as error:  # noqa: BLE001 - crash-only: the pool learns why and runs the images elsewhere
        end(channel, error)


# ------------------------------------------------------------------------------------------------------------- start


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block Ctrl-C for a process that is started within, until its `die_with_parent` ignores it.

    On a terminal Ctrl-C signals the whole group, and would end a process that still imports modules with a traceback.
    A process inherits blocked signals. multiprocessing blocks them for its own tracker, whose start unblocks them: so
    that is started before.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent, and ignore the signals that end a whole group.

    The parent gets those too, and decides when this process ends.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)


def set_process_name(name: str) -> None:
    """Name this process for `ps -o pid,comm` and `top`, which show 15 bytes: `/readyz` tells no process ids."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())


def _set_environment(setup: Setup) -> None:
    """Set what libraries read when they are imported, such as the one device that this process may see."""
    keep_freed_memory()
    configure(setup.log_level, setup.log_format)
    os.environ["CUDA_VISIBLE_DEVICES"] = setup.device.token or ""
    os.environ["OMP_NUM_THREADS"] = str(setup.threads)
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
    """Collect no garbage while the model loads: what is imported and loaded stays, and looking takes an eighth of it.

    Nor is it looked at later: with some 500,000 objects, that would be felt between two steps.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _load(setup: Setup, trials: Trials) -> Engine[Any]:
    from workers.engine import build

    return build(setup.engine, "cuda:0" if setup.device.kind == "cuda" else "cpu", trials)


def _describe(device: DeviceSpec) -> wire.Device:
    """Return the device that CUDA really gave us."""
    if device.kind == "cpu":
        return wire.Device("CPU", None)
    import torch

    properties = torch.cuda.get_device_properties(0)
    if device.token is not None and device.token.startswith("MIG-"):
        return wire.Device(properties.name, device.token)
    return wire.Device(properties.name, f"GPU-{properties.uuid}")
