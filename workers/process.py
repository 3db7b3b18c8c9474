"""The worker: one process, one device, one engine.

Three kinds of thread. The reader takes orders off the socket. A few hands decode, tokenise, wait for finished pixels
and encode them. The main thread alone gives the device work and owns all state here: the others pass it what they
have through one inbox.
"""

import ctypes
import os
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from workers import wire
from workers.allocator import keep_freed_memory
from workers.devices import DeviceSpec
from workers.engine.config import EngineConfig
from workers.engine.contract import BadPictureError, Condition, Engine, Task
from workers.logs import configure
from workers.slots import SlotMemory

HANDS = 3  # threads: one decodes the next picture while others wait for the last ones and encode them
IDLE_SECONDS = 2.0  # between two looks at an engine that has nothing to do: it may be compiling in the background
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a worker process is started with."""

    device: DeviceSpec
    engine: EngineConfig
    threads: int
    log_level: str = "info"
    cache: str | None = None  # the folder for what compilers make
    parent: int = field(default_factory=os.getpid)


def main(setup: Setup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of the process: load the model, serve until told to stop or left alone."""
    _die_with_parent(setup.parent)
    _settle(setup)
    try:
        engine = _load(setup)
        costs = engine.warm_up()
        wire.send(
            channel,
            wire.Ready(costs.steps, costs.step_seconds, costs.fixed_seconds, *_describe(setup.device)),
        )
        Worker(engine, channel, memory).run()
    except Exception as error:  # noqa: BLE001 - crash-only: the pool learns why and runs the pictures elsewhere
        traceback.print_exc()
        _last_words(channel, error)
        os._exit(1)  # at once: a thread may be in the middle of a picture that nobody waits for


@dataclass(slots=True)
class _Tenant:
    """The picture in a slot. `admitted`: the engine has it, since `began`. `dropped`: nobody wants it any more."""

    generation: int
    prepare: float = 0.0
    began: float = 0.0
    admitted: bool = False
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class _Prepared:
    slot: int
    seconds: float
    content: Any


@dataclass(frozen=True, slots=True)
class _Gone:
    """The picture in a slot has left, and its report is on its way."""

    slot: int


_Mail: TypeAlias = wire.Order | _Prepared | _Gone


