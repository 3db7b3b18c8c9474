"""One client's connection: uvicorn's protocol with bounds on what is kept, and with our errors.

An answer may come before the whole request was read: 403, 413, 503. To close a socket with unread bytes resets the
connection, and a reset destroys what the client has not read yet: the very answer that says why (RFC 9112, 9.6). So at
first only our side is closed, and for a moment what still comes is read and dropped, as other servers do.

Uvicorn keeps heads and trailers of any length, and as many pipelined requests as a client cares to send. It also loses
the body of a request that offers an upgrade, as Java's HTTP client does at first (RFC 9110 7.8: it may be ignored), and
if a connection with several requests is lost, only the last one is notified.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import Error, Problem, respond

MAX_PIPELINED = 100  # requests that wait for the answer to the one before them
# Pieces that a body may come in: some, and one for each so many bytes. Each costs 5 us, and a read may hold 40,000.
FREE_PIECES, PIECE_BYTES = 10_000, 64
# What the parser says, and what the author of a client wants to know.
UNREADABLE = (
    ("method", "The request does not begin with a method of HTTP, such as POST. This port speaks no TLS (https://)."),
    ("url", "The path has characters that are not allowed in one; percent-encode them."),
    ("Expected HTTP/", "The first line must be METHOD PATH HTTP/1.1; a space in a path is written %20."),
    ("PRI/Upgrade", "This port speaks HTTP/1.1; HTTP/2 is a matter for a proxy before it."),
    ("Transfer-Encoding can't", "A request has either Content-Length or Transfer-Encoding, not both."),
    ("Transfer-Encoding", "The only supported Transfer-Encoding is chunked."),
    ("Duplicate Content-Length", "The request has more than one Content-Length."),
    ("in Content-Length", "Content-Length must be a number in decimal digits."),
    ("chunk", "The chunked body is malformed: a chunk is its size in hexadecimal, a line end, and that many bytes."),
    ("header value", "The value of a header has a control character."),
    ("header", "A header is malformed: it must be NAME: VALUE, without a space before the colon."),
)
LINGER_SECONDS, LINGER_BYTES = 2.0, 32 * 2**20  # that a client may go on to send before it reads its answer


class Connection(HttpToolsProtocol):
    """Tell uvicorn of it with `http=Connection`."""

    max_head_bytes = 64 * 1024  # request line and headers; other servers take 8 to 64 KiB
    # Told of each problem that closes a connection, and of the client's address.
    on_refusal: Callable[[Problem, str], None] = staticmethod(lambda problem, client: None)

    # Bytes read since a head began or ended or a piece of a body came: of a head, of a trailer, or between chunks.
    _unused = 0
    _refusal: Problem | None = None
    _running: RequestResponseCycle | None = None
    _pieces = _body_bytes = 0  # of the present body
    _dropped = 0  # bytes, since our side was closed
    _in_message = False  # a head has begun, and its body has not ended

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_LingeringTransport(transport, self))  # type: ignore[arg-type]

    @property
    def is_sending(self) -> bool:
        return self._in_message

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls the methods below."""
        if self.transport.is_closing():
            self._drop(len(data))
            return
        self._unset_keepalive_if_required()
        self._unused += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._ignore_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or Problem(Error.MALFORMED_HTTP, _unreadable(error)))
        else:
            if self._unused > self.max_head_bytes:
                self._refuse(self._head_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unused = self._pieces = self._body_bytes = 0
        self._in_message = True

    def on_headers_complete(self) -> None:
        """A head is complete. What is raised here comes back out of the parser as HttpParserError."""
        self._unused = 0
        if self._offers_upgrade():
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.max_head_bytes:
            self._refusal = self._head_too_large()
        elif len(self.pipeline) >= MAX_PIPELINED:
            detail = f"More than {MAX_PIPELINED} requests came before the first of them was answered."
            self._refusal = Problem(Error.MALFORMED_HTTP, detail)
        if self._refusal is not None:
            raise self._refusal
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body came. What is raised here comes back out of the parser as HttpParserError."""
        self._unused = 0
        self._pieces += 1
        self._body_bytes += len(body)
        if self._pieces > FREE_PIECES + self._body_bytes // PIECE_BYTES:
            self._refusal = Problem(Error.MALFORMED_HTTP, "The body comes in too many small chunks; send larger ones.")
            raise self._refusal
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._offers_upgrade():
            self._in_message = False
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._abandon()
        super().connection_lost(exc)

    def end(self, problem: Problem) -> None:
        """Close the connection now, with a problem if a request has arrived and no answer has begun."""
        if self._running is not None and self._running.response_started and not self._running.response_complete:
            self.transport.abort()
        elif self._in_message or self._unused or (self._running is not None and not self._running.response_complete):
            self._refuse(problem)
        else:
            self.transport.close()

    def _drop(self, length: int) -> None:
        self._dropped += length
        if self._dropped > LINGER_BYTES:
            self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _abandon(self) -> None:
        """Tell the running request that nobody will read its answer."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _offers_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request once more, as if it offered none."""
        if not self._offers_upgrade():
            return
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self.data_received(b"".join([line, *headers, b"\r\n", rest]))

    def _refuse(self, problem: Problem) -> None:
        """Answer with an error and close: where the next request begins is not known."""
        if self.transport.is_closing():
            return
        self.on_refusal(problem, self.client[0] if self.client else "")
        self.flow.resume_reading()  # uvicorn must not ask for it when the transport is closed
        response = respond(problem)
        fields = dict(response.raw_headers) | {b"connection": b"close"}
        headers = [b"%b: %b\r\n" % field for field in fields.items()]
        body = b"" if self.parser.get_method() == b"HEAD" else response.body
        self.transport.write(b"".join([STATUS_LINE[response.status_code], *headers, b"\r\n", body]))
        self._in_message = self._in_message or self._unused > 0  # whatever it was, there may be more of it
        self.transport.close()
        self._abandon()

    def _head_too_large(self) -> Problem:
        detail = f"The request's line and headers take more than {self.max_head_bytes} bytes."
        return Problem(Error.HEAD_TOO_LARGE, detail)


def _unreadable(error: httptools.HttpParserError) -> str:
    """Explain what is wrong with bytes that the parser refuses."""
    for words, explanation in UNREADABLE:
        if words in str(error):
            return explanation
    return "This is not a request of HTTP/1.1; each of its lines ends with a carriage return and a line feed."


class _LingeringTransport:
    """A transport whose `close` lets the client read what was written, although it is still sending."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._connection.is_sending:
            self._transport.close()
            return
        self._closing = True
        self._transport.write_eof()
        self._connection.flow.resume_reading()
        self._connection.loop.call_later(LINGER_SECONDS, self._transport.close)
