"""Edges found in a process of their own, from inside the event loop that asks for them."""

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from scheduler import messages as m
from tests.fuzz.seeds import file_of
from tests.workers.contours import drawing, expected, files, pixels_of, size_of
from workers import edge_process
from workers.channel import send
from workers.edge_process import (
    BusyError,
    ClosingError,
    CrashedError,
    EdgeLimits,
    EdgeService,
    EdgeSetup,
    EdgeTask,
    FailedError,
    FairLock,
    SlowError,
    edge_layout,
)
from workers.engine.config import Canny, Sizing
from workers.engine.contract import BadImageError
from workers.process import Processes
from workers.shared_memory import SlotLayout, SlotMemory

PATIENCE = 120.0  # seconds, before a test gives something up
SIZING = Sizing(short_side=128, long_side=256)
ROOM = edge_layout(2**20, SIZING)
IMAGE = file_of(drawing(200, 150), "PNG")
TASK = EdgeTask(IMAGE, size_of(IMAGE, SIZING), Canny())


@asynccontextmanager
async def opened(limits: EdgeLimits | None = None, room: SlotLayout = ROOM) -> AsyncIterator[EdgeService]:
    service = EdgeService(room, EdgeSetup(), limits)
    try:
        yield service
    finally:
        await service.close()
    assert service.process is None


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def frozen(service: EdgeService) -> int:
    """Have the process started and stop it: it takes no order until it is told to go on. Its id."""
    await service.find(TASK)
    assert service.process is not None
    os.kill(service.process, signal.SIGSTOP)
    return service.process


def go_on(process: int) -> None:
    os.kill(process, signal.SIGCONT)


def is_gone(process: int) -> bool:
    """Whether it was reaped, too."""
    return not Path(f"/proc/{process}").exists()


def assert_found(png: bytes, task: EdgeTask = TASK) -> None:
    assert isinstance(task.work, Canny)
    assert np.array_equal(pixels_of(png), expected(task.image, task.size, task.work))


# ------------------------------------------------------------------------------------------------------------- answers


async def test_it_finds_what_the_codec_finds_by_one_process_that_is_there_when_it_is_needed() -> None:
    async with opened() as service:
        assert service.process is None
        processes: set[int | None] = set()
        for image in files().values():
            task = EdgeTask(image, size_of(image, SIZING), Canny(low=60, high=90))
            assert_found(await service.find(task), task)
            processes.add(service.process)
        assert len(processes - {None}) == 1


async def test_the_thresholds_are_those_that_were_wanted() -> None:
    async with opened() as service:
        counts = []
        for canny in (Canny(low=10, high=20), Canny(low=100, high=200), Canny(low=1900, high=2000)):
            task = EdgeTask(IMAGE, TASK.size, canny)
            png = await service.find(task)
            assert_found(png, task)
            counts.append(np.count_nonzero(pixels_of(png)))
        assert counts[0] > counts[1] > counts[2] == 0


async def test_a_bad_image_and_a_failure_cost_their_own_request_alone() -> None:
    async with opened(room=SlotLayout(1, 2**20, 500)) as service:
        with pytest.raises(BadImageError, match="cut short"):
            await service.find(EdgeTask(IMAGE[:100], TASK.size, Canny()))
        process = service.process
        with pytest.raises(FailedError, match="ValueError"):  # there is no room for its edges
            await service.find(TASK)
        small = EdgeTask(IMAGE, (8, 8), Canny())
        assert_found(await service.find(small), small)
        assert service.process == process


# --------------------------------------------------------------------------------------------------------------- deaths


async def test_an_image_whose_process_is_killed_is_tried_again() -> None:
    async with opened() as service:
        process = await frozen(service)
        finding = asyncio.create_task(service.find(TASK))
        await asyncio.sleep(0.05)  # it is asked, and cannot answer
        os.kill(process, signal.SIGKILL)
        assert_found(await finding)
        assert service.process not in {None, process}
        assert is_gone(process)


async def test_one_that_is_killed_while_nobody_asks_is_reaped_and_replaced() -> None:
    async with opened() as service:
        await service.find(TASK)
        process = service.process or 0
        os.kill(process, signal.SIGKILL)
        await until(lambda: is_gone(process))
        assert service.process is None
        assert_found(await service.find(TASK))


