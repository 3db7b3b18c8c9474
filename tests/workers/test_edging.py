"""Edges found in a process of their own, from inside the event loop that asks for them."""

import asyncio
import gc
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz.seeds import file_of
from tests.workers.contours import drawing, expected, files, pixels_of, size_of
from workers import edges
from workers.edger import FailedError, Wanted
from workers.edging import ClosingError, CrowdedError, Edging, FairQueue, LostError, Patience, SlowError, layout
from workers.engine.config import Canny, Sizing
from workers.engine.contract import BadPictureError
from workers.slots import SlotLayout, SlotMemory

PATIENCE = 120.0  # seconds, before a test gives something up
SIZING = Sizing(short_side=128, long_side=256)
ROOM = layout(2**20, SIZING)
PICTURE = file_of(drawing(200, 150), "PNG")
WANTED = Wanted(PICTURE, size_of(PICTURE, SIZING), Canny())


@asynccontextmanager
async def opened(patience: Patience | None = None, room: SlotLayout = ROOM) -> AsyncIterator[Edging]:
    edging = Edging(room, edges.Setup(), patience)
    try:
        yield edging
    finally:
        await edging.close()
    assert edging.process is None


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 2 * PATIENCE))


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def frozen(edging: Edging) -> int:
    """Have the process started and stop it: it takes no order until it is told to go on. Its id."""
    await edging.find(WANTED)
    assert edging.process is not None
    os.kill(edging.process, signal.SIGSTOP)
    return edging.process


def go_on(process: int) -> None:
    os.kill(process, signal.SIGCONT)


def is_gone(process: int) -> bool:
    """Whether it was reaped, too."""
    return not Path(f"/proc/{process}").exists()


def assert_found(png: bytes, wanted: Wanted = WANTED) -> None:
    assert isinstance(wanted.work, Canny)
    assert np.array_equal(pixels_of(png), expected(wanted.picture, wanted.size, wanted.work))


# ------------------------------------------------------------------------------------------------------------- answers


def test_it_finds_what_the_codec_finds_by_one_process_that_is_there_when_it_is_needed() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            assert edging.process is None
            processes: set[int | None] = set()
            for picture in files().values():
                wanted = Wanted(picture, size_of(picture, SIZING), Canny(low=60, high=90))
                assert_found(await edging.find(wanted), wanted)
                processes.add(edging.process)
            assert len(processes - {None}) == 1

    run(scenario())


def test_the_thresholds_are_those_that_were_wanted() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            counts = []
            for canny in (Canny(low=10, high=20), Canny(low=100, high=200), Canny(low=1900, high=2000)):
                wanted = Wanted(PICTURE, WANTED.size, canny)
                png = await edging.find(wanted)
                assert_found(png, wanted)
                counts.append(np.count_nonzero(pixels_of(png)))
            assert counts[0] > counts[1] > counts[2] == 0

    run(scenario())


def test_a_bad_picture_and_a_failure_cost_their_own_request_alone() -> None:
    async def scenario() -> None:
        async with opened(room=SlotLayout(1, 2**20, 500)) as edging:
            with pytest.raises(BadPictureError, match="cut short"):
                await edging.find(Wanted(PICTURE[:100], WANTED.size, Canny()))
            process = edging.process
            with pytest.raises(FailedError, match="ValueError"):  # there is no room for its edges
                await edging.find(WANTED)
            small = Wanted(PICTURE, (8, 8), Canny())
            assert_found(await edging.find(small), small)
            assert edging.process == process

    run(scenario())


# --------------------------------------------------------------------------------------------------------------- deaths


def test_a_picture_whose_process_is_killed_is_tried_again() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            process = await frozen(edging)
            finding = asyncio.create_task(edging.find(WANTED))
            await asyncio.sleep(0.05)  # it is asked, and cannot answer
            os.kill(process, signal.SIGKILL)
            assert_found(await finding)
            assert edging.process not in {None, process}
            assert is_gone(process)

    run(scenario())


def test_one_that_is_killed_while_nobody_asks_is_reaped_and_replaced() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            await edging.find(WANTED)
            process = edging.process or 0
            os.kill(process, signal.SIGKILL)
            await until(lambda: is_gone(process))
            assert edging.process is None
            assert_found(await edging.find(WANTED))

    run(scenario())


