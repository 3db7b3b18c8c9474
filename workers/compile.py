"""python -m workers.compile CONFIG: compile the networks of a configuration ahead of serving, on this machine.

It does what workers do in their first minutes, and fills the same folders of workers.cache: it converts the networks
for OpenVINO, or has torch compile them and time its kernels, for all configured sizes and numbers of images. Run it
where the service will run, or on a machine with the same device: what is compiled depends on that. `workers.convert`
makes only files that do not.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from socket import socket
from typing import Any

from workers.channel import StatusChanged, send, shortened, summary
from workers.config import WorkersConfig
from workers.console import Parser, leave
from workers.convert import cache_folder, read_sections
from workers.devices import choose_devices
from workers.document import SettingsError
from workers.engine.config import EngineConfig
from workers.engine.contract import EngineStatus
from workers.engine.runtimes.files import RuntimeProblem
from workers.engine.trials import COMPILING
from workers.engine.weights import MissingWeightsError, absent
from workers.machine import available_cores
from workers.nvml import Nvml
from workers.process import LAST_REPORTS, SPAWN, Child, ProcessExit
from workers.shared_memory import SlotLayout, SlotMemory
from workers.worker import exit_with
from workers.worker_main import WorkerSetup, start

SILENCE_S = 2 * 3600.0  # without a trial that begins or ends: the process gives a compiler up after half of this


@dataclass(frozen=True, slots=True)
class CompilerSetup(WorkerSetup):
    """A worker process that ends when all is compiled."""

    @property
    def name(self) -> str:
        return f"compiler {self.device.id}"

    @property
    def main(self) -> Any:
        return compile_all


def compile_all(setup: CompilerSetup, channel: socket, memory: SlotMemory) -> None:
    """Entry point of such a process."""
    try:
        engine: Any = start(setup, channel)[0]  # it is none of those that compile nothing
        engine.wait_until_compiled(math.inf)  # what hangs is given up
        send(channel, StatusChanged(shortened(engine.status())))
    except Exception as error:  # noqa: BLE001 - the parent says why
        exit_with(channel, error)
    os._exit(0)  # as a worker does


def main(arguments: Sequence[str]) -> int:
    """Compile for one device after the other; the exit code."""
    parser = Parser("workers.compile", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file, see configs/")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        engine, workers = read_sections(options.config)
        if engine.kind == "echo":
            print(f"{options.config}: engine.kind is echo, which has no networks to compile", file=sys.stderr)
            return 0
        if missing := absent(engine):
            raise MissingWeightsError(missing[0])
        cache_folder(workers.cache)
    except (SettingsError, RuntimeProblem, MissingWeightsError) as error:
        print(str(error).replace("CONFIG", str(options.config)), file=sys.stderr)
        return 1
    return max(map(_compile_for, _setups(engine, workers)))


def _setups(engine: EngineConfig, workers: WorkersConfig) -> list[CompilerSetup]:
    """A process for each GPU, or for one of the CPU's workers, as they are all alike; each as the service starts it."""
    chosen = choose_devices(os.environ, Nvml.open(), workers.cpu_workers)
    threads = workers.threads_per_worker(available_cores(), len(chosen.devices))
    devices = chosen.devices if chosen.on_gpu else chosen.devices[:1]
    return [CompilerSetup(device, engine, threads, cache=workers.cache) for device in devices]


def _compile_for(setup: CompilerSetup) -> int:
    began = time.monotonic()
    status, end = _run(setup)
    while status is None and (new := frozenset(end.tried) - setup.without) and COMPILING not in new:
        print(f"{setup.device.id}: {end.reason}, while it tried {' and '.join(end.tried)}; without it", file=sys.stderr)
        setup = replace(setup, without=setup.without | new)  # as workers do that are restarted
        status, end = _run(setup)
    if status is None:
        tried = f", while it tried {' and '.join(end.tried)}" if end.tried else ""
        print(f"{setup.device.id}: not compiled: {end.reason}{tried}", file=sys.stderr)
        return 1
    if not any(number for kind, number in status.graphs if kind.endswith("compiled")):
        print(f"{setup.device.id}: nothing is compiled, see engine.runtime and engine.speed.compile", file=sys.stderr)
    print(f"{setup.device.id}: {summary(status)}; in {setup.cache}, after {time.monotonic() - began:.0f} s")
    failed = [f"{reason} ({times})" for reason, times in status.fallbacks]
    if failed:
        print(f"{setup.device.id}: not all went well, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(setup: CompilerSetup) -> tuple[EngineStatus | None, ProcessExit]:
    """Run a process to its end; its status if all was tried, and how it ended."""
    memory = SlotMemory.create(SlotLayout(1, 1, 1))
    child, status, ended = Child(SPAWN, setup, memory), None, False
    try:
        while not ended:
            ready = wait([child.channel, child.sentinel], SILENCE_S)
            ended = child.sentinel in ready
            if not ready:
                child.kill()
            for report in child.reports(LAST_REPORTS):
                status = report.status if isinstance(report, StatusChanged) else status
    except BaseException:
        child.kill()
        raise
    finally:
        end = child.reap()
        memory.close()
    return status, end


if __name__ == "__main__":
    leave(main)
