"""What goes on in a worker's process: pictures move from their input slots through the engine to their output slots.

Four kinds of thread. The reader takes orders off the socket. The hands, one a slot, decode, tokenise, wait for
finished pixels and encode them. The artist waits for previews and draws them. The main thread alone gives the device
work and owns all state here: the others pass it what they have through one inbox.
"""

import contextlib
import logging
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from scheduler import messages as m
from scheduler.messages import Blame, Costs
from workers import wire
from workers.engine.contract import (
    BadOptionError,
    BadPictureError,
    Condition,
    Engine,
    OutOfMemoryError,
    Stepped,
    UnusableModelError,
)
from workers.engine.metadata import Metadata, Provenance
from workers.slots import SlotMemory

log = logging.getLogger("contour.worker")

SHORTAGES = 8  # pictures in a row without memory, after which a new process is to have a try
PREVIEW_SECONDS = 0.25  # between two previews of a picture
IDLE_SECONDS = 2.0  # between two looks at an engine that has nothing to do: it may be compiling in the background
REMEASURE_SOONEST, REMEASURE_SECONDS = 2.0, 60.0  # between measurements of an idle engine; each waits twice as long
REMEASURE_PAUSE = 10  # times as long as a measurement takes, at least: the machine is not to be kept busy by it
REMEASURE_CHANGE = 0.25  # of a step's costs, relative: other work has begun or ended, and may not be at rest yet


