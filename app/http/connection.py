"""One client's connection: uvicorn's protocol with limits on memory, time and number, and with our errors.

An answer may come before the whole request was read: 403, 413, 503. To close a socket with unread bytes resets the
connection, and a reset destroys what the client has not read yet: the very answer that says why (RFC 9112, 9.6). So at
first only our side is closed, and for a moment what still comes is read and dropped, as other servers do.

Uvicorn keeps heads and trailers of any length, and as many pipelined requests as a client cares to send. It also loses
the body of a request that offers an upgrade, as Java's HTTP client does at first (RFC 9110 7.8: it may be ignored), and
if a connection with several requests is lost, only the last one is notified. It limits only how long a connection may
be idle after an answer, and waits forever for a head, for a body, and for a client that does not read its answer.
"""

import asyncio
from collections.abc import Callable
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import Error, Problem, respond
from app.http.access import client_of
from app.settings import ServerConfig

MAX_PIPELINED = 100  # requests that wait for the answer to the one before them
# The chunks that a body may have: a fixed number, and one more per so many bytes. Each costs 5 us, and a read may hold
# 40,000.
FREE_PIECES, PIECE_BYTES = 10_000, 64
# What the parser says, and what the author of a client wants to know.
UNREADABLE = (
    ("method", "The request does not begin with an HTTP method such as POST. This port does not speak TLS (https://)."),
    ("url", "The path has characters that are not allowed in a path; percent-encode them."),
    ("Expected HTTP/", "The first line must be METHOD PATH HTTP/1.1; a space in a path is written %20."),
    ("PRI/Upgrade", "This port speaks HTTP/1.1; for HTTP/2, put a proxy in front of it."),
    ("Transfer-Encoding can't", "A request has either Content-Length or Transfer-Encoding, not both."),
    ("Transfer-Encoding", "The only supported Transfer-Encoding is chunked."),
    ("Duplicate Content-Length", "The request has more than one Content-Length."),
    ("in Content-Length", "Content-Length must be a number in decimal digits."),
    ("chunk", "The chunked body is malformed: each chunk is its size in hexadecimal, a line end, and that many bytes."),
    ("header value", "The value of a header has a control character."),
    ("header", "A header is malformed: it must be NAME: VALUE, without a space before the colon."),
)
LINGER_SECONDS, LINGER_BYTES = 2.0, 32 * 2**20  # that a client may go on to send before it reads its answer


