"""HTTP by hand: one request over a connection of its own, as quickly or as badly as a test wants it sent."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

PIECES = 10  # that a slow client cuts its body into, or takes the answer in
PAUSE_SECONDS = 0.2  # between two of them
LARGEST_HEAD = 64 * 1024  # bytes


class Manner(Enum):
    """How a client behaves."""

    PLAIN = "plain"
    SLOW_SENDER = "slow sender"
    SLOW_READER = "slow reader"
    HALF_CLOSED = "half-closed"  # it says that it will send nothing more, and listens
    LEAVES_IN_BODY = "leaves in its body"
    UNFINISHED = "unfinished body"  # it waits for an answer before it has sent all


class Cut(ConnectionError):
    """The connection ended before a whole answer was there."""


@dataclass(frozen=True, slots=True)
class Response:
    """What came back; `seconds` from the last byte sent to the head of the answer, `rest` what followed its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    rest: bytes


def message(body: bytes, headers: Mapping[str, str] | None = None, path: str = "/generation/") -> tuple[bytes, bytes]:
    """Head and body of a POST that ends its connection."""
    fields = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode(), body


async def ask(url: str, head: bytes, body: bytes, manner: Manner = Manner.PLAIN, source: str | None = None) -> Response:
    """Send a request and read its answer. Cancelling it closes the connection at once, as a client that leaves does.

    `source` is the address that it comes from; None leaves it to the system.

    Raises Cut when there is no whole answer, ConnectionRefusedError when nobody listens.
    """
    async with _connection(url, source) as (reader, writer):
        # A server may answer before it has heard all, and close.
        with contextlib.suppress(ConnectionError):
            await _send(writer, head, body, manner)
        sent = time.monotonic()
        if manner is Manner.LEAVES_IN_BODY:
            raise Cut("it left in its body")
        try:
            return await _receive(reader, sent, manner)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut(f"{type(error).__name__}: {error}") from None


async def get(url: str, path: str) -> Response:
    """GET a path."""
    return await ask(url, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(), b"")


@asynccontextmanager
async def _connection(url: str, source: str | None) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = urlsplit(url)
    local = None if source is None else (source, 0)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=LARGEST_HEAD, local_addr=local)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, head: bytes, body: bytes, manner: Manner) -> None:
    writer.write(head)
    match manner:
        case Manner.SLOW_SENDER:
            for piece in _pieces(body):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(PAUSE_SECONDS)
        case Manner.LEAVES_IN_BODY:
            writer.write(body[: len(body) // 2])
            await writer.drain()
            await asyncio.sleep(PAUSE_SECONDS)
        case Manner.UNFINISHED:
            writer.write(body[:-1])
            await writer.drain()
        case _:
            writer.write(body)
            await writer.drain()
    if manner is Manner.HALF_CLOSED:
        writer.write_eof()


async def _receive(reader: asyncio.StreamReader, sent: float, manner: Manner) -> Response:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    seconds = time.monotonic() - sent
    status, *fields = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    length = int(headers.get("content-length", "0"))
    body = await (_read_slowly(reader, length) if manner is Manner.SLOW_READER else reader.readexactly(length))
    # Only a connection that is to be closed shows whether anything followed.
    rest = await reader.read() if headers.get("connection") == "close" else b""
    return Response(int(status.split()[1]), headers, body, seconds, rest)


async def _read_slowly(reader: asyncio.StreamReader, length: int) -> bytes:
    pieces = []
    for size in map(len, _pieces(bytes(length))):
        await asyncio.sleep(PAUSE_SECONDS)
        pieces.append(await reader.readexactly(size))
    return b"".join(pieces)


def _pieces(body: bytes) -> list[bytes]:
    size = len(body) // PIECES + 1
    return [body[start : start + size] for start in range(0, len(body), size)]
