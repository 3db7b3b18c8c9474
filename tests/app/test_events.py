"""A client that reads slowly gets the latest event of each kind, in order."""

import asyncio
from typing import Any

import pytest

from app.http import events
from app.http.events import EventStream, Feed
from scheduler.messages import QueuePosition
from workers.jobs import Advanced, Previewed, Started


def test_of_each_kind_the_latest_is_told() -> None:
    feed = Feed()
    published = (
        QueuePosition(2, 4.0),
        QueuePosition(1, 2.5),
        Started(),
        Advanced(1, 9),
        Previewed(b"1"),
        Advanced(2, 9),
    )
    for event in published:
        feed.publish(0, event)
    feed.publish(1, QueuePosition(0, None))
    assert feed.take() == (
        b'event: queued\ndata: {"image":0,"position":1,"seconds":2.5}\n\n'
        b'event: started\ndata: {"image":0}\n\n'
        b'event: preview\ndata: {"image":0,"jpeg_base64":"MQ=="}\n\n'
        b'event: step\ndata: {"image":0,"done":2,"total":9}\n\n'
        b'event: queued\ndata: {"image":1,"position":0,"seconds":null}\n\n'
    )
    assert feed.take() == b""


class Connection:
    """The server's side of ASGI, with a client that leaves when it is told to."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.hears = asyncio.Event()  # more than the head

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if len(self.sent) > 1:
            self.hears.set()

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


def stream(feed: Feed, making: "asyncio.Task[bytes]", ended: list[str]) -> EventStream:
    made = EventStream(feed, making, lambda task: (events.encode_event("done", task.result()), "done"))
    made.ended = ended.append
    return made


async def test_a_quiet_stream_sends_comments_and_ends_with_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_SECONDS", 0.01)

    connection, done = Connection(), asyncio.Event()
    ended: list[str] = []

    async def make() -> bytes:
        await done.wait()
        return b"{}"

    answering = asyncio.ensure_future(
        stream(Feed(), asyncio.ensure_future(make()), ended)({}, connection.receive, connection.send)
    )
    await connection.hears.wait()
    done.set()
    await answering
    assert connection.body.startswith(b": still there\n\n")
    assert connection.body.endswith(b"event: done\ndata: {}\n\n")
    assert [message["more_body"] for message in connection.sent[-2:]] == [True, False]
    assert ended == ["done"]


async def test_a_client_that_leaves_cancels_the_work() -> None:
    connection = Connection()
    ended: list[str] = []
    making = asyncio.ensure_future(asyncio.sleep(60, b""))
    answering = asyncio.ensure_future(stream(Feed(), making, ended)({}, connection.receive, connection.send))
    await asyncio.sleep(0.01)
    connection.left.set()
    await answering
    await asyncio.wait([making])
    assert making.cancelled()
    assert ended == ["abandoned"]


@pytest.mark.parametrize(
    ("error", "outcome"), [(RuntimeError("of ours"), "internal"), (ConnectionResetError(), "abandoned")], ids=str
)
async def test_an_error_of_ours_is_not_taken_for_a_client_that_left(
    error: Exception, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection()
    ended: list[str] = []

    def fails(task: "asyncio.Task[bytes]") -> tuple[bytes, str]:
        raise error

    async def make() -> bytes:
        return b"{}"

    made = EventStream(Feed(), asyncio.ensure_future(make()), fails)
    made.ended = ended.append
    await made({}, connection.receive, connection.send)
    assert ended == [outcome]
    assert ("A stream of events failed" in caplog.text) == (outcome == "internal")