def end_at_once(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process: it ends when it is asked."""
    send(channel, m.WorkerReady(edge_process.ID, edge_process.COSTS))
    channel.recv(2**16)
    os._exit(3)


def talk_nonsense(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process: what it answers is no message, and it does not end by itself."""
    send(channel, m.WorkerReady(edge_process.ID, edge_process.COSTS))
    channel.recv(2**16)
    channel.send(b"\xc1")
    time.sleep(2 * PATIENCE)


@pytest.mark.parametrize("main", [end_at_once, talk_nonsense])
async def test_an_image_that_costs_two_processes_is_not_tried_again(
    main: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as service:
        monkeypatch.setattr(edge_process, "main", main)
        with pytest.raises(CrashedError, match="2 times"):
            await service.find(TASK)
        assert service.process is None
        monkeypatch.undo()
        assert_found(await service.find(TASK))


def be_ready_and_end(setup: EdgeSetup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process: it ends as soon as it is ready."""
    send(channel, m.WorkerReady(edge_process.ID, edge_process.COSTS))
    os._exit(3)


async def test_a_process_that_is_ready_and_gone_in_one_turn_of_the_loop_counts_as_a_lost_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawn = Processes.spawn

    def stall(processes: Processes[EdgeSetup], worker: str) -> None:
        spawn(processes, worker)
        child = Path(f"/proc/{processes[worker].pid}/stat")
        while child.exists() and " Z " not in child.read_text():  # the loop learns of both at once
            time.sleep(0.01)

    async with opened() as service:
        monkeypatch.setattr(edge_process, "main", be_ready_and_end)
        monkeypatch.setattr(Processes, "spawn", stall)
        with pytest.raises(CrashedError, match="2 times"):
            await service.find(TASK)
        monkeypatch.undo()
        assert_found(await service.find(TASK))


async def test_it_can_be_closed_though_its_memory_cannot_be_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: SlotMemory) -> None:
        raise OSError("no madvise here")

    async with opened() as service:
        assert_found(await service.find(TASK))
        monkeypatch.setattr(SlotMemory, "clear", fail)


async def test_one_that_takes_too_long_is_killed_and_the_next_image_has_another() -> None:
    async with opened(EdgeLimits(work=1.0)) as service:
        process = await frozen(service)
        with pytest.raises(SlowError):
            await service.find(TASK)
        assert is_gone(process)
        assert_found(await service.find(TASK))


async def test_it_ends_when_nobody_has_asked_for_a_while() -> None:
    async with opened(EdgeLimits(idle=0.05)) as service:
        await service.find(TASK)
        first = service.process
        await until(lambda: service.process is None)
        assert_found(await service.find(TASK))
        assert service.process != first


async def test_closing_leaves_nothing_behind_whatever_is_going_on() -> None:
    async with opened() as service:
        await service.find(TASK)  # multiprocessing keeps a descriptor from the first process on
    gc.collect()  # what earlier tests have left may go at any time
    before = set(os.listdir("/proc/self/fd"))
    async with opened(EdgeLimits(end=0.1)) as service:
        process = await frozen(service)
        finding = [asyncio.create_task(service.find(TASK)) for _ in range(2)]
        await asyncio.sleep(0.05)
        await service.close()
        assert is_gone(process)
        for refused in (*finding, service.find(TASK)):
            with pytest.raises(ClosingError):
                await refused
    assert set(os.listdir("/proc/self/fd")) <= before


async def test_closing_answers_who_is_there() -> None:
    async with opened() as service:
        process = await frozen(service)
        finding = [asyncio.create_task(service.find(TASK)) for _ in range(3)]
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(service.close())
        await asyncio.sleep(0)
        with pytest.raises(ClosingError):
            await service.find(TASK)
        go_on(process)
        for png in await asyncio.gather(*finding):
            assert_found(png)
        await closing
        assert is_gone(process)


async def test_errors_that_no_request_awaits_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as service:
        process = await frozen(service)
        leaving = asyncio.create_task(service.find(EdgeTask(b"no image", (64, 64), Canny())))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.wait([leaving])
        go_on(process)
        assert_found(await service.find(TASK))
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# --------------------------------------------------------------------------------------------------------------- queue


async def test_so_many_may_wait_and_the_next_is_told_so() -> None:
    async with opened(EdgeLimits(waiting=2)) as service:
        process = await frozen(service)
        taken = [asyncio.create_task(service.find(TASK, client)) for client in "abc"]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match=r"^2 requests are waiting .* Try again in \d+ s\.$"):
            await service.find(TASK, "d")
        go_on(process)
        for png in await asyncio.gather(*taken):
            assert_found(png)
        assert_found(await service.find(TASK))


async def test_one_client_may_have_as_many_waiting_as_it_leaves_free() -> None:
    async with opened() as service:
        process = await frozen(service)
        taken = [asyncio.create_task(service.find(TASK, "many")) for _ in range(9)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match=r"^8 of your requests are waiting"):
            await service.find(TASK, "many")
        taken += [asyncio.create_task(service.find(TASK, f"single {n}")) for n in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match=r"^16 requests are waiting"):
            await service.find(TASK, "one more")
        go_on(process)
        for png in await asyncio.gather(*taken):
            assert_found(png)


async def test_clients_take_turns() -> None:
    async with opened() as service:
        process = await frozen(service)
        order: list[str] = []

        async def find(client: str) -> None:
            assert_found(await service.find(TASK, client))
            order.append(client)

        tasks = []
        for client in "aaaaabbcb":
            tasks.append(asyncio.create_task(find(client)))
            await asyncio.sleep(0)
        go_on(process)
        await asyncio.gather(*tasks)
        assert "".join(order) == "abcababaa"


async def test_a_client_with_a_dozen_requests_keeps_another_waiting_for_two_turns_at_most() -> None:
    async with opened() as service:
        await service.find(TASK)
        done_by_a = 0

        async def keep_asking() -> None:
            nonlocal done_by_a
            while True:
                try:
                    await service.find(TASK, "a")
                    done_by_a += 1
                except BusyError:
                    await asyncio.sleep(0.001)

        asking = [asyncio.create_task(keep_asking()) for _ in range(12)]
        await until(lambda: done_by_a >= 12)
        for _ in range(10):
            before = done_by_a
            assert_found(await service.find(TASK, "b"))
            assert done_by_a - before <= 2
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)


async def test_a_turn_is_not_lost_with_a_request_that_leaves_as_it_begins() -> None:
    turns = FairLock()
    await turns.take("first")
    leaving = [asyncio.create_task(turns.take(f"{n}")) for n in range(3)]
    staying = asyncio.create_task(turns.take("staying"))
    await asyncio.sleep(0)
    leaving[0].cancel()  # before its turn
    turns.release()
    leaving[1].cancel()  # after its turn has come, before it hears of it
    await asyncio.wait(leaving[:2])
    assert all(task.cancelled() for task in leaving[:2])
    await leaving[2]
    assert (turns.waiting.total(), staying.done()) == (1, False)
    turns.release()
    await staying
    turns.release()
    assert turns.waiting.total() == 0
    assert turns.idle.is_set()


async def test_a_refused_client_is_told_when_its_turn_would_come() -> None:
    async with opened(EdgeLimits(waiting=4)) as service:
        process = await frozen(service)
        first = asyncio.create_task(service.find(TASK, "a"))
        await asyncio.sleep(1.0)
        go_on(process)
        assert_found(await first)  # two took a second and more, together
        os.kill(process, signal.SIGSTOP)
        taken = [asyncio.create_task(service.find(TASK, "a")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as own:
            await service.find(TASK, "a")
        taken += [asyncio.create_task(service.find(TASK, client)) for client in "bc"]
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as others:
            await service.find(TASK, "d")
        go_on(process)
        await asyncio.gather(*taken)
        # Of "a", three come before a fourth; of "d", the one at work and one of each other client.
        assert 1.5 <= own.value.retry_after < PATIENCE
        assert others.value.retry_after == pytest.approx(own.value.retry_after * 4 / 3)


async def test_the_wait_for_a_turn_is_bounded() -> None:
    async with opened(EdgeLimits(turn=0.1)) as service:
        process = await frozen(service)
        first = asyncio.create_task(service.find(TASK))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match=r"0\.1 s"):
            await service.find(TASK)
        go_on(process)
        assert_found(await first)


async def test_a_leaving_client_makes_room_and_no_edges_are_mixed_up() -> None:
    async with opened(EdgeLimits(waiting=4)) as service:
        process = await frozen(service)
        leaving = [asyncio.create_task(service.find(TASK)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        others = [EdgeTask(IMAGE, (64, 64), Canny()), EdgeTask(IMAGE, (128, 64), Canny())]
        staying = [asyncio.create_task(service.find(other)) for other in others]
        await asyncio.sleep(0)
        go_on(process)
        for other, png in zip(others, await asyncio.gather(*staying), strict=True):
            assert_found(png, other)
        assert service.process == process
