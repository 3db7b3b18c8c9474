"""Shared-memory slots."""

import fcntl
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.shared_memory import SlotLayout, SlotMemory

LAYOUT = SlotLayout(count=3, input_bytes=64, output_bytes=32)


def shout(memory: SlotMemory) -> None:
    """Runs in another process: answers what is in slot 1."""
    memory.output(1)[:5] = bytes(memory.input(1)[:5]).upper()


def tamper(memory: SlotMemory) -> None:
    """Runs in another process: exits with the number of ways in which it could change the size of the memory."""
    changes = (
        lambda: os.ftruncate(memory.descriptor, 0),
        lambda: os.ftruncate(memory.descriptor, 1),
        lambda: os.ftruncate(memory.descriptor, 2**30),
        lambda: os.posix_fallocate(memory.descriptor, 0, 2**30),
        lambda: os.pwrite(memory.descriptor, b"x", 2**20),
        lambda: os.truncate(f"/proc/self/fd/{memory.descriptor}", 0),
        lambda: fcntl.fcntl(memory.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    )
    os._exit(sum(map(succeeds, changes)))


def succeeds(change: Callable[[], object]) -> bool:
    try:
        change()
    except PermissionError:
        return False
    return True


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
    child.join(120)
    assert child.exitcode == 0
    assert bytes(memory.output(1)[:5]) == b"HELLO"
    memory.close()


def test_no_process_that_shares_the_memory_can_change_its_size() -> None:
    memory = SlotMemory.create(LAYOUT)
    memory.output(2)[:4] = b"here"
    child = multiprocessing.get_context("spawn").Process(target=tamper, args=(memory,))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    assert os.fstat(memory.descriptor).st_size == LAYOUT.total
    assert bytes(memory.output(2)[:4]) == b"here"  # SIGBUS, if it were not there any more
    memory.close()


def test_it_has_no_name_and_is_gone_when_closed() -> None:
    named = set(os.listdir("/dev/shm"))
    memory = SlotMemory.create(LAYOUT)
    descriptor = memory.descriptor
    assert set(os.listdir("/dev/shm")) == named
    memory.close()
    assert not Path(f"/proc/self/fd/{descriptor}").exists()


def test_parts_are_written_one_after_another_and_nothing_is_left_of_what_is_cleared() -> None:
    memory = SlotMemory.create(LAYOUT)
    memory.write(1, b"request", memoryview(b" and more"))
    memory.output(1)[:6] = b"result"
    assert (bytes(memory.input(1)[:16]), memory.read(1, 6)) == (b"request and more", b"result")
    memory.clear()
    assert (bytes(memory.input(1)[:16]), memory.read(1, 6)) == (bytes(16), bytes(6))
    memory.close()
