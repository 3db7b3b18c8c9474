"""Messages over a real socket pair."""

from dataclasses import replace

import pytest

from app.params import SEED_MAX, SEED_MIN
from app.settings import Settings
from app.startup import slot_layout
from scheduler import messages as m
from scheduler.messages import BatchKey, Blame, Costs
from workers.channel import (
    MAX_WARNINGS,
    NAME_CHARS,
    NAMED_COUNTS,
    NAMED_SHAPES,
    PARAMS_BYTES,
    REASON_CHARS,
    WARNING_CHARS,
    Report,
    StatusChanged,
    as_reason,
    as_warnings,
    pack,
    receive_report,
    send,
    shortened,
    socket_pair,
    unpack,
)
from workers.engine.contract import MAX_SIZES, EngineOptions, EngineStatus, Task

MAX_SLOTS = 64  # of `engine.slots`
USUAL = EngineStatus(
    attention=(("2x8 4096x4096x40", "cudnn"), ("2x8 4096x77x40", "flash")),
    graphs=(("step", 4), ("decode", 1)),
    graph_bytes=5 * 2**30,
    fallbacks=(("compile: no C compiler", 1),),
)


def sent(message: Report) -> Report | None:
    """A message at the other end."""
    ours, theirs = socket_pair()
    with ours, theirs:
        send(theirs, message)
        return receive_report(ours)


def test_a_usual_condition_arrives_as_it_was() -> None:
    assert shortened(USUAL) == USUAL
    assert sent(StatusChanged(shortened(USUAL))) == StatusChanged(USUAL)


def test_the_longest_condition_there_can_be_fits_into_a_message() -> None:
    long = "\N{PILE OF POO}" * 500
    numbers = range(1000)
    vast = EngineStatus(
        attention=tuple((f"{n:03}{long}", long) for n in numbers),
        graphs=tuple((f"{n:03}{long}", 2**63) for n in numbers),
        graph_bytes=2**63,
        fallbacks=tuple((f"{n:03}{long}", 2**63) for n in numbers),
    )
    arrived = sent(StatusChanged(shortened(vast)))
    assert isinstance(arrived, StatusChanged)
    assert len(arrived.status.attention) == NAMED_SHAPES
    assert len(arrived.status.graphs) == len(arrived.status.fallbacks) == NAMED_COUNTS


def test_of_too_many_entries_the_newest_are_kept() -> None:
    shapes = tuple((f"2x8 {n}x{n}x40", "flash") for n in range(NAMED_SHAPES + 3))
    reasons = tuple((f"reason {n}", n) for n in range(NAMED_COUNTS + 2))
    short = shortened(EngineStatus(attention=shapes, fallbacks=reasons))
    assert short.attention == shapes[3:]
    assert short.fallbacks == reasons[2:]


def test_names_that_are_alike_when_cut_are_one_entry() -> None:
    reason = "compile failed: " + "x" * NAME_CHARS
    short = shortened(
        EngineStatus(
            attention=((reason + "a", "flash"), (reason + "b", "math")),
            fallbacks=((reason + " in the encoder", 2), ("other", 1), (reason + " in the decoder", 3)),
        )
    )
    assert short.fallbacks == ((reason[:NAME_CHARS], 5), ("other", 1))
    assert short.attention == ((reason[:NAME_CHARS], "math"),)


# What a request may have, each at its longest in msgpack: characters of four bytes, and numbers of nine.
LARGEST = EngineOptions(
    negative="",
    steps=2**32,
    guidance_scale=1 / 3,
    control_scale=1 / 3,
    canny_low=2**32,
    canny_high=2**32,
    control_image="photo",
    temperature=1 / 3,
    format="jpeg",
    quality=2**32,
    previews=True,
    embed_metadata="source",
)


@pytest.mark.parametrize("seed", [SEED_MIN, SEED_MAX])
def test_the_largest_request_that_is_taken_fits_into_a_slot(seed: int) -> None:
    settings = Settings()
    text = "\N{PILE OF POO}" * settings.server.max_text_chars
    image = bytes(settings.server.max_image_bytes)
    task = Task(image, text, seed, replace(LARGEST, negative=text))
    needed = len(image) + len(pack(task))
    assert needed <= slot_layout(settings).input_bytes < needed + PARAMS_BYTES
    assert unpack(image, pack(task)) == task


@pytest.mark.parametrize("text", ["x" * 10_000, "\ud800 in a name", "a" * (REASON_CHARS - 1) + "\udfff\udfff"])
def test_any_text_of_an_error_fits_into_a_report(text: str) -> None:
    reason = as_reason(text)
    assert len(reason) <= REASON_CHARS
    assert sent(m.Failed("gpu0", 0, 1, reason, Blame.SERVICE)) == m.Failed("gpu0", 0, 1, reason, Blame.SERVICE)


@pytest.mark.parametrize("text", ["x" * 10_000, "\ud800 in a prompt", "\U0001f600" * WARNING_CHARS])
def test_any_warnings_fit_into_a_report(text: str) -> None:
    warnings = as_warnings((text,) * 100)
    assert len(warnings) == MAX_WARNINGS
    assert max(map(len, warnings)) <= WARNING_CHARS
    report = m.Finished("gpu0", 0, 1, m.Image(10, 0.0, 0.0, 0.0, 0.0, warnings))
    assert sent(report) == report


def test_costs_of_the_most_sizes_and_slots_arrive_as_they_were() -> None:
    steps = tuple(n / 7 for n in range(MAX_SLOTS))
    sizes = tuple((BatchKey(1 + n / 3, (4096, 64 + n)), steps) for n in range(MAX_SIZES))
    ready = m.WorkerReady("gpu0", Costs(20, steps, 1 / 3, 1 / 7, sizes))
    assert sent(ready) == ready
