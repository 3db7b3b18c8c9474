"""Shared-memory slots."""

import multiprocessing
import os
from pathlib import Path

import pytest

from workers.slots import SlotLayout, SlotMemory

LAYOUT = SlotLayout(count=3, input_bytes=64, output_bytes=32)


def shout(memory: SlotMemory) -> None:
    """Runs in another process: answers what is in slot 1."""
    memory.output(1)[:5] = bytes(memory.input(1)[:5]).upper()


def test_slots_do_not_overlap() -> None:
    memory = SlotMemory.create(LAYOUT)
    for slot in range(LAYOUT.count):
        memory.input(slot)[:] = bytes([slot]) * 64
        memory.output(slot)[:] = bytes([100 + slot]) * 32
    assert [bytes(memory.input(slot)) for slot in range(3)] == [bytes([slot]) * 64 for slot in range(3)]
    assert [bytes(memory.output(slot)) for slot in range(3)] == [bytes([100 + slot]) * 32 for slot in range(3)]
    memory.close()


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_slot_that_is_not_there_is_an_error(slot: int) -> None:
    memory = SlotMemory.create(LAYOUT)
    with pytest.raises(IndexError, match=f"slot {slot} of 3"):
        memory.input(slot)
    memory.close()


def test_a_spawned_process_sees_the_same_memory() -> None:
    memory = SlotMemory.create(LAYOUT)
    memory.input(1)[:5] = b"hello"
    child = multiprocessing.get_context("spawn").Process(target=shout, args=(memory,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert bytes(memory.output(1)[:5]) == b"HELLO"
    memory.close()


def test_it_has_no_name_and_is_gone_when_closed() -> None:
    named = set(os.listdir("/dev/shm"))
    memory = SlotMemory.create(LAYOUT)
    descriptor = memory.descriptor
    assert set(os.listdir("/dev/shm")) == named
    memory.close()
    assert not Path(f"/proc/self/fd/{descriptor}").exists()
