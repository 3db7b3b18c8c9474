"""A worker process that reports what cannot be, as one might that somebody has taken over."""

import os
import socket
import time
from dataclasses import replace

from scheduler.messages import BatchKey, Blame, Costs
from workers import process, wire
from workers.engine.contract import Condition
from workers.process import Setup, die_with_parent
from workers.slots import SlotMemory

LIE = "CONTOUR_TEST_LIE"  # a variable: what the process says; without it, it is an honest one
FLOOD = "flood"
HIDE = "hide"  # its own sentinel: it looks as if it had ended
NAN, INFINITY = float("nan"), float("inf")
COSTS = Costs(4, (0.1, 0.1), 0.0)
WIDE = BatchKey(2.0, (128, 64))
TIMES = (0.0, 0.1, 0.0, 0.0)

EARLY: dict[str, wire.Report | bytes] = {  # instead of becoming ready
    "costs that are no numbers": wire.Ready(Costs(4, (NAN,), 0.0), "CPU", None),
    "costs without end": wire.Ready(Costs(4, (0.1,), INFINITY), "CPU", None),
    "costs below zero": wire.Ready(Costs(4, (-0.1,), 0.0), "CPU", None),
    "no steps": wire.Ready(Costs(0, (0.1,), 0.0), "CPU", None),
    "no slots": wire.Ready(Costs(4, (), 0.0), "CPU", None),
    "more slots than there are": wire.Ready(Costs(4, (0.1, 0.1, 0.1), 0.0), "CPU", None),
    "a long name": wire.Ready(COSTS, "x" * 1000, None),
    "a decoding that takes longer than all of it": wire.Ready(replace(COSTS, decode_seconds=0.1), "CPU", None),
    "a size whose steps are no numbers": wire.Ready(replace(COSTS, sizes=((WIDE, (0.1, NAN)),)), "CPU", None),
    "a size with fewer images": wire.Ready(replace(COSTS, sizes=((WIDE, (0.1,)),)), "CPU", None),
    "a size without work": wire.Ready(replace(COSTS, sizes=((BatchKey(0.0), (0.1, 0.1)),)), "CPU", None),
    "a size whose work is no number": wire.Ready(replace(COSTS, sizes=((BatchKey(NAN), (0.1, 0.1)),)), "CPU", None),
    "a size without pixels": wire.Ready(replace(COSTS, sizes=((BatchKey(2.0, (0, 64)), (0.1, 0.1)),)), "CPU", None),
    "more sizes than are kept": wire.Ready(replace(COSTS, sizes=((WIDE, (0.1, 0.1)),) * 9), "CPU", None),
    "no message": b"\xc1",
    "text that is not UTF-8": b"\x92\xa6Ending\xa1\xff",
    "a message within a message": b"\x91" * 60_000,
    "an image of nobody": wire.Finished(2, 1, 10, *TIMES),
}
LATE: dict[str, wire.Report | bytes] = {  # instead of making an image in slot 0
    "a length below zero": wire.Finished(0, 1, -1, *TIMES),
    "an empty image": wire.Finished(0, 1, 0, *TIMES),
    "a length beyond the slot": wire.Finished(0, 1, 2**20 + 1, *TIMES),
    "times that are no numbers": wire.Finished(0, 1, 10, NAN, 0.0, 0.0, 0.0),
    "times without end": wire.Finished(0, 1, 10, 0.0, 0.0, 0.0, INFINITY),
    "a long warning": wire.Finished(0, 1, 10, *TIMES, ("x" * 10_000,)),
    "many warnings": wire.Finished(0, 1, 10, *TIMES, ("x",) * 100),
    "a slot below zero": wire.Finished(-1, 1, 10, *TIMES),
    "a step in no slot": wire.Stepped(((2, 1, 4),)),
    "a step below zero": wire.Stepped(((0, -1, 4),)),
    "a step after the last": wire.Stepped(((0, 5, 4),)),
    "a step of none": wire.Stepped(((0, 0, 0),)),
    "a preview in no slot": wire.Preview(2, 1, b""),
    "a large preview": wire.Preview(0, 1, bytes(wire.MAX_PREVIEW + 1)),
    "a long reason": wire.Failed(0, 1, "x" * 10_000, Blame.SERVICE),
    "a failure in no slot": wire.Failed(2, 1, "", Blame.SERVICE),
    "nothing in no slot": wire.Released(2, 1),
    "graphs below zero": wire.Changed(Condition(graphs=(("step", -1),))),
    "a long condition": wire.Changed(Condition(fallbacks=(("x" * 1000, 1),))),
    "costs that have become no numbers": wire.Measured(Costs(4, (NAN, NAN), 0.0)),
    "long last words": wire.Ending("x" * 10_000),
}
UNTIMELY: dict[str, wire.Report | bytes] = {  # possible by themselves, but not then: the scheduler refuses them
    "a job let go that nobody cancelled": wire.Released(0, 1),
    "another number of slots": wire.Measured(Costs(4, (0.1,), 0.0)),
    "ready again": wire.Ready(COSTS, "CPU", None),
}
LIES = EARLY | LATE | UNTIMELY


def main(setup: Setup, channel: socket.socket, memory: SlotMemory) -> None:
    """Entry point of such a process, instead of `workers.process.main`."""
    lie = os.environ.get(LIE, "")
    if not lie or setup.device.id != "cpu0":
        process.main(setup, channel, memory)
        return
    die_with_parent(setup.parent)
    while lie == FLOOD:
        wire.send(channel, wire.Released(0, 0))
    if lie == HIDE:
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, 256)
        time.sleep(60)
    if lie not in EARLY:
        wire.send(channel, wire.Ready(COSTS, "CPU", None))
        wire.receive_order(channel)
    said = LIES[lie]
    if isinstance(said, bytes):
        channel.send(said)
    else:
        wire.send(channel, said)
    time.sleep(60)
