"""The loop of a worker process: it moves images from input slots through the engine to output slots.

There are four kinds of thread. The reader receives orders from the socket. The codec threads, one a slot, decode,
tokenise, wait for finished pixels and encode them. The preview thread waits for previews and draws them. The main
thread alone gives the device work, and owns all state here: the others put what it should do next into its inbox.

For example, an image in slot 2: the reader gets `Run`, has the main thread note that the slot is taken, and a codec
thread tokenise the prompt. That thread puts `_begin` into the inbox, decodes the file, and puts `_admit` there. Between
two steps, the main thread has the device encode the text, meanwhile perhaps, and admits the image to the engine, whose
next step takes it along. After its last step, a codec thread encodes it, puts the slot's release into the inbox, and
reports `Finished`.
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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NoReturn

from scheduler import messages as m
from scheduler.messages import Blame, Costs
from workers.channel import (
    MAX_PREVIEW,
    ExitReason,
    Preview,
    Run,
    StatusChanged,
    Stop,
    as_reason,
    as_warnings,
    receive_order,
    send,
    shortened,
    unpack,
)
from workers.engine.contract import (
    BadImageError,
    BadOptionError,
    Engine,
    EngineStatus,
    OutOfMemoryError,
    UnusableModelError,
)
from workers.engine.metadata import Metadata, Provenance
from workers.shared_memory import SlotMemory

log = logging.getLogger("contour.worker")

SHORTAGES = 8  # images in a row without memory; one more, and the process exits so that a new one is started
PREVIEW_SECONDS = 0.25  # between two previews of an image
IDLE_SECONDS = 0.25  # between two looks at an engine that has nothing to do: it may be compiling in the background
REMEASURE_SOONEST, REMEASURE_SECONDS = 2.0, 60.0  # between measurements of an idle engine; each waits twice as long
REMEASURE_PAUSE = 10  # times as long as a measurement takes, at least, so that it does not keep the machine busy
REMEASURE_CHANGE = 0.25  # of a step's costs, relative: other work has begun or ended, and may not be at rest yet


@dataclass(slots=True)
class _SlotState:
    """The image in a slot. `held`: the engine has it. `admitted`: it takes part in the steps. `began`: it was prepared.
    `dropped`: the pool has cancelled it."""

    generation: int
    made_from: Provenance = field(default_factory=Provenance)
    warnings: tuple[str, ...] = ()
    prepare: float = 0.0
    began: float = 0.0
    shown: float = -math.inf  # when a preview was last wanted
    drawing: "Future[None] | None" = None  # its last preview
    held: bool = False
    admitted: bool = False
    dropped: bool = False


@dataclass(slots=True)
class Worker:
    """Moves images from their input slots through the engine to their output slots."""

    id: m.WorkerId
    engine: Engine[Any]
    channel: socket.socket
    memory: SlotMemory
    costs: Costs  # as last reported
    metadata: Metadata
    _inbox: "queue.SimpleQueue[Callable[[], object]]" = field(default_factory=queue.SimpleQueue)
    _slots: dict[int, _SlotState] = field(default_factory=dict)
    _codec_threads: ThreadPoolExecutor = field(init=False)
    _preview_thread: ThreadPoolExecutor = field(init=False)
    _reported: EngineStatus = field(default_factory=EngineStatus)
    _remeasure_pause: float = REMEASURE_SOONEST
    _remeasure_at: float = field(default_factory=lambda: time.monotonic() + REMEASURE_SOONEST)
    _shortages: int = 0  # images in a row that lacked memory
    _stopping: bool = False

    def __post_init__(self) -> None:
        self._codec_threads = ThreadPoolExecutor(self.engine.slots, "codec")  # so that no image waits for another's
        self._preview_thread = ThreadPoolExecutor(1, "preview")  # so that no image waits for a preview

    def run(self) -> None:
        """Serve until `Stop`. Each turn: report the engine's status, handle the inbox, take one step."""
        threading.Thread(target=self._run_or_exit, args=(self._read_orders,), name="reader", daemon=True).start()
        while not self._stopping:
            self.report_status()
            self._handle_inbox()
            self._step()
        for threads in (self._codec_threads, self._preview_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    # -------------------------------------------------------------------------------------------------- main thread

    def report_status(self) -> None:
        """Report what an image costs and how the engine runs, if that has changed."""
        costs = self.engine.costs()
        if costs != self.costs:
            self.costs = costs
            send(self.channel, m.Measured(self.id, costs))
        status = self.engine.status()
        if status != self._reported:
            self._reported = status
            send(self.channel, StatusChanged(shortened(status)))

    def _handle_inbox(self) -> None:
        """Handle everything in the inbox; while no image can take a step, wait for more, for a while."""
        until = time.monotonic() + IDLE_SECONDS
        while not self._stopping:
            idle = not any(state.admitted for state in self._slots.values())
            try:
                action = self._inbox.get(timeout=max(0.0, until - time.monotonic()) if idle else 0.0)
            except queue.Empty:
                if not self._slots:
                    self._measure_again()
                return
            action()

    def _measure_again(self) -> None:
        """Measure the idle engine again, so that a start on a busy machine is not remembered for long.

        An image that comes meanwhile waits for what runs, a step at most or a decoding, and the measurement ends. One
        that is complete is reported even if nothing has changed, as it also replaces what the scheduler concluded from
        past steps.
        """
        began, before = time.monotonic(), self.costs.step_seconds[0]
        if began < self._remeasure_at or not self.engine.measure_again(self._inbox.empty):
            return
        self.costs = self.engine.costs()
        send(self.channel, m.Measured(self.id, self.costs))
        now, alike = time.monotonic(), math.isclose(self.costs.step_seconds[0], before, rel_tol=REMEASURE_CHANGE)
        self._remeasure_pause = min(2 * self._remeasure_pause, REMEASURE_SECONDS) if alike else REMEASURE_SOONEST
        times = REMEASURE_PAUSE if alike else 1
        self._remeasure_at = now + max(self._remeasure_pause, times * (now - began))

    def _take_slot(self, slot: int, generation: int) -> None:
        self._slots[slot] = _SlotState(generation)

    def _begin(self, slot: int, draft: Any) -> None:
        """Start an image on the device while its file is still being decoded.

        Without memory for that `_admit` does it all, and reports if there is still none.
        """
        state = self._slots[slot]
        if not state.dropped:
            with contextlib.suppress(OutOfMemoryError):
                self.engine.begin(slot, draft)
                state.held = True

    def _admit(self, slot: int, made_from: Provenance, since: float, until: float, content: Any) -> None:
        """Hand the engine an image that was prepared from `since` until `until`; from then on it counts as denoised."""
        state = self._slots[slot]
        if state.dropped:
            self._release(slot)
            return
        state.held = False  # unless this succeeds
        try:
            self.engine.admit(slot, content)
        except OutOfMemoryError as error:
            self._on_out_of_memory(slot, error)
            return
        state.held = state.admitted = True
        state.made_from, state.prepare, state.began = made_from, until - since, until
        state.warnings = as_warnings(content.warnings)

    def _cancel(self, slot: int, generation: int) -> None:
        state = self._slots.get(slot)
        if state is None or state.generation != generation:
            return  # it left before the order came, and its own report frees the slot
        state.dropped = True
        if state.admitted:
            self._release(slot)

    def _stop(self) -> None:
        self._stopping = True

    def _free(self, slot: int) -> int:
        """Free a slot, in the engine too, and return its generation."""
        state = self._slots.pop(slot)
        if state.held:
            self.engine.discard(slot)
        return state.generation

    def _release(self, slot: int) -> None:
        send(self.channel, m.Released(self.id, slot, self._free(slot)))

    def _on_out_of_memory(self, slot: int, error: OutOfMemoryError) -> None:
        """Report that there is no memory for an image now. After several in a row, raise: a new process starts."""
        self._shortages += 1
        if self._shortages > SHORTAGES:
            raise error
        generation = self._free(slot)
        send(self.channel, m.Failed(self.id, slot, generation, as_reason(str(error)), Blame.MEMORY))

    def _step(self) -> None:
        try:
            stepped = self.engine.step()
        except OutOfMemoryError as error:
            self._discard_all(error)
            return
        if not stepped:
            return
        done, totals = tuple((each.slot, each.done) for each in stepped), tuple(each.total for each in stepped)
        send(self.channel, m.Stepped(self.id, done, totals))
        for image in stepped:
            if image.done == image.total:
                self._finish(image.slot)
            else:
                self._start_preview(image.slot)

    def _start_preview(self, slot: int) -> None:
        """Start a preview of an image whose client wants them: one at a time, with pauses."""
        state, now = self._slots[slot], time.monotonic()
        drawn = state.drawing is None or state.drawing.done()
        if not (state.made_from.options.previews and drawn and now >= state.shown + PREVIEW_SECONDS):
            return
        state.shown = now
        try:
            preview = self.engine.preview(slot)
        except OutOfMemoryError as error:
            log.info("No preview: %s", error)
            return
        if preview is not None:
            state.drawing = self._preview_thread.submit(
                self._run_or_exit, self._send_preview, slot, state.generation, preview
            )

    def _discard_all(self, error: OutOfMemoryError) -> None:
        """Report all images as out of memory: there is none for a step, not even of one image."""
        for slot in [slot for slot, state in self._slots.items() if state.admitted]:
            self._on_out_of_memory(slot, error)

    def _finish(self, slot: int) -> None:
        state = self._slots[slot]
        denoised = time.monotonic()
        try:
            decoding = self.engine.finish(slot)
        except OutOfMemoryError as error:
            self._on_out_of_memory(slot, error)
            return
        self._shortages = 0
        state.held = state.admitted = False
        self._codec_threads.submit(self._run_or_exit, self._deliver, slot, state, decoding, denoised)

    # ---------------------------------------------------------------------------------------------- the other threads

    def _run_or_exit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run work on an executor's thread, exit if it fails: the executor would hide the error and leak the slot."""
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - the pool learns why and runs the images elsewhere
            exit_with(self.channel, error)

    def _read_orders(self) -> None:
        """Pass orders on. At end of file the pool is gone, so this process exits, whatever it is doing."""
        with contextlib.suppress(ConnectionError):  # what comes instead where reports are left unread
            while (order := receive_order(self.channel)) is not None:
                match order:
                    case Run(slot, generation):
                        self._inbox.put(partial(self._take_slot, slot, generation))
                        # At once: the main thread may be in the middle of a step.
                        self._codec_threads.submit(self._run_or_exit, self._prepare, order)
                    case m.Cancel(_, slot, generation):
                        self._inbox.put(partial(self._cancel, slot, generation))
                    case Stop():
                        self._inbox.put(self._stop)
        os._exit(1)

    def _prepare(self, order: Run) -> None:
        began = time.monotonic()
        prepared = self._or_report_failure(order.slot, order.generation, lambda: self._prepared(order))
        if prepared is not None:
            made_from, content = prepared
            self._inbox.put(partial(self._admit, order.slot, made_from, began, time.monotonic(), content))

    def _prepared(self, order: Run) -> tuple[Provenance, Any]:
        data = self.memory.input(order.slot)
        end = order.image_bytes + order.params_bytes
        task = unpack(bytes(data[: order.image_bytes]), data[order.image_bytes : end])
        content = self.engine.prepare(task, lambda draft: self._inbox.put(partial(self._begin, order.slot, draft)))
        return replace(Provenance.of(task), thresholds=content.thresholds), content

    def _send_preview(self, slot: int, generation: int, preview: object) -> None:
        jpeg = self.engine.draw(preview)
        if len(jpeg) > MAX_PREVIEW:
            log.warning("A preview of %d bytes is too large to be sent", len(jpeg))
            return
        send(self.channel, Preview(slot, generation, jpeg))

    def _deliver(self, slot: int, state: _SlotState, decoding: object, denoised: float) -> None:
        """Wait for the pixels of an image whose last step was taken at `denoised`, encode and report them."""
        pixels = self.engine.collect(decoding)  # an error means that the device has failed: the process ends
        collected = time.monotonic()
        data = self._or_report_failure(slot, state.generation, lambda: self._encode(pixels, state.made_from))
        if data is None:
            return
        self.memory.output(slot)[: len(data)] = data
        denoise, decode, encode = denoised - state.began, collected - denoised, time.monotonic() - collected
        image = m.Image(len(data), state.prepare, denoise, decode, encode, state.warnings, state.made_from.thresholds)
        self._free_and_report(m.Finished(self.id, slot, state.generation, image))

    def _free_and_report(self, report: m.Finished | m.Failed) -> None:
        """Free the slot, then report: in this order, as the slot's next order may follow the report immediately."""
        self._inbox.put(partial(self._free, report.slot))
        send(self.channel, report)

    def _encode(self, pixels: object, made_from: Provenance) -> bytes:
        data = self.metadata.embed(self.engine.encode(pixels, made_from.options), made_from)
        room = self.memory.layout.output_bytes
        if len(data) > room:
            raise ValueError(
                f"the image has {len(data)} bytes, but a slot has room for {room}: raise workers.output_bytes"
            )
        return data

    def _or_report_failure(self, slot: int, generation: int, work: Callable[[], Any]) -> Any:
        """Return the result of `work`; if it fails, report that for this one image and return None."""
        try:
            return work()
        except BadImageError as error:
            self._free_and_report(m.Failed(self.id, slot, generation, as_reason(str(error)), Blame.IMAGE))
        except BadOptionError as error:
            self._free_and_report(m.Failed(self.id, slot, generation, as_reason(str(error)), Blame.OPTION))
        except (OutOfMemoryError, MemoryError) as error:
            self._free_and_report(m.Failed(self.id, slot, generation, _summary(error), Blame.MEMORY))
        except Exception as error:
            log.exception("Could not make the image in slot %d (generation %d)", slot, generation)
            self._free_and_report(m.Failed(self.id, slot, generation, _summary(error), Blame.SERVICE))
        return None


def exit_with(channel: socket.socket, error: BaseException) -> NoReturn:
    """Report an error and exit at once, from any thread. The work of other threads is lost."""
    hopeless = isinstance(error, UnusableModelError)
    if hopeless:
        log.error("The model cannot be used: %s", error)
    else:
        log.error("Worker exits after an error", exc_info=error)
    reason = as_reason(str(error)) if hopeless else _summary(error)
    with contextlib.suppress(OSError):  # the pool may be gone
        send(channel, ExitReason(reason, hopeless))
    os._exit(1)


def _summary(error: BaseException) -> str:
    return as_reason(f"{type(error).__name__}: {error}")