def end_at_once(setup: edges.Setup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process: it ends when it is asked."""
    edges.send(channel, edges.Ready())
    channel.recv(2**16)
    os._exit(3)


def talk_nonsense(setup: edges.Setup, channel: socket.socket, memory: SlotMemory) -> None:
    """Runs as the process: what it answers is no message, and it does not end by itself."""
    edges.send(channel, edges.Ready())
    channel.recv(2**16)
    channel.send(b"\xc1")
    time.sleep(2 * PATIENCE)


@pytest.mark.parametrize("main", [end_at_once, talk_nonsense])
def test_a_picture_that_costs_two_processes_is_not_tried_again(
    main: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with opened() as edging:
            monkeypatch.setattr(edges, "main", main)
            with pytest.raises(LostError, match="2 processes"):
                await edging.find(WANTED)
            assert edging.process is None
            monkeypatch.undo()
            assert_found(await edging.find(WANTED))

    run(scenario())


def test_one_that_takes_too_long_is_killed_and_the_next_picture_has_another() -> None:
    async def scenario() -> None:
        async with opened(Patience(work=1.0)) as edging:
            process = await frozen(edging)
            with pytest.raises(SlowError):
                await edging.find(WANTED)
            assert is_gone(process)
            assert_found(await edging.find(WANTED))

    run(scenario())


def test_it_ends_when_nobody_has_asked_for_a_while() -> None:
    async def scenario() -> None:
        async with opened(Patience(idle=0.05)) as edging:
            await edging.find(WANTED)
            first = edging.process
            await until(lambda: edging.process is None)
            assert_found(await edging.find(WANTED))
            assert edging.process != first

    run(scenario())


def test_closing_leaves_nothing_behind_whatever_is_going_on() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            await edging.find(WANTED)  # multiprocessing keeps a descriptor from the first process on
        before = set(os.listdir("/proc/self/fd"))
        async with opened(Patience(end=0.1)) as edging:
            process = await frozen(edging)
            finding = [asyncio.create_task(edging.find(WANTED)) for _ in range(2)]
            await asyncio.sleep(0.05)
            await edging.close()
            assert is_gone(process)
            for refused in (*finding, edging.find(WANTED)):
                with pytest.raises(ClosingError):
                    await refused
        assert set(os.listdir("/proc/self/fd")) == before

    run(scenario())


def test_closing_answers_who_is_there() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            process = await frozen(edging)
            finding = [asyncio.create_task(edging.find(WANTED)) for _ in range(3)]
            await asyncio.sleep(0.05)
            closing = asyncio.create_task(edging.close())
            await asyncio.sleep(0)
            with pytest.raises(ClosingError):
                await edging.find(WANTED)
            go_on(process)
            for png in await asyncio.gather(*finding):
                assert_found(png)
            await closing
            assert is_gone(process)

    run(scenario())


def test_nobody_complains_of_errors_that_nobody_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with opened() as edging:
            process = await frozen(edging)
            leaving = asyncio.create_task(edging.find(Wanted(b"no picture", (64, 64), Canny())))
            await asyncio.sleep(0.05)
            leaving.cancel()
            await asyncio.wait([leaving])
            go_on(process)
            assert_found(await edging.find(WANTED))

    run(scenario())
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


# --------------------------------------------------------------------------------------------------------------- queue


def test_so_many_may_wait_and_the_next_is_told_so() -> None:
    async def scenario() -> None:
        async with opened(Patience(waiting=2)) as edging:
            process = await frozen(edging)
            taken = [asyncio.create_task(edging.find(WANTED, client)) for client in "abc"]
            await asyncio.sleep(0)
            with pytest.raises(CrowdedError, match=r"^2 requests wait .* Try again in \d+ s\.$"):
                await edging.find(WANTED, "d")
            go_on(process)
            for png in await asyncio.gather(*taken):
                assert_found(png)
            assert_found(await edging.find(WANTED))

    run(scenario())


def test_one_client_may_have_as_many_waiting_as_it_leaves_free() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            process = await frozen(edging)
            taken = [asyncio.create_task(edging.find(WANTED, "many")) for _ in range(9)]
            await asyncio.sleep(0)
            with pytest.raises(CrowdedError, match=r"^8 of your requests wait"):
                await edging.find(WANTED, "many")
            taken += [asyncio.create_task(edging.find(WANTED, f"single {n}")) for n in range(8)]
            await asyncio.sleep(0)
            with pytest.raises(CrowdedError, match=r"^16 requests wait"):
                await edging.find(WANTED, "one more")
            go_on(process)
            for png in await asyncio.gather(*taken):
                assert_found(png)

    run(scenario())


def test_clients_take_turns() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            process = await frozen(edging)
            order: list[str] = []

            async def find(client: str) -> None:
                assert_found(await edging.find(WANTED, client))
                order.append(client)

            tasks = []
            for client in "aaaaabbcb":
                tasks.append(asyncio.create_task(find(client)))
                await asyncio.sleep(0)
            go_on(process)
            await asyncio.gather(*tasks)
            assert "".join(order) == "abcababaa"

    run(scenario())


def test_a_client_with_a_dozen_requests_keeps_another_waiting_for_two_turns_at_most() -> None:
    async def scenario() -> None:
        async with opened() as edging:
            await edging.find(WANTED)
            done_by_a = 0

            async def keep_asking() -> None:
                nonlocal done_by_a
                while True:
                    try:
                        await edging.find(WANTED, "a")
                        done_by_a += 1
                    except CrowdedError:
                        await asyncio.sleep(0.001)

            asking = [asyncio.create_task(keep_asking()) for _ in range(12)]
            await until(lambda: done_by_a >= 12)
            for _ in range(10):
                before = done_by_a
                assert_found(await edging.find(WANTED, "b"))
                assert done_by_a - before <= 2
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)

    run(scenario())


def test_a_turn_is_not_lost_with_a_request_that_leaves_as_it_begins() -> None:
    async def scenario() -> None:
        turns = FairQueue()
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
        assert (turns.waiting, staying.done()) == (1, False)
        turns.release()
        await staying
        turns.release()
        assert turns.waiting == 0
        assert turns.idle.is_set()

    run(scenario())


def test_a_refused_client_is_told_when_its_turn_would_come() -> None:
    async def scenario() -> None:
        async with opened(Patience(waiting=4)) as edging:
            process = await frozen(edging)
            first = asyncio.create_task(edging.find(WANTED, "a"))
            await asyncio.sleep(1.0)
            go_on(process)
            assert_found(await first)  # two took a second and more, together
            os.kill(process, signal.SIGSTOP)
            taken = [asyncio.create_task(edging.find(WANTED, "a")) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(CrowdedError) as own:
                await edging.find(WANTED, "a")
            taken += [asyncio.create_task(edging.find(WANTED, client)) for client in "bc"]
            await asyncio.sleep(0)
            with pytest.raises(CrowdedError) as others:
                await edging.find(WANTED, "d")
            go_on(process)
            await asyncio.gather(*taken)
            # Of "a", three come before a fourth; of "d", the one at work and one of each other client.
            assert 1.5 <= own.value.retry_after < PATIENCE
            assert others.value.retry_after == pytest.approx(own.value.retry_after * 4 / 3)

    run(scenario())


def test_nobody_waits_for_a_turn_without_end() -> None:
    async def scenario() -> None:
        async with opened(Patience(turn=0.1)) as edging:
            process = await frozen(edging)
            first = asyncio.create_task(edging.find(WANTED))
            await asyncio.sleep(0)
            with pytest.raises(CrowdedError, match=r"0\.1 s"):
                await edging.find(WANTED)
            go_on(process)
            assert_found(await first)

    run(scenario())


def test_who_leaves_makes_room_and_gets_nobody_elses_edges() -> None:
    async def scenario() -> None:
        async with opened(Patience(waiting=4)) as edging:
            process = await frozen(edging)
            leaving = [asyncio.create_task(edging.find(WANTED)) for _ in range(3)]
            await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            others = [Wanted(PICTURE, (64, 64), Canny()), Wanted(PICTURE, (128, 64), Canny())]
            staying = [asyncio.create_task(edging.find(other)) for other in others]
            await asyncio.sleep(0)
            go_on(process)
            for other, png in zip(others, await asyncio.gather(*staying), strict=True):
                assert_found(png, other)
            assert edging.process == process

    run(scenario())