class Connection(HttpToolsProtocol):
    """A connection within the limits of a configuration: see `limited`."""

    limits: ServerConfig
    on_refusal: Callable[[Problem, str], None]  # called with the problem and the client's address

    in_message = False  # a head has begun, and its body has not ended
    # Bytes read since a head began or ended or a piece of a body came: of a head, of a trailer, or between chunks.
    _unused = 0
    _refusal: Problem | None = None
    _running: RequestResponseCycle | None = None
    _pieces = _body_bytes = 0  # of the present body
    _dropped = 0  # bytes, since our side was closed
    _in_head = False
    _sending: asyncio.TimerHandle | None = None  # the client has a head or a body to send until then
    _reading: asyncio.TimerHandle | None = None  # it has an answer to read until then

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection over the limit at once."""
        super().connection_made(_LingeringTransport(transport, self))  # type: ignore[arg-type]
        if self._is_too_much():
            detail = "Close connections that you do not need, or try again later."
            self._refuse(Problem(Error.CONNECTIONS, detail, retry_after=1.0))
        else:
            self._expect_head()

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
            if self._unused > self.limits.max_header_bytes:
                self._refuse(self._head_too_large())
        # Any byte stops uvicorn's timer of idle connections, even if no request begins with it.
        if self._sending is None and self._is_idle() and not self.transport.is_closing():
            self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unused = self._pieces = self._body_bytes = 0
        self.in_message = self._in_head = True
        if self._sending is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """A head is complete. What is raised here comes back out of the parser as HttpParserError."""
        self._unused = 0
        if not self._offers_upgrade():
            self._check_head()
            super().on_headers_complete()
        self._in_head = False
        self._expect(self.limits.body_seconds, self._body_is_late)

    def _check_head(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.limits.max_header_bytes:
            self._refusal = self._head_too_large()
        elif len(self.pipeline) >= MAX_PIPELINED:
            detail = f"More than {MAX_PIPELINED} requests came before the first of them was answered."
            self._refusal = Problem(Error.MALFORMED_HTTP, detail)
        if self._refusal is not None:
            raise self._refusal

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
            self.in_message = False
            super().on_message_complete()
        self._stop_sending()

    def pause_writing(self) -> None:
        """The client does not read: give it a limited time."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.limits.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_sending()
        self._stop_reading()
        self._abandon()
        super().connection_lost(exc)

    def end(self, problem: Problem) -> None:
        """Close the connection now, with a problem if a request has arrived and no answer has begun."""
        if self._running is not None and self._running.response_started and not self._running.response_complete:
            self.transport.abort()
        elif self.in_message or self._unused or (self._running is not None and not self._running.response_complete):
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
        self.in_message = self.in_message or self._unused > 0  # whatever it was, there may be more of it
        self.transport.close()
        self._abandon()

    def _head_too_large(self) -> Problem:
        detail = f"The request line and headers take more than {self.limits.max_header_bytes} bytes."
        return Problem(Error.HEAD_TOO_LARGE, detail)

    # ---------------------------------------------------------------------------------------------- number and time

    def _is_too_much(self) -> bool:
        """A client may have as many connections as it leaves free; a trusted proxy stands for many clients."""
        free = self.limits.max_connections - len(self.connections)
        if free < 0 or self._is_trusted_proxy:
            return free < 0
        own = [each for each in self.connections if isinstance(each, Connection) and each.address == self.address]
        return len(own) > free + 1

    @cached_property
    def address(self) -> str:
        """The client by its own address. Headers of proxies are read later, and only from trusted ones."""
        return client_of(self.client[0]) if self.client else ""

    @property
    def _is_trusted_proxy(self) -> bool:
        if not (self.limits.trusted_proxies and self.client):
            return False
        peer = ip_address(self.client[0])
        return any(peer in ip_network(proxy) for proxy in self.limits.trusted_proxies)

    def _is_idle(self) -> bool:
        return self._running is None or self._running.response_complete

    def _expect(self, seconds: float, late: Callable[[], None]) -> None:
        self._stop_sending()
        self._sending = self.loop.call_later(seconds, late)

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _expect_head(self) -> None:
        self._expect(self.limits.header_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._sending = None
        if not self._is_idle():  # a pipelined request: the one before it has no answer yet
            self._expect_head()
        elif self._in_head:
            self._refuse(_late("line and headers", self.limits.header_seconds))
        else:
            self.transport.close()

    def _body_is_late(self) -> None:
        self._sending = None
        if self.flow.read_paused or self.pipeline:  # the client is not to blame: uvicorn has stopped reading
            self._expect(self.limits.body_seconds, self._body_is_late)
        elif self._running is None or self._running.response_started:
            self.transport.close()
        else:
            self._refuse(_late("body", self.limits.body_seconds))


def limited(config: ServerConfig, refused: Callable[[Problem, str], None]) -> type[Connection]:
    """A connection class with these limits, for uvicorn; `refused` is called with their problems."""

    class Limited(Connection):
        limits = config
        on_refusal = staticmethod(refused)

    return Limited


def _late(what: str, seconds: float) -> Problem:
    return Problem(Error.REQUEST_TIMEOUT, f"The request's {what} took more than {seconds:g} s to arrive.")


def _unreadable(error: httptools.HttpParserError) -> str:
    """Explain what is wrong with bytes that the parser refuses."""
    for words, explanation in UNREADABLE:
        if words in str(error):
            return explanation
    return "This is not an HTTP/1.1 request. Each line must end with a carriage return and a line feed."


class _LingeringTransport:
    """A transport whose `close` lets the client read what was written, although it is still sending."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__[name] = getattr(self._transport, name)  # kept, as each request needs some
        return found

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._connection.in_message:
            self._transport.close()
            return
        self._closing = True
        self._transport.write_eof()
        self._connection.flow.resume_reading()
        self._connection.loop.call_later(LINGER_SECONDS, self._transport.close)