@dataclass(slots=True)
class Worker:
    """Moves pictures from their input slots through the engine to their output slots."""

    engine: Engine[Any]
    channel: socket.socket
    memory: SlotMemory
    _inbox: "queue.SimpleQueue[_Mail]" = field(default_factory=queue.SimpleQueue)
    _tenants: dict[int, _Tenant] = field(default_factory=dict)
    _hands: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(HANDS, "hand"))
    _told: Condition = field(default_factory=Condition)
    _stopping: bool = False

    def run(self) -> None:
        """Serve until `Stop`. Every turn: tell how the engine runs, take the mail, take one step."""
        threading.Thread(target=self._read_orders, name="reader", daemon=True).start()
        while not self._stopping:
            self._tell()
            self._take_mail()
            self._step()
        self._hands.shutdown(wait=False, cancel_futures=True)

    # -------------------------------------------------------------------------------------------------- main thread

    def _tell(self) -> None:
        """Report how the engine runs, if that is news."""
        condition = self.engine.condition()
        if condition != self._told:
            self._told = condition
            wire.send(self.channel, wire.Changed(wire.shortened(condition)))

    def _take_mail(self) -> None:
        """Handle all mail there is; with nothing on the device, wait a while for some."""
        idle = not any(tenant.admitted for tenant in self._tenants.values())
        wait = IDLE_SECONDS if idle else 0.0
        while not self._stopping:
            try:
                mail = self._inbox.get(timeout=wait)
            except queue.Empty:
                return
            self._open(mail)
            wait = 0.0

    def _open(self, mail: _Mail) -> None:
        match mail:
            case wire.Run():
                self._tenants[mail.slot] = _Tenant(mail.generation)
            case _Prepared():
                self._admit(mail)
            case wire.Drop():
                self._drop(mail)
            case _Gone():
                del self._tenants[mail.slot]
            case wire.Stop():
                self._stopping = True

    def _admit(self, prepared: _Prepared) -> None:
        tenant = self._tenants[prepared.slot]
        if tenant.dropped:
            self._release(prepared.slot)
            return
        self.engine.admit(prepared.slot, prepared.content)
        tenant.prepare, tenant.admitted, tenant.began = prepared.seconds, True, time.monotonic()

    def _drop(self, order: wire.Drop) -> None:
        tenant = self._tenants.get(order.slot)
        if tenant is None or tenant.generation != order.generation:
            return  # it left before the order came, and its own report frees the slot
        tenant.dropped = True
        if tenant.admitted:
            self.engine.discard(order.slot)
            self._release(order.slot)

    def _release(self, slot: int) -> None:
        wire.send(self.channel, wire.Released(slot, self._tenants.pop(slot).generation))

    def _step(self) -> None:
        stepped = self.engine.step()
        if not stepped:
            return
        wire.send(self.channel, wire.Stepped(tuple((picture.slot, picture.done) for picture in stepped)))
        for picture in stepped:
            if picture.done == picture.total:
                self._finish(picture.slot)

    def _finish(self, slot: int) -> None:
        tenant = self._tenants[slot]
        denoised = time.monotonic()
        decoding = self.engine.finish(slot)
        tenant.admitted = False
        self._hands.submit(self._deliver, slot, tenant, decoding, denoised)

    # ---------------------------------------------------------------------------------------------- the other threads

    def _read_orders(self) -> None:
        """Pass orders on. End of file means that the pool is gone, and this process with it, whatever it is doing."""
        while (order := wire.receive_order(self.channel)) is not None:
            self._inbox.put(order)
            if isinstance(order, wire.Run):  # at once: the main thread may be in the middle of a step
                self._hands.submit(self._prepare, order)
        os._exit(1)

    def _prepare(self, order: wire.Run) -> None:
        began = time.monotonic()
        data = self.memory.input(order.slot)
        picture = bytes(data[: order.picture_bytes])
        text = str(data[order.picture_bytes : order.picture_bytes + order.text_bytes], "utf-8")
        content = self._guard(
            order.slot, order.generation, lambda: self.engine.prepare(Task(picture, text, order.seed))
        )
        if content is not None:
            self._inbox.put(_Prepared(order.slot, time.monotonic() - began, content))

    def _deliver(self, slot: int, tenant: _Tenant, decoding: object, denoised: float) -> None:
        """Wait for the pixels of a picture whose last step was taken at `denoised`, encode and report them."""
        pixels = self._guard(slot, tenant.generation, lambda: self.engine.collect(decoding))
        if pixels is None:
            return
        collected = time.monotonic()
        data = self._guard(slot, tenant.generation, lambda: self._fitting(self.engine.encode(pixels)))
        if data is None:
            return
        self.memory.output(slot)[: len(data)] = data
        denoise, decode, encode = denoised - tenant.began, collected - denoised, time.monotonic() - collected
        self._leave(wire.Finished(slot, tenant.generation, len(data), tenant.prepare, denoise, decode, encode))

    def _leave(self, report: wire.Finished | wire.Failed) -> None:
        """Empty the slot, then say so: in this order, as the slot's next order may follow the report immediately."""
        self._inbox.put(_Gone(report.slot))
        wire.send(self.channel, report)

    def _fitting(self, data: bytes) -> bytes:
        room = self.memory.layout.output_bytes
        if len(data) > room:
            raise ValueError(f"the picture has {len(data)} bytes, its slot {room}: raise workers.output_bytes")
        return data

    def _guard(self, slot: int, generation: int, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None after reporting that this one picture failed."""
        try:
            return work()
        except BadPictureError as error:
            self._leave(wire.Failed(slot, generation, str(error)[: wire.REASON_CHARS], refused=True))
        except Exception as error:  # noqa: BLE001 - one picture failed, and its client is told why
            traceback.print_exc()
            self._leave(wire.Failed(slot, generation, _summary(error), refused=False))
        return None


# ------------------------------------------------------------------------------------------------------------- start


def _die_with_parent(parent: int) -> None:
    """Have the kernel end this process with its parent, which may be killed before it can say so."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    # Ctrl-C and `systemctl stop` signal the whole group: the server decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _settle(setup: Setup) -> None:
    """Show this process its own device only, before anything that asks CUDA is imported."""
    keep_freed_memory()
    configure(setup.log_level)
    os.environ["CUDA_VISIBLE_DEVICES"] = setup.device.token or ""
    os.environ["OMP_NUM_THREADS"] = str(setup.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if setup.cache is not None:
        for name, kind in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
            os.environ.setdefault(name, str(Path(setup.cache).expanduser() / kind))


def _load(setup: Setup) -> Engine[Any]:
    from workers.engine import build

    return build(setup.engine, "cuda:0" if setup.device.kind == "cuda" else "cpu")


def _describe(device: DeviceSpec) -> tuple[str, str | None]:
    """(name, NVML's UUID) of the device that CUDA really gave us."""
    if device.kind == "cpu":
        return "CPU", None
    import torch

    properties = torch.cuda.get_device_properties(0)
    if device.token is not None and device.token.startswith("MIG-"):
        return properties.name, device.token
    return properties.name, f"GPU-{properties.uuid}"


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[: wire.REASON_CHARS]


def _last_words(channel: socket.socket, error: BaseException) -> None:
    try:
        wire.send(channel, wire.Ending(_summary(error)))
    except OSError:
        return  # nobody listens any more
