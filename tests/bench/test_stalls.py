"""The benchmark of stalls: its probe of an event loop, and its requests."""

import asyncio
import time

import pytest

from tests.bench.watched import MARK, LoopWatch, processor_ms
from tests.fuzz.hostile import HEADS

BUSY_SECONDS = 0.1


def test_a_busy_loop_is_logged_with_where_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    async def stall() -> None:
        LoopWatch(asyncio.get_running_loop()).start()
        await asyncio.sleep(0.1)
        keep_busy()
        await asyncio.sleep(0.1)

    asyncio.run(stall())
    found = [line for line in capfd.readouterr().err.splitlines() if line.startswith(MARK) and "keep_busy" in line]
    assert found
    assert processor_ms(found[0]) >= BUSY_SECONDS * 1e3 / 2


def keep_busy() -> None:
    until = time.thread_time() + BUSY_SECONDS
    while time.thread_time() < until:
        pass


@pytest.mark.parametrize("name", HEADS)
def test_a_large_head_is_still_within_what_is_taken(name: str) -> None:
    request = HEADS[name]()
    assert 0 < len(request.head) < 64 * 1024
    assert request.head.startswith(f"{request.method} {request.path} HTTP/1.1\r\n".encode("latin-1"))
