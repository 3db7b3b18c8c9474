"""A worker process that reports what cannot be, as one might that somebody has taken over."""

import os
import socket
import time

from msgspec.structs import replace

from scheduler import messages as m
from scheduler.messages import BatchKey, Blame, Costs
from workers import worker_main
from workers.channel import MAX_PREVIEW, Device, ExitReason, Preview, Report, StatusChanged, receive_order, send
from workers.engine.contract import EngineStatus
from workers.process import die_with_parent
from workers.shared_memory import SlotMemory
from workers.worker_main import WorkerSetup

LIE = "CONTOUR_TEST_LIE"  # a variable: what the process says; without it, it is an honest one
FLOOD = "flood"
HIDE = "hide"  # its own sentinel: it looks as if it had ended
ID = "cpu0"
NAN, INFINITY = float("nan"), float("inf")
COSTS = Costs(4, (0.1, 0.1), 0.0)
WIDE = BatchKey(2.0, (128, 64))
TIMES = (0.0, 0.1, 0.0, 0.0)

EARLY: dict[str, Report | bytes] = {  # instead of becoming ready
    "costs that are no numbers": m.WorkerReady(ID, Costs(4, (NAN,), 0.0)),
    "costs without end": m.WorkerReady(ID, Costs(4, (0.1,), INFINITY)),
    "costs below zero": m.WorkerReady(ID, Costs(4, (-0.1,), 0.0)),
    "no steps": m.WorkerReady(ID, Costs(0, (0.1,), 0.0)),
    "no slots": m.WorkerReady(ID, Costs(4, (), 0.0)),
    "more slots than there are": m.WorkerReady(ID, Costs(4, (0.1, 0.1, 0.1), 0.0)),
    "a long name": Device("x" * 1000, None),
    "a decoding that takes longer than all of it": m.WorkerReady(ID, replace(COSTS, decode_seconds=0.1)),
    "a size whose steps are no numbers": m.WorkerReady(ID, replace(COSTS, sizes=((WIDE, (0.1, NAN)),))),
    "a size with fewer images": m.WorkerReady(ID, replace(COSTS, sizes=((WIDE, (0.1,)),))),
    "a size without work": m.WorkerReady(ID, replace(COSTS, sizes=((BatchKey(0.0), (0.1, 0.1)),))),
    "a size whose work is no number": m.WorkerReady(ID, replace(COSTS, sizes=((BatchKey(NAN), (0.1, 0.1)),))),
    "a size without pixels": m.WorkerReady(ID, replace(COSTS, sizes=((BatchKey(2.0, (0, 64)), (0.1, 0.1)),))),
    "more sizes than are kept": m.WorkerReady(ID, replace(COSTS, sizes=((WIDE, (0.1, 0.1)),) * 9)),
    "no message": b"\xc1",
    "text that is not UTF-8": b"\x92\xa6Ending\xa1\xff",
    "a message within a message": b"\x91" * 60_000,
    "an image of nobody": m.Finished(ID, 2, 1, m.Image(10, *TIMES)),
}
LATE: dict[str, Report | bytes] = {  # instead of making an image in slot 0
    "a length below zero": m.Finished(ID, 0, 1, m.Image(-1, *TIMES)),
    "an empty image": m.Finished(ID, 0, 1, m.Image(0, *TIMES)),
    "a length beyond the slot": m.Finished(ID, 0, 1, m.Image(2**20 + 1, *TIMES)),
    "times that are no numbers": m.Finished(ID, 0, 1, m.Image(10, NAN, 0.0, 0.0, 0.0)),
    "times without end": m.Finished(ID, 0, 1, m.Image(10, 0.0, 0.0, 0.0, INFINITY)),
    "a long warning": m.Finished(ID, 0, 1, m.Image(10, *TIMES, ("x" * 10_000,))),
    "many warnings": m.Finished(ID, 0, 1, m.Image(10, *TIMES, ("x",) * 100)),
    "thresholds out of order": m.Finished(ID, 0, 1, m.Image(10, *TIMES, (), (200, 100))),
    "a threshold that is too high": m.Finished(ID, 0, 1, m.Image(10, *TIMES, (), (100, 10**6))),
    "a slot below zero": m.Finished(ID, -1, 1, m.Image(10, *TIMES)),
    "a step in no slot": m.Stepped(ID, ((2, 1),), (4,)),
    "a step below zero": m.Stepped(ID, ((0, -1),), (4,)),
    "a step after the last": m.Stepped(ID, ((0, 5),), (4,)),
    "a step of none": m.Stepped(ID, ((0, 0),), (0,)),
    "a preview in no slot": Preview(2, 1, b""),
    "a large preview": Preview(0, 1, bytes(MAX_PREVIEW + 1)),
    "a long reason": m.Failed(ID, 0, 1, "x" * 10_000, Blame.SERVICE),
    "a failure in no slot": m.Failed(ID, 2, 1, "", Blame.SERVICE),
    "nothing in no slot": m.Released(ID, 2, 1),
    "steps without their totals": m.Stepped(ID, ((0, 1),)),
    "graphs below zero": StatusChanged(EngineStatus(graphs=(("step", -1),))),
    "a long status": StatusChanged(EngineStatus(fallbacks=(("x" * 1000, 1),))),
    "costs that have become no numbers": m.Measured(ID, Costs(4, (NAN, NAN), 0.0)),
    "long exit reason": ExitReason("x" * 10_000),
}
UNTIMELY: dict[str, Report | bytes] = {  # possible by themselves, but not then: the scheduler refuses them
    "a job let go that nobody cancelled": m.Released(ID, 0, 1),
    "another number of slots": m.Measured(ID, Costs(4, (0.1,), 0.0)),
    "ready again": m.WorkerReady(ID, COSTS),
    "what another worker would": m.Released("cpu1", 0, 1),
    "a long name of another worker": m.Stepped("x" * 60_000, ((0, 1),), (4,)),
}
LIES = EARLY | LATE | UNTIMELY


def main(setup: WorkerSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of such a process, instead of `workers.worker_main.main`."""
    lie = os.environ.get(LIE, "")
    if not lie or setup.device.id != "cpu0":
        worker_main.main(setup, channel, memory)
        return
    die_with_parent(setup.parent)
    while lie == FLOOD:
        send(channel, m.Released(ID, 0, 0))
    if lie == HIDE:
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, 256)
        time.sleep(60)
    if lie not in EARLY:
        send(channel, Device("CPU", None))
        send(channel, m.WorkerReady(ID, COSTS))
        receive_order(channel)
    said = LIES[lie]
    if isinstance(said, bytes):
        channel.send(said)
    else:
        send(channel, said)
    time.sleep(60)