@dataclass(slots=True)
class _Tenant:
    """The picture in a slot. `admitted`: the engine has it, since `began`. `dropped`: nobody wants it any more."""

    generation: int
    made_from: Provenance = field(default_factory=Provenance)
    warnings: tuple[str, ...] = ()
    prepare: float = 0.0
    began: float = 0.0
    shown: float = -math.inf  # when a preview was last wanted
    drawing: "Future[None] | None" = None  # its last preview
    admitted: bool = False
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class _Prepared:
    slot: int
    made_from: Provenance
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

    id: m.WorkerId
    engine: Engine[Any]
    channel: socket.socket
    memory: SlotMemory
    costs: Costs  # as they were told last
    metadata: Metadata
    _inbox: "queue.SimpleQueue[_Mail]" = field(default_factory=queue.SimpleQueue)
    _tenants: dict[int, _Tenant] = field(default_factory=dict)
    _hands: ThreadPoolExecutor = field(init=False)
    _artist: ThreadPoolExecutor = field(init=False)
    _told: Condition = field(default_factory=Condition)
    _remeasure_pause: float = REMEASURE_SOONEST
    _remeasure_at: float = field(default_factory=lambda: time.monotonic() + REMEASURE_SOONEST)
    _shortages: int = 0  # pictures in a row that lacked memory
    _stopping: bool = False

    def __post_init__(self) -> None:
        # One a slot: a picture is in the hands of one of them at most, and none is to wait for another's.
        self._hands = ThreadPoolExecutor(self.engine.slots, "hand")
        # Not the hands' work, or a picture might wait for the preview of another.
        self._artist = ThreadPoolExecutor(1, "artist")

    def run(self) -> None:
        """Serve until `Stop`. Every turn: tell how the engine runs, take the mail, take one step."""
        threading.Thread(target=self._or_end, args=(self._read_orders,), name="reader", daemon=True).start()
        while not self._stopping:
            self.tell()
            self._take_mail()
            self._step()
        for threads in (self._hands, self._artist):
            threads.shutdown(wait=False, cancel_futures=True)

    # -------------------------------------------------------------------------------------------------- main thread

    def tell(self) -> None:
        """Report what a picture costs and how the engine runs, if that is news."""
        costs = self.engine.costs()
        if costs != self.costs:
            self.costs = costs
            wire.send(self.channel, m.Measured(self.id, costs))
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
                if not self._tenants:
                    self._measure_again()
                return
            self._open(mail)
            wait = 0.0

    def _measure_again(self) -> None:
        """Nothing is to be done: measure the engine again, so that no start on a busy machine is remembered for long.

        An image that comes meanwhile waits for what runs, a step at most or a decoding, and the measurement ends. One
        that is complete is reported even if nothing has changed, as it also replaces what the scheduler concluded from
        past steps.
        """
        began, before = time.monotonic(), self.costs.step_seconds[0]
        if began < self._remeasure_at or not self.engine.measure_again(self._inbox.empty):
            return
        self.costs = self.engine.costs()
        wire.send(self.channel, m.Measured(self.id, self.costs))
        now, alike = time.monotonic(), math.isclose(self.costs.step_seconds[0], before, rel_tol=REMEASURE_CHANGE)
        self._remeasure_pause = min(2 * self._remeasure_pause, REMEASURE_SECONDS) if alike else REMEASURE_SOONEST
        times = REMEASURE_PAUSE if alike else 1
        self._remeasure_at = now + max(self._remeasure_pause, times * (now - began))

    def _open(self, mail: _Mail) -> None:
        match mail:
            case wire.Run():
                self._tenants[mail.slot] = _Tenant(mail.generation)
            case _Prepared():
                self._admit(mail)
            case m.Cancel():
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
        tenant.began = time.monotonic()  # before the text is encoded, which counts as denoising
        try:
            self.engine.admit(prepared.slot, prepared.content)
        except OutOfMemoryError as error:
            self._lack(prepared.slot, error)
            return
        tenant.made_from, tenant.prepare, tenant.admitted = prepared.made_from, prepared.seconds, True
        tenant.warnings = wire.as_warnings(prepared.content.warnings)

    def _drop(self, order: m.Cancel) -> None:
        tenant = self._tenants.get(order.slot)
        if tenant is None or tenant.generation != order.generation:
            return  # it left before the order came, and its own report frees the slot
        tenant.dropped = True
        if tenant.admitted:
            self.engine.discard(order.slot)
            self._release(order.slot)

    def _release(self, slot: int) -> None:
        wire.send(self.channel, m.Released(self.id, slot, self._tenants.pop(slot).generation))

    def _lack(self, slot: int, error: OutOfMemoryError) -> None:
        """There is no memory for a picture here and now: tell. If that goes on, it is this process that lacks it."""
        self._shortages += 1
        if self._shortages > SHORTAGES:
            raise error
        generation = self._tenants.pop(slot).generation
        wire.send(self.channel, m.Failed(self.id, slot, generation, wire.as_reason(str(error)), Blame.MEMORY))

    def _step(self) -> None:
        try:
            stepped = self.engine.step()
        except OutOfMemoryError as error:
            self._give_up(error)
            return
        if not stepped:
            return
        done, totals = tuple((each.slot, each.done) for each in stepped), tuple(each.total for each in stepped)
        wire.send(self.channel, m.Stepped(self.id, done, totals))
        for picture in stepped:
            if picture.done == picture.total:
                self._finish(picture.slot)
            else:
                self._show(picture)

    def _show(self, picture: Stepped) -> None:
        """Have a preview made of a picture that somebody watches, now and then, and one at a time."""
        tenant, now = self._tenants[picture.slot], time.monotonic()
        drawn = tenant.drawing is None or tenant.drawing.done()
        if not (tenant.made_from.options.previews and drawn and now >= tenant.shown + PREVIEW_SECONDS):
            return
        tenant.shown = now
        try:
            preview = self.engine.preview(picture.slot)
        except OutOfMemoryError as error:
            log.info("no preview: %s", error)
            return
        if preview is not None:
            tenant.drawing = self._artist.submit(self._or_end, self._draw, picture.slot, tenant.generation, preview)

    def _give_up(self, error: OutOfMemoryError) -> None:
        """There is no memory for a step, not even of one picture."""
        for slot in [slot for slot, tenant in self._tenants.items() if tenant.admitted]:
            self.engine.discard(slot)
            self._lack(slot, error)

    def _finish(self, slot: int) -> None:
        tenant = self._tenants[slot]
        denoised = time.monotonic()
        try:
            decoding = self.engine.finish(slot)
        except OutOfMemoryError as error:
            self.engine.discard(slot)
            self._lack(slot, error)
            return
        self._shortages = 0
        tenant.admitted = False
        self._hands.submit(self._or_end, self._deliver, slot, tenant, decoding, denoised)

    # ---------------------------------------------------------------------------------------------- the other threads

    def _or_end(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run on a thread of an executor, which would keep an error to itself: the slot would never come free."""
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - the pool learns why and runs the pictures elsewhere
            end(self.channel, error)

    def _read_orders(self) -> None:
        """Pass orders on. End of file means that the pool is gone, and this process with it, whatever it is doing."""
        with contextlib.suppress(ConnectionError):  # what comes instead where reports are left unread
            while (order := wire.receive_order(self.channel)) is not None:
                self._inbox.put(order)
                if isinstance(order, wire.Run):  # at once: the main thread may be in the middle of a step
                    self._hands.submit(self._or_end, self._prepare, order)
        os._exit(1)

    def _prepare(self, order: wire.Run) -> None:
        began = time.monotonic()
        prepared = self._guard(order.slot, order.generation, lambda: self._prepared(order))
        if prepared is not None:
            made_from, content = prepared
            self._inbox.put(_Prepared(order.slot, made_from, time.monotonic() - began, content))

    def _prepared(self, order: wire.Run) -> tuple[Provenance, Any]:
        data = self.memory.input(order.slot)
        end = order.picture_bytes + order.wish_bytes
        task = wire.unpack(bytes(data[: order.picture_bytes]), data[order.picture_bytes : end])
        return Provenance.of(task), self.engine.prepare(task)

    def _draw(self, slot: int, generation: int, preview: object) -> None:
        jpeg = self.engine.draw(preview)
        if len(jpeg) > wire.MAX_PREVIEW:
            log.warning("a preview of %d bytes is too large to be sent", len(jpeg))
            return
        wire.send(self.channel, wire.Preview(slot, generation, jpeg))

    def _deliver(self, slot: int, tenant: _Tenant, decoding: object, denoised: float) -> None:
        """Wait for the pixels of a picture whose last step was taken at `denoised`, encode and report them."""
        pixels = self.engine.collect(decoding)  # an error means that the device has failed: the process ends
        collected = time.monotonic()
        data = self._guard(slot, tenant.generation, lambda: self._file(pixels, tenant.made_from))
        if data is None:
            return
        self.memory.output(slot)[: len(data)] = data
        denoise, decode, encode = denoised - tenant.began, collected - denoised, time.monotonic() - collected
        image = m.Image(len(data), tenant.prepare, denoise, decode, encode, tenant.warnings)
        self._leave(m.Finished(self.id, slot, tenant.generation, image))

    def _leave(self, report: m.Finished | m.Failed) -> None:
        """Empty the slot, then say so: in this order, as the slot's next order may follow the report immediately."""
        self._inbox.put(_Gone(report.slot))
        wire.send(self.channel, report)

    def _file(self, pixels: object, made_from: Provenance) -> bytes:
        data = self.metadata.embed(self.engine.encode(pixels, made_from.options), made_from)
        room = self.memory.layout.output_bytes
        if len(data) > room:
            raise ValueError(f"the picture has {len(data)} bytes, its slot {room}: raise workers.output_bytes")
        return data

    def _guard(self, slot: int, generation: int, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None after reporting that this one picture failed."""
        try:
            return work()
        except BadPictureError as error:
            self._leave(m.Failed(self.id, slot, generation, wire.as_reason(str(error)), Blame.PICTURE))
        except BadOptionError as error:
            self._leave(m.Failed(self.id, slot, generation, wire.as_reason(str(error)), Blame.OPTION))
        except (OutOfMemoryError, MemoryError) as error:
            self._leave(m.Failed(self.id, slot, generation, _summary(error), Blame.MEMORY))
        except Exception as error:
            log.exception("a picture failed")
            self._leave(m.Failed(self.id, slot, generation, _summary(error), Blame.SERVICE))
        return None


def end(channel: socket.socket, error: BaseException) -> NoReturn:
    """End the process, from any thread, with last words. At once: what is in the middle of something is in vain."""
    hopeless = isinstance(error, UnusableModelError)
    if hopeless:
        log.error("The model cannot be used: %s", error)
    else:
        log.error("this worker ends", exc_info=error)
    reason = wire.as_reason(str(error)) if hopeless else _summary(error)
    with contextlib.suppress(OSError):  # nobody may listen any more
        wire.send(channel, wire.Ending(reason, hopeless))
    os._exit(1)


def _summary(error: BaseException) -> str:
    return wire.as_reason(f"{type(error).__name__}: {error}")
